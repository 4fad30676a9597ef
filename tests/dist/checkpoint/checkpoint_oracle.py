"""Loads what checkpoint_python_test.cpp has saved, with torch and safetensors alone.

    load FOLDER        model/ and optimizer/ by torch.distributed.checkpoint, on 1, 3 and 4 ranks
    consolidate FOLDER OUT    model/ into one file by torch, read by safetensors
"""
import multiprocessing
import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

# As in checkpoint_python_test.cpp.
TENSORS = {
    "model": {
        "wte.weight": ((6, 7), torch.float32),
        "h.0.weight": ((7, 9), torch.bfloat16),
        "h.0.cut": ((8, 8), torch.float32),
        "cube": ((3, 4, 5), torch.float64),
        "bias": ((5,), torch.float16),
    },
    "optimizer": {
        "wte.weight.momentum": ((6, 7), torch.float32),
        "wte.weight.row": ((6,), torch.float64),
        "wte.weight.steps": ((), torch.int64),
        "bytes": ((16,), torch.int8),
        "short": ((4,), torch.int16),
        "whole": ((4,), torch.int32),
    },
}


def expected(name, shape, dtype):
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7 + len(name)) % 251 - 125).to(dtype).reshape(shape)


def check(name, found, shape, dtype):
    assert found.dtype == dtype and tuple(found.shape) == shape, (name, found.dtype, found.shape)
    wanted = expected(name, shape, dtype)
    assert torch.equal(found, wanted), f"{name}:\n{found}\n{wanted}"


def load(rank, ranks, folder, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    for part, tensors in TENSORS.items():
        state = {}
        for name, (shape, dtype) in tensors.items():
            empty = torch.full(shape, 99, dtype=dtype)
            # Matrices cut by rows over the ranks; everything else whole on each.
            state[name] = distribute_tensor(empty, mesh, [Shard(0)]) if len(shape) > 1 else empty
        dcp.load(state, storage_reader=HuggingFaceStorageReader(os.path.join(folder, part)))
        for name, (shape, dtype) in tensors.items():
            found = state[name].full_tensor() if isinstance(state[name], DTensor) else state[name]
            check(name, found, shape, dtype)
    dist.destroy_process_group()


def load_on(ranks, folder):
    # Forked: torch has been imported once, and has started no threads yet.
    context = multiprocessing.get_context("fork")
    store = os.path.join(os.path.dirname(folder), f"store-{ranks}")
    workers = [context.Process(target=load, args=(rank, ranks, folder, store)) for rank in range(ranks)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(worker.exitcode == 0 for worker in workers), [worker.exitcode for worker in workers]


if sys.argv[1] == "load":
    for ranks in (1, 3, 4):
        load_on(ranks, sys.argv[2])
elif sys.argv[1] == "consolidate":
    source, out = sys.argv[2:]
    os.makedirs(out)
    consolidate_safetensors_files(os.path.join(source, "model"), out, {name: 1 for name in TENSORS["model"]})
    loaded = load_file(os.path.join(out, "model-00001-of-00001.safetensors"))
    assert sorted(loaded) == sorted(TENSORS["model"]), sorted(loaded)
    for name, (shape, dtype) in TENSORS["model"].items():
        check(name, loaded[name], shape, dtype)
else:
    sys.exit(f"unknown command {sys.argv[1]}")
