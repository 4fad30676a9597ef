#!/usr/bin/env python3
"""AdamW (LibTorch's) and Fusedbun's presets side by side, at equal tokens and a tuned learning rate each.

    tests/bench/optimizers.py [--binary build/release/launcher/fusedbun] [--steps 200] [--finetune-steps 100] [--seeds 3]
    tests/bench/optimizers.py --model FOLDER --data A.bin --eval-data B.bin [--other-data C.bin] [--context 256] [--batch 4]
                              [--finetune-steps 24] [--lr NAME=RATE] [--leave-out NAME]

The first: a byte-level GPT of 0.84 M parameters on two ranks: pretrained on licence texts, then fine-tuned on Python's standard
library, all optimizers from the same pretrained weights (AdamW's). Learning rates are tuned per optimizer and task by
walking in factors of 2 to a minimum of the validation loss with a seed that is not used again; the table then shows mean
and standard deviation over the other seeds. Takes about a quarter of an hour on two quiet cores.

The second: a published model, as deploy/finetune.sh has it, fine-tuned on tokens whose prompts carry no loss; torch's Adafactor and Muon take
part, on the same samples by the same schedule (peer/finetune.py), with state, peak memory and time of a step, and what became of a
text of another kind (--other-data, judged by `fusedbun eval`). All rates are tuned first; then each seed goes through all optimizers, so
that their times meet the same machine. Needs .venv of `deploy/install.sh test`. SmolLM2-135M on two cores: three hours with the defaults,
and without Muon: torch's iterates in bfloat16, and where the processor has no instructions for it (AVX2 alone), 12 steps of 2 x 256 tokens
had not ended after 15 minutes.

Markdown goes to stdout, every run to stderr.
"""

import argparse
import glob
import json
import math
import os
import re
import shutil
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
WARMUP = 4  # steps, of a published model
ROOT = Path(__file__).resolve().parents[2]

# name in the table -> (flags, where the walk over learning rates starts)
OPTIMIZERS = {
    "AdamW (LibTorch)": (["--optimizer", "adamw"], 4e-3),
    "recommended": (["--preset", "recommended"], 8e-3),
    "sm3": (["--preset", "sm3"], 8e-3),
    "compact": (["--preset", "compact"], 0.1),
}


# The same for a published model: flags of ours, or an optimizer of peer/finetune.py.
FINETUNING = {
    "AdamW (torch, fused)": ("adamw", 1e-4),
    "Adafactor (torch)": ("adafactor", 1e-3),
    "Muon (torch, with AdamW)": ("muon", 1e-4),
    "recommended": (["--preset", "recommended"], 1e-4),
    "sm3": (["--preset", "sm3"], 2e-4),
    "compact": (["--preset", "compact"], 2e-3),
}


