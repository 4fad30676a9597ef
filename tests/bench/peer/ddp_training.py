"""The loop that people write: a Hugging Face GPT-2 under DDP with torch's fused AdamW, one rank of it.

ddp_training.py FOLDER TOKENS CONTEXT STEPS THREADS
started by torchrun; each rank takes one sequence a step. Rank 0 prints JSON: seconds of each step, losses, peak memory of each rank.
"""
import json
import sys
import time

import numpy
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from process_memory import status_bytes


def main():
    folder, tokens, context, steps, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    torch.set_num_threads(threads)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    model.train()
    model.config.use_cache = False
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-4, fused=True)
    data = numpy.memmap(tokens, numpy.uint16, "r")
    seconds, losses = [], []
    for step in range(steps):
        begin = (step * ranks + rank) * context
        batch = torch.from_numpy(data[begin:begin + context].astype(numpy.int64))[None]
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = ddp(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    peaks = [None] * ranks
    dist.all_gather_object(peaks, status_bytes("VmHWM"))
    if rank == 0:
        print(json.dumps({"seconds": seconds, "losses": losses, "peak_bytes": peaks}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
