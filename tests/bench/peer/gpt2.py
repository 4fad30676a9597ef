"""The model of launcher/train/gpt2.cpp in Python: the same shapes, operations and initial deviations."""

import torch
from torch import nn
from torch.nn import functional

DEVIATION = 0.02


class Attention(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.heads = size.heads
        self.c_attn = nn.Linear(size.width, 3 * size.width)
        self.c_proj = nn.Linear(size.width, size.width)

    def forward(self, x):
        batch, time, width = x.shape
        query, key, value = self.c_attn(x).view(batch, time, 3, self.heads, width // self.heads).unbind(2)
        mixed = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(batch, time, width))


class Mlp(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.c_fc = nn.Linear(size.width, 4 * size.width)
        self.c_proj = nn.Linear(4 * size.width, size.width)

    def forward(self, x):
        return self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.ln_1 = nn.LayerNorm(size.width)
        self.attn = Attention(size)
        self.ln_2 = nn.LayerNorm(size.width)
        self.mlp = Mlp(size)

    def forward(self, x):
        attended = x + self.attn(self.ln_1(x))
        return attended + self.mlp(self.ln_2(attended))


class Gpt2(nn.Module):
    """forward(tokens, targets) is the mean cross entropy. The output layer is the token embedding."""

    def __init__(self, size, seed=1):
        super().__init__()
        self.wte = nn.Embedding(size.vocabulary, size.width)
        self.wpe = nn.Embedding(size.positions, size.width)
        self.h = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.ln_f = nn.LayerNorm(size.width)
        self._initialise(size, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, size, generator):
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(float(name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))))
            else:
                residual = name.endswith("c_proj.weight")
                parameter.normal_(0, DEVIATION / (2 * size.layers) ** 0.5 if residual else DEVIATION, generator=generator)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        logits = functional.linear(self.ln_f(x), self.wte.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batches(size, rank, count):
    """`count` pairs of tokens and targets, bytes, other ones on each rank."""
    generator = torch.Generator().manual_seed(100 + rank)
    drawn = [torch.randint(256, (size.batch, size.context + 1), generator=generator) for _ in range(count)]
    return [(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()) for tokens in drawn]