class Bench:
    def __init__(self, arguments, folder):
        self.arguments, self.folder, self.runs = arguments, folder, 0

    def ran(self, words):
        """Runs to the end; 78 is a run that diverged."""
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        if done.returncode not in (0, 78):
            sys.exit(f"{' '.join(str(word) for word in words)}\nleft with {done.returncode}\n{done.stderr}")
        return done

    def told(self, task, optimizer, lr, seed, before, after, start):
        print(f"{task['name']:9} {optimizer:24} lr {lr:<8.3g} seed {seed:<4} {before:.4f} -> {after:.4f}  {time.monotonic() - start:.0f} s",
              file=sys.stderr, flush=True)

    def run(self, optimizer, lr, seed, task):
        """Trains once. Returns the run's folder and its last validation loss (inf if it diverged)."""
        self.runs += 1
        run_dir = self.folder / str(self.runs)
        flags = task["optimizers"][optimizer][0] + task["flags"]
        start = time.monotonic()
        done = self.ran([self.arguments.binary, "launch", "-n", "2", "--", "train", *flags, "--lr", lr, "--seed", seed,
                         "--steps", task["steps"], "--eval-every", 0, "--run-dir", run_dir, "--no-control", "--quiet"])
        losses = [line["validation_loss"] for line in read_lines(run_dir / "metrics.jsonl") if "validation_loss" in line]
        loss = losses[-1] if done.returncode == 0 and losses[-1] is not None else math.inf
        self.told(task, optimizer, lr, seed, losses[0], loss, start)
        return run_dir, loss, done.stdout

    def eval_loss(self, model, data):
        out = self.ran([self.arguments.binary, "eval", "--model", model, "--data", data, "--context",
                        self.arguments.context, "--long-documents", "cut", "--output", "json"]).stdout
        return json.loads(out)["all"]["loss"]

    def judged(self, optimizer, lr, seed, task):
        """`measured`, and the loss on the text of another kind if there is one."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            keep = Path(folder) / "model" if self.arguments.other_data else None
            found = self.measured(optimizer, lr, seed, task, keep)
            return found | ({"other": self.eval_loss(keep, self.arguments.other_data)} if keep else {})

    def measured(self, optimizer, lr, seed, task, keep=None):
        """A fine-tune of a published model, by us or by torch: loss, bytes of state and of peak memory, seconds of a step. The model
        moves to the folder `keep`."""
        kind = task["optimizers"][optimizer][0]
        if isinstance(kind, list):
            run_dir, loss, out = self.run(optimizer, lr, seed, task)
            if keep:
                shutil.copytree(run_dir, keep)
            (run_dir / "model.safetensors").unlink(missing_ok=True)
            steps = [line for line in read_lines(run_dir / "metrics.jsonl") if "tokens_per_second" in line]
            tokens = self.arguments.context * self.arguments.batch
            return {"loss": loss, "state": state_of(out) if loss < math.inf else 0, "memory": memory_of(out) if loss < math.inf else 0,
                    "seconds": statistics.median(tokens / line["tokens_per_second"] for line in steps)}
        start = time.monotonic()
        done = self.ran([ROOT / ".venv/bin/torchrun", "--standalone", "--nproc-per-node", 2, ROOT / "tests/bench/peer/finetune.py", kind, lr,
                         seed, self.arguments.model, self.arguments.data, self.arguments.eval_data, self.arguments.context,
                         self.arguments.batch, task["steps"], WARMUP, *([keep] if keep else [])])
        found = json.loads(done.stdout.splitlines()[-1])
        loss = found["after"] if math.isfinite(found["after"]) else math.inf
        self.told(task, optimizer, lr, seed, found["before"], loss, start)
        return {"loss": loss, "state": found["state_bytes"], "memory": found["peak_bytes"], "seconds": statistics.median(found["seconds"])}

    def tune(self, optimizer, task, start):
        """The learning rate, a power of the task's factor away from `start`, that beats both its neighbours."""
        tried = {}

        def loss_at(power):
            if power not in tried:
                tried[power] = self.loss(optimizer, start * task["factor"]**power, task)
            return tried[power]

        best = 0
        while len(tried) < WALK_MAX:
            best = min((best, best - 1, best + 1), key=loss_at)
            if {best - 1, best + 1} <= tried.keys():
                break
        best = min(tried, key=tried.get)
        return start * task["factor"]**best

    def loss(self, optimizer, lr, task):
        if task["optimizers"] is FINETUNING:
            return self.measured(optimizer, lr, TUNING_SEED, task)["loss"]
        return self.run(optimizer, lr, TUNING_SEED, task)[1]

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


def said_of(out, what):
    """What the end of a run on several ranks says of `what`."""
    (line,) = re.findall(rf"^\[rank 0\] {what} +(.*)$", out, re.MULTILINE)
    return line


def state_of(out):
    """Bytes of optimizer state of the rank that has most, as a run's end says."""
    line = said_of(out, "optimizer state")
    return max(int(number.replace(",", "")) for number in re.findall(r"([\d,]+) bytes", line))


def memory_of(out):
    """Bytes of peak memory of the rank that takes most, without what the process had before it had a model."""
    value, unit = re.match(r"([\d.]+) (MiB|GiB) at the peak", said_of(out, "memory")).groups()
    return float(value) * (1 << (20 if unit == "MiB" else 30))


def rate_of(text):
    """("sm3", 2e-4) of "sm3=2e-4"."""
    name, _, rate = text.rpartition("=")
    if name not in FINETUNING:
        raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(FINETUNING)}")
    return name, float(rate)


