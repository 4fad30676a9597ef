"""One rank of a fine-tune with an optimizer of torch's, on the samples and by the schedule of `fusedbun train`.

finetune.py OPTIMIZER LR SEED MODEL DATA EVAL_DATA CONTEXT BATCH STEPS WARMUP [OUT]
started by torchrun. OPTIMIZER: adamw, adafactor, or muon (AdamW for what is no matrix of a block). Rank 0 prints JSON: validation loss before
and after, seconds of each step, bytes of optimizer state, and peak memory of a rank beside
what it had before it had a model; and saves the model as the folder OUT.
"""
import json
import math
import sys
import time

import torch
import torch.distributed as dist
from packed_samples import PackedSamples, place
from process_memory import status_bytes
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

WEIGHT_DECAY, FLOOR = 0.0, 0.1


def optimizers_of(kind, model, lr):
    if kind == "adamw":
        return [torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True)]
    if kind == "adafactor":
        return [torch.optim.Adafactor(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)]
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or ".layers." not in name]
    return [torch.optim.Muon(matrices, lr=lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True)]


def rate(peak, step, warmup, steps):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2)


def loss_sum(model, rows):
    """The cross entropies of rows [sequences, 3, context], and how many there are."""
    tokens, targets, positions = rows.unbind(1)
    begins = torch.arange(tokens.shape[1]) - positions
    mask = ((begins[:, :, None] == begins[:, None, :]) & torch.ones(tokens.shape[1], tokens.shape[1]).tril().bool())[:, None]
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    logits = model(input_ids=tokens, position_ids=positions, attention_mask=bias, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"), (targets >= 0).sum().item()


def over_ranks(*values):
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def validation(model, data):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    total = count = 0
    with torch.no_grad():
        for number in range(rank, len(data), ranks):
            one, predicted = loss_sum(model, torch.from_numpy(data.sequence(number))[None])
            total, count = total + one.item(), count + predicted
    total, count = over_ranks(total, count)
    return total / count


def main():
    kind, peak, seed, folder, data, eval_data = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:7]
    context, batch, steps, warmup = map(int, sys.argv[7:11])
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    resident = status_bytes("VmRSS")  # before there is a model; `fusedbun train` counts so too
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizers = optimizers_of(kind, model, peak)
    training, held_back = PackedSamples(data, context), PackedSamples(eval_data, context)
    before, seconds = validation(model, held_back), []
    for step in range(steps):
        start = time.perf_counter()
        mine = [place(step * batch + rank * (batch // ranks) + i, len(training), seed) for i in range(batch // ranks)]
        rows = torch.stack([torch.from_numpy(training.sequence(number)) for number in mine])
        (predicted,) = over_ranks((rows[:, 1] >= 0).sum().item())
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate(peak, step, warmup, steps)
            optimizer.zero_grad(set_to_none=True)
        (loss_sum(ddp, rows)[0] * ranks / predicted).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    after = validation(model, held_back)
    state = sum(value.numel() * value.element_size() for optimizer in optimizers for values in optimizer.state.values()
                for value in values.values() if torch.is_tensor(value) and value.numel() > 1)
    peaks = [None] * ranks
    dist.all_gather_object(peaks, status_bytes("VmHWM") - resident)
    if rank == 0 and len(sys.argv) > 11:
        model.save_pretrained(sys.argv[11])
    if rank == 0:
        print(json.dumps({"before": before, "after": after, "seconds": seconds, "state_bytes": state, "peak_bytes": max(peaks)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
