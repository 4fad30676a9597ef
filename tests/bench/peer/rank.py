#!/usr/bin/env python3
"""One process of a contestant: rank.py TASK RANK STORE, where TASK is a Task as JSON and STORE a file for the rendezvous.

Rank 0 prints one JSON object; {"refused": why} if the check before timing failed.
"""

import ctypes
import gc
import json
import math
import os
import signal
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import distributed

from peer import exchange, optimizers, sharding
from peer.contest import CHECK_STEPS, OPTIMIZERS, WARM_UP_STEPS, Task
from peer.gpt2 import Gpt2, batches
from peer.process_memory import status_bytes

PR_SET_PDEATHSIG = 1


class Refused(Exception):
    """The contestant does not do what it should; it is not timed."""


def seconds_of(run, *arguments):
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def seconds_together(run, *arguments):
    """All ranks start together."""
    distributed.barrier()
    return seconds_of(run, *arguments)


def of_all_ranks(value):
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def slowest(seconds):
    """Per step the time of the slowest rank."""
    return [max(step) for step in zip(*of_all_ranks(seconds))]


def quartile_range(values):
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (0, 0, 0)
    return high - low


def require_falling(losses, what):
    if not all(map(math.isfinite, losses)) or not losses[-1] < losses[0]:
        raise Refused(f"{what} does not fall: " + ", ".join(f"{loss:.4f}" for loss in losses))


def train(task, rank):
    base_rss = status_bytes("VmRSS")
    trainer = getattr(sharding, task.peer.wrap)(task.size, task.peer.optimizer)
    drawn = batches(task.size, rank, 8)
    losses = [trainer.step(drawn[0]).item() for _ in range(CHECK_STEPS)]
    require_falling([sum(step) for step in zip(*of_all_ranks(losses))], "the loss")
    memory = {"state_bytes": trainer.state_bytes(), "peak_rss": status_bytes("VmHWM"), "base_rss": base_rss}
    memory = {name: max(ranks[name] for ranks in of_all_ranks(memory)) for name in memory}

    forward_backward, whole, alone = trainer.forward_backward(), [], []
    gc.collect()
    gc.freeze()
    for step in range(WARM_UP_STEPS + task.steps):
        batch = drawn[step % len(drawn)]
        alone.append(seconds_together(forward_backward, batch))
        whole.append(seconds_together(trainer.step, batch))
    whole, alone = slowest(whole[WARM_UP_STEPS:]), slowest(alone[WARM_UP_STEPS:])
    step_ms, alone_ms = statistics.median(whole) * 1e3, statistics.median(alone) * 1e3
    return {"step_ms": step_ms, "forward_backward_ms": alone_ms, "not_forward_backward_ms": step_ms - alone_ms,
            "quartile_range_ms": quartile_range(whole) * 1e3, "forward_backward_is": trainer.forward_backward_is,
            "first_loss": losses[0], "last_loss": losses[-1], **memory}


def exchange_alone(task, rank):
    run, check = getattr(exchange, task.peer.wrap)(task.size, task.peer.optimizer, rank)
    if reason := check():
        raise Refused(reason)
    times = slowest([seconds_together(run) for _ in range(WARM_UP_STEPS + task.steps)][WARM_UP_STEPS:])
    return {"ms": statistics.median(times) * 1e3, "quartile_range_ms": quartile_range(times) * 1e3}


def checked_optimizer(name, parameters):
    """An optimizer that makes the sum of squares fall when told that the gradient is the parameter."""
    optimizer, squares = optimizers.make(name, parameters), []
    for _ in range(3):
        squares.append(sum(p.detach().double().square().sum().item() for p in parameters))
        for p in parameters:
            p.grad.copy_(p.detach())
        optimizer.step()
    require_falling(squares, "the sum of squares")
    return optimizer


def optimizer_steps(task, _):
    """All optimizers in one process and in turns. They share parameters and gradients, which saves memory and changes no
    time."""
    parameters = list(Gpt2(task.size).parameters())
    for p in parameters:
        p.grad = torch.empty_like(p)
    made, rows = {}, []
    for name, key in OPTIMIZERS.items():
        try:
            made[name] = checked_optimizer(key, parameters)
        except Exception as error:  # one that fails must not cost the others their figures
            rows.append({"name": name, "threads": task.threads, "refused": one_line(error)})
    for p in parameters:
        p.grad.normal_(0, 1e-3)
    times = {name: [] for name in made}
    for _ in range(WARM_UP_STEPS + task.steps):
        for name, optimizer in made.items():
            times[name].append(seconds_of(optimizer.step))
    per_parameter = 1e9 / sum(p.numel() for p in parameters)
    for name, seconds in times.items():
        timed = seconds[WARM_UP_STEPS:]
        rows.append({"name": name, "threads": task.threads, "ns_per_param": statistics.median(timed) * per_parameter,
                     "quartile_range_ns": quartile_range(timed) * per_parameter})
    return {"rows": rows}


PARTS = {"train": train, "exchange": exchange_alone, "step": optimizer_steps}


def one_line(error):
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def main(task, rank, store):
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    task, rank = Task.of_json(json.loads(task)), int(rank)
    world_size = 1 if task.part == "step" else task.world_size
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))  # DeepSpeed reads them
    torch.set_num_threads(task.threads)
    torch.manual_seed(1)
    # What libraries print goes to stderr; stdout is the result's alone.
    result_file = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    try:
        result = PARTS[task.part](task, rank)
    except Refused as refused:
        result = {"refused": str(refused)}
    if rank == 0:
        print(json.dumps(result), file=result_file, flush=True)
    distributed.barrier()
    os._exit(0)  # leaves out destructors that wait for the other rank


if __name__ == "__main__":
    main(*sys.argv[1:])
