#!/usr/bin/env python3
"""What a killed rank costs: the time until training goes on, the steps that are done again, and how much of a run is left for training.

    tests/bench/recovery.py [--build BUILD] [--kills 3] [--minutes 5] [--json]

Two parts, each on two ranks under `fusedbun launch --max-restarts`. `recovery`: a GPT-2 of 128 M parameters (18 layers, width 768, byte
vocabulary) saves a checkpoint every 10 steps; now and then rank 0 and rank 1, in turns, are killed by SIGKILL. From there to the first
step's line of the next attempt in metrics.jsonl it takes, in this order: `noticed`, the launcher names the rank; `gone`, no process of
the attempt is left; `delay`, the launcher waits before it starts the ranks again, twice as long each time; `loaded`, the ranks have
started and say which step they go on after; `first step`, its line. The aim is at most 10 s without `delay`.

`goodput`: the 3 M model for some minutes with a kill each minute. Of each step the time that it took counts once, in the attempt that
did it last; goodput is their sum by the time from the first step to the last.
"""

import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from checkpoint_cost import LARGE, MODEL, spread
from live_training import ROOT, options

sys.path.insert(0, str(ROOT / "tests" / "support"))

RANKS = 2
LARGE_EVERY, SMALL_EVERY = 10, 50
PARTS = ("noticed", "gone", "delay", "loaded", "first_step")
AIM_SECONDS = 10
BETWEEN_KILLS = 60


def words(binary, run_dir, restarts, every, model):
    return [binary, "launch", "-n", RANKS, "--max-restarts", restarts, "--", "train", "--data", "/usr/share/common-licenses", "--steps",
            10_000_000, *model, "--threads", 1, "--eval-every", 0, "--validation-batches", 1, "--warmup", 2, "--keep", 2, "--no-control",
            "--checkpoint-every", every, "--run-dir", run_dir]


class Harmed:
    """A job whose ranks are killed; it is ended at the end."""

    def __init__(self, binary, run_dir, restarts, every, model):
        from watched_job import MetricsTail, WatchedJob  # they read where the binary is
        self.run_dir = run_dir
        self.job = WatchedJob(words(binary, run_dir, restarts, every, model))
        self.tail = MetricsTail(run_dir)
        self.steps = []  # (moment, line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.job.__exit__()

    def look(self):
        now = time.monotonic()
        self.steps += [(now, line) for line in self.tail.new_steps()]

    def wait_until(self, condition, seconds, what):
        """Returns when it was; steps that come meanwhile are seen."""
        end = time.monotonic() + seconds
        while not condition():
            self.look()
            if not self.job.lives() or time.monotonic() > end:
                raise SystemExit(f"recovery.py: {what} did not come:\n{self.job.last_words()}")
            time.sleep(0.002)
        return time.monotonic()

    def attempt(self):
        return self.steps[-1][1]["attempt"] if self.steps else 0

    def said_since(self, text, moment):
        return next((at for at, line in list(self.job.lines) if at >= moment and text in line), None)

    def kill(self, rank):
        """Kills it and waits until training goes on. Seconds of each part, and the steps that are done again."""
        from job_process import lives
        ranks = self.job.ranks()
        self.look()
        attempt = self.attempt()
        killed = time.monotonic()
        os.kill(ranks[rank], signal.SIGKILL)
        gone = self.wait_until(lambda: not any(lives(pid) for pid in ranks.values()), 60, "the end of the attempt")
        started = self.wait_until(lambda: len(self.job.ranks()) == RANKS and not set(ranks.values()) & set(self.job.ranks().values()), 120,
                                  "the next attempt")
        self.wait_until(lambda: self.attempt() > attempt, 300, "the first step")
        first = next((at, line) for at, line in self.steps if line["attempt"] > attempt)
        last = max(line["step"] for _, line in self.steps if line["attempt"] == attempt)
        noticed = self.said_since("was ended by SIGKILL", killed)
        loaded = self.said_since("this one goes on after step", killed)
        if noticed is None or loaded is None:
            raise SystemExit(f"recovery.py: it was not said who died, or where it goes on:\n{self.job.last_words()}")
        noticed = min(noticed, gone)  # they race
        moments = (killed, noticed, gone, started, loaded, first[0])
        return dict(zip(PARTS, (after - before for before, after in zip(moments, moments[1:])))) | {
            "rank": rank, "steps_lost": last + 1 - first[1]["step"]}


