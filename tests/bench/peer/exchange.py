"""Reduce + step + gather without a model: gradients are given, as DDP has them, in buckets of 25 MiB.

Each function returns (run, check): check() says what is wrong with the averaged gradient and the step, or "".
"""

import torch
from torch import distributed

from peer import optimizers
from peer.gpt2 import Gpt2
from peer.sharding import zero_redundancy_optimizer

BUCKET_BYTES = 25 * 2**20


def bucketed(parameters):
    """Gives each parameter a gradient that is a view into a bucket, in reverse order as backward does; returns buckets."""
    groups, group_bytes = [[]], 0
    for p in reversed(parameters):
        if groups[-1] and group_bytes + p.nbytes > BUCKET_BYTES:
            groups.append([])
            group_bytes = 0
        groups[-1].append(p)
        group_bytes += p.nbytes
    buckets = []
    for group in groups:
        bucket = torch.empty(sum(p.numel() for p in group))
        for p, part in zip(group, bucket.split([p.numel() for p in group])):
            p.grad = part.view_as(p)
        buckets.append(bucket)
    return buckets


def reduced_and_stepped(size, rank, make_optimizer):
    parameters = list(Gpt2(size).parameters())
    buckets = bucketed(parameters)
    optimizer = make_optimizer(parameters)

    def run():
        works = [distributed.all_reduce(bucket, async_op=True) for bucket in buckets]
        for bucket, work in zip(buckets, works):
            work.wait()
            bucket.div_(distributed.get_world_size())
        optimizer.step()

    def check():
        before = [p.detach().clone() for p in parameters]
        for bucket in buckets:
            bucket.fill_(rank + 1)
        run()
        average = (distributed.get_world_size() + 1) / 2
        if any((bucket != average).any() for bucket in buckets):
            return "the averaged gradient is wrong"
        if not all((p < old).all() for p, old in zip(parameters, before)):
            return "a parameter did not follow its gradient"
        generator = torch.Generator().manual_seed(rank)
        for bucket in buckets:
            bucket.normal_(0, 1e-3, generator=generator)
        return ""

    return run, check


def all_reduce(size, name, rank):
    return reduced_and_stepped(size, rank, lambda parameters: optimizers.make(name, parameters))


def all_reduce_zero_redundancy(size, name, rank):
    return reduced_and_stepped(size, rank, lambda parameters: zero_redundancy_optimizer(name, parameters))
