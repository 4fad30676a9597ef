#!/usr/bin/env python3
"""AdamW (LibTorch's) and Fusedbun's presets side by side, at equal tokens and a tuned learning rate each.

    tests/bench/optimizers.py [--binary build/release/launcher/fusedbun] [--steps 200] [--finetune-steps 100] [--seeds 3]

A byte-level GPT of 0.84 M parameters on two ranks: pretrained on licence texts, then fine-tuned on Python's standard
library, all optimizers from the same pretrained weights (AdamW's). Learning rates are tuned per optimizer and task by
walking in factors of 2 to a minimum of the validation loss with a seed that is not used again; the table then shows mean
and standard deviation over the other seeds. Takes about a quarter of an hour on two quiet cores. Markdown goes to stdout,
every run to stderr.
"""

import argparse
import glob
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

PRETRAIN_TEXT = "/usr/share/common-licenses"
FINETUNE_TEXT = min(glob.glob("/usr/lib/python3.*"))
TUNING_SEED = 100
WALK_MAX = 6  # learning rates tried per optimizer and task

# name in the table -> (flags, where the walk over learning rates starts)
OPTIMIZERS = {
    "AdamW (LibTorch)": (["--optimizer", "adamw"], 4e-3),
    "recommended": (["--preset", "recommended"], 8e-3),
    "sm3": (["--preset", "sm3"], 8e-3),
    "compact": (["--preset", "compact"], 0.1),
}


class Bench:
    def __init__(self, arguments, folder):
        self.arguments, self.folder, self.runs = arguments, folder, 0

    def run(self, optimizer, lr, seed, task):
        """Trains once. Returns the run's folder and its last validation loss (inf if it diverged)."""
        self.runs += 1
        run_dir = self.folder / str(self.runs)
        flags = OPTIMIZERS[optimizer][0] + task["flags"]
        words = [self.arguments.binary, "launch", "-n", "2", "--", "train", *flags, "--lr", lr, "--seed", seed,
                 "--steps", task["steps"], "--eval-every", 0, "--validation-batches", 12, "--run-dir", run_dir,
                 "--no-control", "--quiet"]
        start = time.monotonic()
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        if done.returncode not in (0, 78):
            sys.exit(f"{' '.join(str(word) for word in words)}\nleft with {done.returncode}\n{done.stderr}")
        losses = [line["validation_loss"] for line in read_lines(run_dir / "metrics.jsonl") if "validation_loss" in line]
        loss = losses[-1] if done.returncode == 0 and losses[-1] is not None else math.inf
        print(f"{task['name']:9} {optimizer:17} lr {lr:<8.3g} seed {seed:<4} {losses[0]:.4f} -> {loss:.4f}  "
              f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        return run_dir, loss, done.stdout

    def tune(self, optimizer, task, start):
        """The learning rate, a power of 2 away from `start`, that beats both its neighbours."""
        tried = {}

        def loss_at(power):
            if power not in tried:
                tried[power] = self.run(optimizer, start * 2.0**power, TUNING_SEED, task)[1]
            return tried[power]

        best = 0
        while len(tried) < WALK_MAX:
            best = min((best, best - 1, best + 1), key=loss_at)
            if {best - 1, best + 1} <= tried.keys():
                break
        best = min(tried, key=tried.get)
        return start * 2.0**best

    def final(self, optimizer, task, lr):
        """Losses over the seeds, and the bytes of optimizer state that one rank reported."""
        results = [self.run(optimizer, lr, seed, task) for seed in range(1, self.arguments.seeds + 1)]
        (line,) = [line for line in results[0][2].splitlines() if "optimizer state" in line]
        return [loss for _, loss, _ in results], line.split("optimizer state")[1].split("bytes")[0].strip()


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def shown(losses):
    spread = statistics.stdev(losses) if len(losses) > 1 else 0
    return f"{statistics.mean(losses):.3f} ± {spread:.3f}"


def main():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(root / "build/release/launcher/fusedbun"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--finetune-steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fusedbun-bench-") as folder:
        bench = Bench(arguments, Path(folder))
        pretrain = {"name": "pretrain", "steps": arguments.steps, "flags": ["--data", PRETRAIN_TEXT]}
        lr = {name: bench.tune(name, pretrain, first) for name, (_, first) in OPTIMIZERS.items()}
        first = next(iter(OPTIMIZERS))
        model = bench.run(first, lr[first], TUNING_SEED, pretrain)[0] / "model.safetensors"
        finetune = {"name": "fine-tune", "steps": arguments.finetune_steps,
                    "flags": ["--data", FINETUNE_TEXT, "--init", str(model)]}
        tuned = {name: bench.tune(name, finetune, lr[name] / 2) for name in OPTIMIZERS}
        print("| optimizer | state, bytes per rank | pretrain, validation loss | lr | fine-tune, validation loss | lr |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name in OPTIMIZERS:
            losses, state = bench.final(name, pretrain, lr[name])
            finetuned, _ = bench.final(name, finetune, tuned[name])
            print(f"| {name} | {state} | {shown(losses)} | {lr[name]:.2g} | {shown(finetuned)} | {tuned[name]:.2g} |",
                  flush=True)
    print(f"\n{date.today()}, 2 ranks, {os.cpu_count()} cores, {arguments.steps} + {arguments.finetune_steps} steps of 16 x 128 "
          f"bytes, {arguments.seeds} seeds (mean ± standard deviation), {(time.monotonic() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