def recovery(binary, folder, kills):
    rows = []
    with Harmed(binary, folder / "large", kills, LARGE_EVERY, LARGE) as job:
        for number in range(kills):
            durable = job.job.durable
            job.wait_until(lambda: job.job.durable > durable, 600, "a checkpoint")
            step = job.steps[-1][1]["step"]
            wanted = step + random.randrange(1, LARGE_EVERY)
            job.wait_until(lambda: job.steps[-1][1]["step"] >= wanted, 600, "a step")
            rows.append(job.kill(number % RANKS))
    tokens = RANKS * LARGE[LARGE.index("--context") + 1]
    return rows, statistics.median(tokens / line["tokens_per_second"] for _, line in job.steps), job.job.said(r"model: .*")[0][0].strip()


def goodput(binary, folder, minutes):
    kills = int(minutes * 60 / BETWEEN_KILLS)
    with Harmed(binary, folder / "small", kills, SMALL_EVERY, MODEL) as job:
        job.wait_until(lambda: job.steps, 60, "the first step")
        began, rows = job.steps[0][0], []
        for number in range(kills):
            due = began + (number + 1) * BETWEEN_KILLS
            job.wait_until(lambda: time.monotonic() >= due, 2 * BETWEEN_KILLS, "the next kill")
            rows.append(job.kill(number % RANKS))
        due = began + kills * BETWEEN_KILLS + BETWEEN_KILLS
        job.wait_until(lambda: time.monotonic() >= due, 2 * BETWEEN_KILLS, "the end")
        wall = job.steps[-1][0] - began
    tokens = MODEL[MODEL.index("--batch") + 1] * MODEL[MODEL.index("--context") + 1]
    took = {line["step"]: tokens / line["tokens_per_second"] for _, line in job.steps}
    delays = sum(row["delay"] for row in rows)
    return {"kills": kills, "wall_s": wall, "steps": len(took), "steps_lost": [row["steps_lost"] for row in rows],
            "delay_s": delays, "goodput": sum(took.values()) / wall, "goodput_without_delay": sum(took.values()) / (wall - delays)}


def main():
    arguments = options(__doc__)
    arguments.add_argument("--kills", type=int, default=3)
    arguments.add_argument("--minutes", type=float, default=5, help="of the part `goodput`")
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31), help="of the steps at which it is killed")
    chosen = arguments.parse_args()
    random.seed(chosen.seed)
    binary = chosen.build / "launcher" / "fusedbun"
    os.environ["FUSEDBUN_BINARY"] = str(binary)
    result = {"date": date.today().isoformat(), "seed": chosen.seed, "load_average_at_start": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="test-of-fusedbun-", dir=os.environ.get("TMPDIR", "/var/tmp")) as name, \
            contextlib.suppress(KeyboardInterrupt):
        if chosen.kills:
            rows, step, model = recovery(binary, Path(name), chosen.kills)
            beside = [sum(row[part] for part in PARTS) - row["delay"] for row in rows]
            result["recovery"] = {"model": model, "every": LARGE_EVERY, "step_s": step, "kills": rows, "without_delay_s": beside,
                                  "aim_s": AIM_SECONDS}
        if chosen.minutes:
            result["goodput"] = goodput(binary, Path(name), chosen.minutes)
    if chosen.json:
        print(json.dumps(result))
        return
    print(f"{result['date']}, load average at the start {result['load_average_at_start']:.1f}, seed {chosen.seed}")
    if "recovery" in result:
        print(f"{model}\n2 ranks, a step takes {step:.2f} s, a checkpoint every {LARGE_EVERY} steps, {len(rows)} kills; in seconds, "
              f"median (least..most):")
        for part in PARTS:
            print(f"{part.replace('_', ' '):14} {spread([row[part] for row in rows])}")
        print(f"without delay  {spread(beside)}: the aim of {AIM_SECONDS} is {'met' if max(beside) <= AIM_SECONDS else 'MISSED'}")
        print(f"steps lost     {[row['steps_lost'] for row in rows]}")
    if "goodput" in result:
        part = result["goodput"]
        print(f"goodput        {part['goodput']:.3f} of {part['wall_s']:.0f} s, 3 M model, {part['kills']} kills, {part['steps']} steps, "
              f"lost {part['steps_lost']}; {part['goodput_without_delay']:.3f} without the {part['delay_s']:.1f} s of delay")


if __name__ == "__main__":
    main()
