#!/usr/bin/env python3
"""What saving checkpoints costs a run: the same training with and without them, in turns.

    tests/bench/checkpoint_cost.py [--build BUILD] [--part cost|disk] [--rounds 3] [--steps 500] [--every 50] [--json]

`cost`: two ranks train the 3 M model. `total` is the time from the first to the last line of metrics.jsonl, `cpu` that of all processes and
threads, the writers' included; ratios are medians over the rounds with the smallest and the largest. `longest gap` is the longest time
between two steps' ends beyond the median, over all rounds: what a person would see as a pause.

`disk`: two ranks train a GPT-2 of 128 M parameters with preset compact and are asked to leave after their first step. What they say of
the checkpoint that they save then, its bytes and the seconds until it is durable, is compared with `dd conv=fsync` of as many bytes to
the same folder, in turns.
"""

import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from datetime import date
from pathlib import Path

from live_training import options

MODEL = ["--layers", 4, "--heads", 4, "--width", 256, "--context", 128, "--batch", 4]
LARGE = ["--layers", 18, "--heads", 12, "--width", 768, "--context", 64, "--batch", 2]


def train(binary, folder, steps, *flags):
    """(seconds between the first and the last step's line, CPU seconds, seconds between lines, bytes of the newest checkpoint)."""
    run_dir = folder / "run"
    metrics = run_dir / "metrics.jsonl"
    words = [binary, "launch", "-n", 2, "--", "train", "--data", "/usr/share/common-licenses", "--steps", steps, *MODEL, "--threads", 1,
             "--eval-every", 0, "--validation-batches", 1, "--run-dir", run_dir, "--overwrite", *flags]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    job = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    arrivals, size = [], 0
    while job.poll() is None:
        now = metrics.stat().st_size if metrics.exists() else 0
        if now != size:
            arrivals.append(time.monotonic())
            size = now
        time.sleep(0.001)
    if job.returncode != 0:
        raise SystemExit(f"checkpoint_cost.py: the training left with {job.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    arrivals = arrivals[1:-1]  # without the two validations
    listed = subprocess.run([binary, "checkpoint", "list", "--run-dir", run_dir, "--output", "json"], capture_output=True, text=True)
    found = json.loads(listed.stdout)["checkpoints"] if listed.returncode == 0 else []
    gaps = [b - a for a, b in zip(arrivals, arrivals[1:])]
    return arrivals[-1] - arrivals[0], cpu, gaps, found[0]["bytes"] if found else 0


def save_once(binary, folder):
    """(MB, seconds) of the one checkpoint of a run, by its own words."""
    run_dir = folder / "large"
    shutil.rmtree(run_dir, ignore_errors=True)
    words = [binary, "launch", "-n", 2, "--", "train", "--data", "/usr/share/common-licenses", "--steps", 1000, *LARGE, "--threads", 1,
             "--preset", "compact", "--eval-every", 0, "--validation-batches", 1, "--run-dir", run_dir, "--checkpoint-every", 0,
             "--no-control"]
    job = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = run_dir / "metrics.jsonl"
    while job.poll() is None and not (metrics.exists() and '"loss"' in metrics.read_text()):
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    job.wait()
    found = re.search(r"is durable: ([\d.]+) MB in ([\d.]+) s", (run_dir / "train.log").read_text())
    if not found:
        raise SystemExit(f"checkpoint_cost.py: the run in {run_dir} saved no checkpoint")
    return float(found[1]), float(found[2])


def dd_once(folder, megabytes):
    """Seconds of dd with fsync."""
    path = folder / "dd"
    start = time.monotonic()
    subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=1000000", f"count={round(megabytes)}", "conv=fsync"], check=True,
                   stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    path.unlink()
    return seconds


def measure_disk(chosen, folder):
    saves, dds = [], []
    for _ in range(chosen.rounds):
        saves.append(save_once(chosen.build / "launcher" / "fusedbun", folder))
        dds.append(dd_once(folder, saves[-1][0]))
    result = {"date": date.today().isoformat(), "megabytes": saves[0][0], "rounds": chosen.rounds, "save_s": [save[1] for save in saves],
              "dd_s": dds, "speed_of_dd": [dd / save[1] for save, dd in zip(saves, dds)]}
    if chosen.json:
        print(json.dumps(result))
        return
    print(f"{result['date']}, 128 M parameters, preset compact, 2 ranks, {saves[0][0]:.0f} MB, {chosen.rounds} rounds")
    print(f"save         {spread(result['save_s'])} s")
    print(f"dd           {spread(dds)} s")
    print(f"save's speed {spread(result['speed_of_dd'])} of dd's")


def spread(values):
    return f"{statistics.median(values):.3f} ({min(values):.3f}..{max(values):.3f})"


def measure_cost(chosen, folder):
    binary = chosen.build / "launcher" / "fusedbun"
    total, cpu, gaps, saved = [], [], [], 0
    for turn in range(chosen.rounds):
        runs = {}
        flags = {"with": ["--checkpoint-every", chosen.every], "without": ["--no-checkpoints"]}
        for which in ("with", "without") if turn % 2 else ("without", "with"):
            runs[which] = train(binary, folder, chosen.steps, *flags[which])
        total.append(runs["with"][0] / runs["without"][0])
        cpu.append(runs["with"][1] / runs["without"][1])
        longest = max(runs["with"][2]) - statistics.median(runs["with"][2])
        gaps.append((longest, max(runs["without"][2]) - statistics.median(runs["without"][2])))
        saved = runs["with"][3]
    result = {"date": date.today().isoformat(), "steps": chosen.steps, "every": chosen.every, "rounds": chosen.rounds, "total": total,
              "cpu": cpu, "longest_gap_s": [gap[0] for gap in gaps], "longest_gap_without_s": [gap[1] for gap in gaps], "bytes": saved}
    if chosen.json:
        print(json.dumps(result))
        return
    print(f"{result['date']}, 3 M model, 2 ranks, {chosen.steps} steps, a checkpoint of {saved / 1e6:.1f} MB every {chosen.every}, "
          f"{chosen.rounds} rounds")
    print(f"total        {spread(total)} of the run without")
    print(f"cpu          {spread(cpu)}")
    longest = [1000 * max(result[name]) for name in ("longest_gap_s", "longest_gap_without_s")]
    print(f"longest gap  {longest[0]:.0f} ms; without checkpoints {longest[1]:.0f} ms")


def main():
    arguments = options(__doc__)
    arguments.add_argument("--part", choices=("cost", "disk"), default="cost")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=500)
    arguments.add_argument("--every", type=int, default=50)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="fusedbun-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        {"cost": measure_cost, "disk": measure_disk}[chosen.part](chosen, Path(name))


if __name__ == "__main__":
    main()
