#!/usr/bin/env python3
"""`fusedbun train` beside the loop that people write in Python: tokens per second and peak memory, in turns.

    tests/bench/whole_training.py [--build build/release] [--rounds 3] [--steps 5] [--json]

A GPT-2 of 124 M parameters with random weights, as a Hugging Face folder, on random tokens: context 1024, one sequence a rank, two ranks
over Gloo on this host, one thread each, float32. The Python loop is transformers' model with scaled_dot_product_attention, DDP with
gradients as bucket views, torch's fused AdamW, clip_grad_norm_ (peer/ddp_training.py); ours is preset recommended with clipping and the
agreement on NaNs. The first step of a turn is not counted. Memory is VmHWM of the rank that takes most; pages that ranks share count in
each. Needs .venv of `deploy/install.sh test`, a release build, 10 GB and a quiet machine: some ten minutes.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from peer.machine import machine

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
CONTEXT, RANKS = 1024, 2

MAKE = """
import sys, numpy, torch
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(1)
GPT2LMHeadModel(GPT2Config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)).save_pretrained(sys.argv[1])
numpy.random.default_rng(1).integers(0, 50256, int(sys.argv[3]), dtype=numpy.uint16).tofile(sys.argv[2])
"""


class Turn:
    """Runs words to their end and watches the memory of all processes that come of them."""

    def __init__(self, words):
        self.peak_bytes = 0
        process = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while True:
            try:
                self.out, err = process.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                for pid in descendants(process.pid):
                    self.peak_bytes = max(self.peak_bytes, peak_of(pid))
        if process.returncode != 0:
            sys.exit(f"{' '.join(str(word) for word in words)}\nleft with {process.returncode}\n{err}")


def descendants(pid):
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except OSError:
            continue
        found += children
        todo += children
    return found


def peak_of(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def ours(arguments, folder, number):
    run_dir = folder / f"run{number}"
    turn = Turn([arguments.build / "launcher" / "fusedbun", "launch", "-n", RANKS, "--", "train", "--init", folder / "model", "--data",
                 folder / "tokens.bin", "--context", CONTEXT, "--batch", RANKS, "--steps", arguments.steps, "--threads", 1, "--warmup", 1,
                 "--lr", "1e-4", "--eval-every", 0, "--validation-batches", 1, "--no-checkpoints", "--no-control", "--quiet", "--run-dir",
                 run_dir])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "tokens_per_second" in line]
    (run_dir / "model.safetensors").unlink()
    return {"tokens_per_second": [line["tokens_per_second"] for line in steps[1:]], "loss": steps[0]["loss"],
            "peak_bytes": turn.peak_bytes}


def peers(arguments, folder, _):
    turn = Turn([PYTHON.parent / "torchrun", "--standalone", "--nproc-per-node", RANKS, Path(__file__).with_name("peer") / "ddp_training.py",
                 folder / "model", folder / "tokens.bin", CONTEXT, arguments.steps, 1])
    found = json.loads(turn.out.splitlines()[-1])
    return {"tokens_per_second": [RANKS * CONTEXT / seconds for seconds in found["seconds"][1:]], "loss": found["losses"][0],
            "peak_bytes": turn.peak_bytes}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "release")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    contestants = {"fusedbun train": ours, "DDP + fused AdamW": peers}
    rows = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory(prefix="fusedbun-bench-") as name:
        folder = Path(name)
        subprocess.run([PYTHON, "-c", MAKE, folder / "model", folder / "tokens.bin", str(CONTEXT * RANKS * arguments.steps * 4)], check=True,
                       stderr=subprocess.DEVNULL)
        for number in range(arguments.rounds):
            for contestant, take_turn in contestants.items():
                rows[contestant].append(take_turn(arguments, folder, number))
                print(contestant, {key: rows[contestant][-1][key] for key in ("tokens_per_second", "loss", "peak_bytes")}, file=sys.stderr)
    if arguments.json:
        print(json.dumps({"date": str(date.today()), "machine": machine(), "rows": rows}, indent=2))
        return
    speeds = {name: [speed for turn in turns for speed in turn["tokens_per_second"]] for name, turns in rows.items()}
    memory = {name: max(turn["peak_bytes"] for turn in turns) / 1e9 for name, turns in rows.items()}
    print("| 124 M, context 1024, 2 ranks | tokens/s, median (smallest to largest) | peak memory of a rank, GB |\n| --- | --- | --- |")
    for name, found in speeds.items():
        print(f"| {name} | {statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f}) | {memory[name]:.2f} |")
    (first, second) = contestants
    print(f"\nratio: {statistics.median(speeds[first]) / statistics.median(speeds[second]):.2f} of the tokens/s, "
          f"{memory[first] / memory[second]:.2f} of the memory; {date.today()}, {machine()['cores']}, {machine()['processor']}")


if __name__ == "__main__":
    main()
