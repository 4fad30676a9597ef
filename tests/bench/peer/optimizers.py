"""The optimizers by name, and the bytes that they keep. Learning rates are such that the loss falls; no more is claimed."""

import torch


def sm3(parameters, lr):
    from pytorch_optimizer import SM3

    return SM3(parameters, lr=lr, momentum=0.9)


def fusedbun_compiled(parameters, lr):
    from peer.plain_fusedbun import PlainFusedbun

    return PlainFusedbun(parameters, lr=lr)


# name -> (class or function, its arguments)
MAKERS = {
    "adamw_fused": (torch.optim.AdamW, {"lr": 1e-3, "fused": True}),
    "adamw_foreach": (torch.optim.AdamW, {"lr": 1e-3, "foreach": True}),
    "sgd_fused": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "fused": True}),
    "adafactor": (torch.optim.Adafactor, {"lr": 1e-2}),
    "sm3": (sm3, {"lr": 0.01}),
    "fusedbun_compiled": (fusedbun_compiled, {"lr": 1e-3}),
}


def make(name, parameters):
    maker, arguments = MAKERS[name]
    return maker(list(parameters), **arguments)


def tensors_in(values):
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            yield from tensors_in(value)


def state_bytes(optimizer):
    """Bytes of this rank's part of the state; step counters (tensors of one number) are not counted."""
    parts = [getattr(tensor, "to_local", lambda tensor=tensor: tensor)() for tensor in tensors_in(optimizer.state)]
    return sum(part.numel() * part.element_size() for part in parts if part.dim() > 0)
