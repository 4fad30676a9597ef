#!/usr/bin/env python3
"""A storm of changes on a training job of several ranks (K1): what clients wait, what steps feel, and that nothing is lost.

    tests/bench/change_storm.py [--ranks 4] [--seconds 60] [--rate 1000] [--clients 8] [--build build/test] [--json]

Trains a small GPT with `fusedbun launch`, lets it run for a while, sends changes of eps, lets it run again, and drains it. Steps
before and after are compared with those during the storm. Leaves with 1 if a change was lost, ranks differed or a step was
skipped. Ranks compare a hash of every change in every step, and leave with 79 where it differs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = 64


def quartiles(steps, tokens):
    """Of the milliseconds that steps of `tokens` tokens took."""
    low, middle, high = statistics.quantiles([1000 * tokens / step["tokens_per_second"] for step in steps], n=4)
    return {"low": low, "median": middle, "high": high}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--ranks", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=60)
    arguments.add_argument("--rate", type=float, default=1000)
    arguments.add_argument("--clients", type=int, default=8)
    arguments.add_argument("--build", type=Path, default=ROOT / "build" / "test")
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    subprocess.run(["cmake", "--build", given.build, "--target", "change_storm", "fusedbun"], check=True,
                   stdout=subprocess.DEVNULL)
    tokens = 2 * given.ranks * CONTEXT
    binary, storm = given.build / "launcher" / "fusedbun", given.build / "tests" / "bench" / "change_storm"
    os.environ["FUSEDBUN_BINARY"] = str(binary)  # job_process.py reads it when it is imported
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from job_process import wait_until
    from training import TEXT, steps as steps_in
    with tempfile.TemporaryDirectory(prefix="fusedbun-storm-") as folder:
        text, run_dir = Path(folder) / "text.txt", Path(folder) / "run"
        text.write_text(TEXT)
        words = [binary, "launch", "-n", given.ranks, "--", "train", "--data", text, "--run-dir", run_dir, "--steps", 10_000_000,
                 "--layers", 2, "--heads", 2, "--width", 64, "--context", CONTEXT, "--batch", 2 * given.ranks, "--warmup", 2,
                 "--eval-every", 0, "--validation-batches", 1, "--threads", 1, "--control-rate", 0]
        job = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: len(steps_in(run_dir)) >= 20, 60, "the first steps")
            begin = len(steps_in(run_dir))
            time.sleep(given.seconds / 6)
            before = len(steps_in(run_dir))
            # Clients live on other machines; here they get what the ranks leave.
            result = json.loads(subprocess.run(["nice", "-n", "19", storm, str(given.seconds), str(given.rate), str(given.clients), run_dir],
                                               check=True, capture_output=True, text=True).stdout)
            after = len(steps_in(run_dir))
            time.sleep(given.seconds / 6)
            end = len(steps_in(run_dir))
            ranks = json.loads(subprocess.run([binary, "ranks", "--run-dir", run_dir, "--output", "json"], check=True,
                                              capture_output=True, text=True).stdout)["ranks"]
            subprocess.run([binary, "drain", "--run-dir", run_dir, "--wait"], check=True, capture_output=True)
            errors = job.communicate(timeout=60)[1]
        finally:
            job.kill()
        steps = steps_in(run_dir)
    result |= {
        "ranks": given.ranks, "clients": given.clients, "asked_per_second": given.rate,
        "accepted_per_second": result["accepted"] / result["seconds"],
        "step_ms_quiet": quartiles(steps[begin:before] + steps[after:end], tokens), "step_ms_storm": quartiles(steps[before:after], tokens),
        "steps_in_order": [step["step"] for step in steps] == list(range(len(steps))),
        "ranks_listed": len(ranks), "exit_code": job.returncode}
    result["step_ratio"] = result["step_ms_storm"]["median"] / result["step_ms_quiet"]["median"]
    whole = result["log_agrees"] and result["steps_in_order"] and result["refused"] == 0 and result["exit_code"] == 75
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        wait, quiet, busy = result["wait_ms"], result["step_ms_quiet"], result["step_ms_storm"]
        print(f"{given.ranks} ranks on {os.cpu_count()} cores, {given.clients} clients, {result['seconds']:.0f} s: "
              f"{result['accepted_per_second']:.0f} changes/s, {result['conflicts']} conflicts, {result['refused']} refused\n"
              f"wait p50 {wait['p50']:.1f}, p99 {wait['p99']:.1f}, max {wait['max']:.1f} ms\n"
              f"step {quiet['median']:.1f} ms ({quiet['low']:.1f} to {quiet['high']:.1f}) without, {busy['median']:.1f} "
              f"({busy['low']:.1f} to {busy['high']:.1f}) with: {result['step_ratio']:.2f}x\n"
              f"{'nothing lost, all ranks agree in every step' if whole else 'FAILED'}")
    if not whole:
        sys.exit(f"change_storm: something was lost\n{errors}")


if __name__ == "__main__":
    main()
