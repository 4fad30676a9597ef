#!/usr/bin/env python3
"""What `fusedbun watch` costs the steps of a job that has taken many changes.

    tests/bench/watch_cost.py [--changes 10000] [--turns 10] [--seconds 6] [--build build/release] [--json]

Trains a small GPT with steps of about 20 ms on one rank, sends it changes of eps until it has taken --changes, and then lets it
run for --seconds with and without somebody watching on a terminal, in turns. The ratio is the median over the pairs of the
median step with / without.
"""

import json
import os
import pty
import statistics
import subprocess
import threading
import time

from live_training import LiveTraining, build_storm, options


class Watching:
    """A context: `fusedbun watch` on a terminal of its own, of which all is read."""

    def __init__(self, training):
        # A person who watches does so from another machine; here he gets what the rank leaves.
        self._words = ["nice", "-n", "19", training.binary, "watch", "--run-dir", training.run_dir]

    def __enter__(self):
        ours, theirs = pty.openpty()
        self._process = subprocess.Popen(self._words, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
        os.close(theirs)
        self.bytes = 0

        def read():
            try:
                while part := os.read(ours, 1 << 16):
                    self.bytes += len(part)
            except OSError:  # the terminal is gone
                pass
            os.close(ours)

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(timeout=10)
        self._reader.join(timeout=10)


def take_changes(training, storm, count):
    taken = 0
    while taken < count:
        said = subprocess.run([storm, "5", "100000", "4", training.run_dir], check=True, capture_output=True, text=True)
        taken += json.loads(said.stdout)["accepted"]
    return taken


def main():
    arguments = options(__doc__)
    arguments.add_argument("--changes", type=int, default=10_000)
    arguments.add_argument("--turns", type=int, default=10)
    arguments.add_argument("--seconds", type=float, default=6)
    given = arguments.parse_args()
    storm = build_storm(given.build)
    with LiveTraining(given.build, 1, "--width", 256) as training:
        changes = take_changes(training, storm, given.changes)

        def median_step():
            begin = len(training.steps())
            time.sleep(given.seconds)
            return statistics.median(training.milliseconds(training.steps()[begin:]))

        ratios, without = [], []
        for turn in range(given.turns):
            def watched():
                with Watching(training) as watching:
                    time.sleep(1)  # the first frame fetches everything
                    median = median_step()
                if watching.bytes == 0:
                    raise SystemExit("watch showed nothing")
                return median
            if turn % 2 == 0:
                alone, seen = median_step(), watched()
            else:
                seen, alone = watched(), median_step()
            ratios.append(seen / alone)
            without.append(alone)
        training.drain()
    result = {"changes": changes, "turns": given.turns, "step_ms": statistics.median(without), "ratio": statistics.median(ratios),
              "ratio_low": min(ratios), "ratio_high": max(ratios)}
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{changes} changes, steps of {result['step_ms']:.1f} ms: with somebody watching {result['ratio']:.3f}x "
              f"({result['ratio_low']:.3f} to {result['ratio_high']:.3f}, {given.turns} turns)")


if __name__ == "__main__":
    main()
