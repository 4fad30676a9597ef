#!/usr/bin/env python3
"""A storm of changes on a training job of several ranks (K1): what clients wait, what steps feel, and that nothing is lost.

    tests/bench/change_storm.py [--ranks 4] [--seconds 60] [--rate 1000] [--clients 8] [--build build/test] [--json]

Trains a small GPT with `fusedbun launch`, lets it run for a while, sends changes of eps, lets it run again, and drains it. Steps
before and after are compared with those during the storm. Leaves with 1 if a change was lost, ranks differed or a step was
skipped. Ranks compare a hash of every change in every step, and exit with 79 where it differs.
"""

import json
import os
import subprocess
import sys
import time

from live_training import LiveTraining, build_storm, options


def main():
    arguments = options(__doc__)
    arguments.add_argument("--ranks", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=60)
    arguments.add_argument("--rate", type=float, default=1000)
    arguments.add_argument("--clients", type=int, default=8)
    given = arguments.parse_args()
    storm = build_storm(given.build)
    with LiveTraining(given.build, given.ranks, "--width", 64) as training:
        begin = len(training.steps())
        time.sleep(given.seconds / 6)
        before = len(training.steps())
        # Clients live on other machines; here they get what the ranks leave.
        result = json.loads(subprocess.run(
            ["nice", "-n", "19", storm, str(given.seconds), str(given.rate), str(given.clients), training.run_dir],
            check=True, capture_output=True, text=True).stdout)
        after = len(training.steps())
        time.sleep(given.seconds / 6)
        end = len(training.steps())
        ranks = json.loads(subprocess.run([training.binary, "ranks", "--run-dir", training.run_dir, "--output", "json"], check=True,
                                          capture_output=True, text=True).stdout)["ranks"]
        errors = training.drain()
        steps = training.steps()
        code = training.job.returncode
        quiet, busy = training.quartiles(steps[begin:before] + steps[after:end]), training.quartiles(steps[before:after])
    result |= {
        "ranks": given.ranks, "clients": given.clients, "asked_per_second": given.rate,
        "accepted_per_second": result["accepted"] / result["seconds"],
        "step_ms_quiet": quiet, "step_ms_storm": busy,
        "steps_in_order": [step["step"] for step in steps] == list(range(len(steps))),
        "ranks_listed": len(ranks), "exit_code": code}
    result["step_ratio"] = result["step_ms_storm"]["median"] / result["step_ms_quiet"]["median"]
    whole = result["log_agrees"] and result["steps_in_order"] and result["refused"] == 0 and result["exit_code"] == 75
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        wait = result["wait_ms"]
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
