"""Fusedbun's preset `recommended` as plain PyTorch operations, compiled: what one would write without this project.

Means are float32 here (the product sums rows in float64); otherwise the arithmetic of core/README.md.
"""

import torch


def matrix_step(p, g, row, column, momentum, beta, lr, eps, decay, momentum_beta):
    kept = g.abs() > eps
    mean = column.mean()
    before = row.unsqueeze(1) * torch.where(mean > 0, column / mean, 0)
    square = torch.where(kept, g * g, before)
    denominator = (beta * before + (1 - beta) * square).sqrt() + eps
    row.copy_(beta * row + (1 - beta) * square.mean(1))
    column.copy_(beta * column + (1 - beta) * square.mean(0))
    momentum.copy_(momentum_beta * momentum + (1 - momentum_beta) * torch.where(kept, g, 0) / denominator)
    p.copy_(p * (1 - lr * decay) - lr * momentum)


def vector_step(p, g, second, momentum, beta, lr, eps, decay, momentum_beta):
    second.copy_(beta * second + (1 - beta) * g * g)
    momentum.copy_(momentum_beta * momentum + (1 - momentum_beta) * g / (second.sqrt() + eps))
    p.copy_(p * (1 - lr * decay) - lr * momentum)


class PlainFusedbun(torch.optim.Optimizer):
    """`compiled=False` runs the same operations one by one."""

    def __init__(self, params, lr, eps=1e-8, beta_decay=0.8, weight_decay=0.01, momentum_beta=0.9, compiled=True):
        super().__init__(params, {"lr": lr, "eps": eps, "beta_decay": beta_decay, "decay": weight_decay,
                                  "momentum_beta": momentum_beta})
        torch._dynamo.config.recompile_limit = 64  # one graph per shape
        wrap = (lambda step: torch.compile(step, dynamic=False)) if compiled else (lambda step: step)
        self._matrix_step, self._vector_step, self._t = wrap(matrix_step), wrap(vector_step), 0

    def _start(self, p):
        state = self.state[p]
        if p.dim() > 1:
            matrix = p.flatten(1)
            state["row"], state["column"] = matrix.new_zeros(matrix.shape[0]), matrix.new_zeros(matrix.shape[1])
        else:
            state["second"] = torch.zeros_like(p)
        state["momentum"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self):
        self._t += 1
        for group in self.param_groups:
            settings = [group["lr"], group["eps"], group["decay"], group["momentum_beta"]]
            beta = torch.tensor(1 - self._t ** -group["beta_decay"])  # a tensor: a number would compile each step anew
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p not in self.state:
                    self._start(p)
                state = self.state[p]
                if p.dim() > 1:
                    self._matrix_step(p.flatten(1), p.grad.flatten(1), state["row"], state["column"],
                                      state["momentum"].flatten(1), beta, *settings)
                else:
                    self._vector_step(p, p.grad, state["second"], state["momentum"], beta, *settings)