def small_models(bench, arguments):
    pretrain = {"name": "pretrain", "steps": arguments.steps, "optimizers": OPTIMIZERS, "factor": 2.0,
                "flags": ["--data", PRETRAIN_TEXT, "--validation-batches", 12]}
    lr = {name: bench.tune(name, pretrain, first) for name, (_, first) in OPTIMIZERS.items()}
    first = next(iter(OPTIMIZERS))
    model = bench.run(first, lr[first], TUNING_SEED, pretrain)[0] / "model.safetensors"
    finetune = {"name": "fine-tune", "steps": arguments.finetune_steps or 100, "optimizers": OPTIMIZERS, "factor": 2.0,
                "flags": ["--data", FINETUNE_TEXT, "--validation-batches", 12, "--init", str(model)]}
    tuned = {name: bench.tune(name, finetune, lr[name] / 2) for name in OPTIMIZERS}
    print("| optimizer | state, bytes per rank | pretrain, validation loss | lr | fine-tune, validation loss | lr |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in OPTIMIZERS:
        losses, state = bench.final(name, pretrain, lr[name])
        finetuned, _ = bench.final(name, finetune, tuned[name])
        print(f"| {name} | {state} | {shown(losses)} | {lr[name]:.2g} | {shown(finetuned)} | {tuned[name]:.2g} |", flush=True)
    return f"{arguments.steps} + {finetune['steps']} steps of 16 x 128 bytes"


def published_model(bench, arguments):
    task = {"name": "fine-tune", "steps": arguments.finetune_steps or 24, "optimizers": FINETUNING, "factor": 3.0,
            "flags": ["--init", arguments.model, "--data", arguments.data, "--eval-data", arguments.eval_data, "--context", arguments.context,
                      "--batch", arguments.batch, "--warmup", WARMUP, "--long-documents", "cut", "--packing", "documents",
                      "--weight-decay", 0, "--threads", 1, "--validation-batches", 1000, "--no-checkpoints"]}
    given = dict(arguments.lr)
    lr = {name: given[name] if name in given else bench.tune(name, task, first)
          for name, (_, first) in FINETUNING.items() if name not in arguments.leave_out}
    found = {name: [] for name in lr}
    for seed in range(1, arguments.seeds + 1):
        for name, runs in found.items():
            runs.append(bench.judged(name, lr[name], seed, task))
    before = bench.eval_loss(arguments.model, arguments.eval_data)
    other = [f"other text (before: {bench.eval_loss(arguments.model, arguments.other_data):.3f})"] if arguments.other_data else []
    columns = ["optimizer", "state, MB per rank", "peak memory, GB", "s per step", f"validation loss (before: {before:.3f})", *other, "lr"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for name, runs in found.items():
        cells = [name, f"{runs[0]['state'] / 1e6:.1f}", f"{max(one['memory'] for one in runs) / 1e9:.2f}",
                 f"{statistics.median(one['seconds'] for one in runs):.2f}", shown([one["loss"] for one in runs]),
                 *([shown([one["other"] for one in runs])] if other else []), f"{lr[name]:.2g}"]
        print(f"| {' | '.join(cells)} |")
    return f"{Path(arguments.model).name}, {task['steps']} steps of {arguments.batch} x {arguments.context} tokens"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build/release/launcher/fusedbun"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--finetune-steps", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", help="a Hugging Face folder to fine-tune")
    parser.add_argument("--data", help="tokens to fine-tune it on")
    parser.add_argument("--eval-data", help="tokens to validate with")
    parser.add_argument("--other-data", help="tokens of another kind, to see what fine-tuning did to it")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--leave-out", action="append", default=[], choices=FINETUNING, metavar="NAME", help="of a published model's table; may be repeated")
    parser.add_argument("--lr", action="append", default=[], metavar="NAME=RATE", type=rate_of,
                        help="a rate that was tuned before, of a published model's table; may be repeated")
    arguments = parser.parse_args()
    if bool(arguments.model) != bool(arguments.data and arguments.eval_data):
        parser.error("--model, --data and --eval-data go together")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fusedbun-bench-") as folder:
        what = (published_model if arguments.model else small_models)(Bench(arguments, Path(folder)), arguments)
    print(f"\n{date.today()}, 2 ranks, {os.cpu_count()} cores, {what}, {arguments.seeds} seeds (mean ± standard deviation), "
          f"{(time.monotonic() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
