"""The ways to train on several ranks. Each function takes a model and an optimizer's name and returns a Trainer."""

from dataclasses import dataclass
from typing import Callable

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from peer import optimizers
from peer.gpt2 import Gpt2


@dataclass
class Trainer:
    step: Callable  # batch -> loss: one whole step on all ranks
    state_bytes: Callable  # () -> bytes of optimizer state on this rank
    # () -> (batch -> None): forward and backward alone. Called after peak memory was read: some need a second model.
    forward_backward: Callable
    forward_backward_is: str


def forward_backward_of(model):
    def run(batch):
        model.zero_grad(set_to_none=True)
        model(*batch).backward()

    return run


def plain_model(size):
    """For those whose backward cannot leave the exchange out."""
    return lambda: forward_backward_of(Gpt2(size))


def trainer_of(model, optimizer, state_bytes, forward_backward, forward_backward_is):
    def step(batch):
        optimizer.zero_grad(set_to_none=True)
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Trainer(step, state_bytes, forward_backward, forward_backward_is)


def wrapped_in_ddp(size, make_optimizer, state_of):
    model = DistributedDataParallel(Gpt2(size), gradient_as_bucket_view=True)
    optimizer = make_optimizer(model.parameters())

    def forward_backward(batch):
        with model.no_sync():
            forward_backward_of(model)(batch)

    return trainer_of(model, optimizer, lambda: optimizers.state_bytes(state_of(optimizer)), lambda: forward_backward,
                      "the same model under no_sync()")


def ddp(size, name):
    return wrapped_in_ddp(size, lambda parameters: optimizers.make(name, parameters), lambda optimizer: optimizer)


def zero_redundancy_optimizer(name, parameters):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    optimizer_class, arguments = optimizers.MAKERS[name]
    return ZeroRedundancyOptimizer(parameters, optimizer_class, parameters_as_bucket_view=True, **arguments)


def zero_redundancy(size, name):
    return wrapped_in_ddp(size, lambda parameters: zero_redundancy_optimizer(name, parameters),
                          lambda optimizer: optimizer.optim)


def fsdp2(size, name, reshard_after_forward=True):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    model = Gpt2(size)
    for block in model.h:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard_after_forward)
    optimizer = optimizers.make(name, model.parameters())
    return trainer_of(model, optimizer, lambda: optimizers.state_bytes(optimizer), plain_model(size), "an unsharded model")


def fsdp2_kept(size, name):
    return fsdp2(size, name, reshard_after_forward=False)


def deepspeed_zero1(size, name):
    import deepspeed

    model = Gpt2(size)
    engine, optimizer, _, _ = deepspeed.initialize(
        model=model, optimizer=optimizers.make(name, model.parameters()), dist_init_required=False,
        config={"train_micro_batch_size_per_gpu": size.batch, "zero_optimization": {"stage": 1}, "gradient_clipping": 0.0,
                "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False})

    def step(batch):
        loss = engine(*batch)
        engine.backward(loss)
        engine.step()
        return loss.detach()

    def state_bytes():
        masters = optimizer.single_partition_of_fp32_groups  # a copy of this rank's part of the parameters
        return optimizers.state_bytes(optimizer.optimizer) + sum(part.numel() * part.element_size() for part in masters)

    return Trainer(step, state_bytes, plain_model(size), "an unsharded model")
