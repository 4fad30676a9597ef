#!/usr/bin/env python3
"""A long run of tiny steps that saves all the time and is killed again and again: no rank's memory, descriptors or threads grow.

    soak.py [--steps 200000] [--minutes 60] [--ranks 3] [--kill-every 150] [--seed S]

The smallest GPT-2 trains `--steps` steps, twice: once without kills, once with a kill every so many seconds, in turns of one rank that is
drawn (the launcher starts all again) and of everything (the test does). Both must fit in `--minutes`: before, 2,000 steps show how many
that is, and it says so if they are fewer. A checkpoint is saved every 100 steps.

Of each rank, every two seconds from the 30th on (a sixth of short attempts; allocators and caches have filled up by then): the resident
set (VmRSS) may grow by less than 1 % from the first of them to the last, by a line fitted to all of them (Theil and Sen); descriptors and
threads must be as many in the last as in the first. A save opens files and has a thread for 10 to 60 ms, so of these the least of ten
readings within a second counts. At the end the parameters and the last checkpoint must be bit for bit those of the run without kills.
"""

import argparse
import contextlib
import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import BINARY, wait_until  # noqa: E402
from training import TEXT  # noqa: E402
from watched_job import MetricsTail, WatchedJob, checkpoint_of, model_of, published_steps  # noqa: E402

TINY = ("--layers 1 --heads 1 --width 8 --context 8 --warmup 2 --eval-every 0 --validation-batches 1 --threads 1 --no-control "
        "--keep 2").split()
EVERY = 100
CALIBRATION_STEPS = 2000
SHARE_OF_TIME = 0.85  # for steps; the rest is for starts, and for a machine that becomes slower
WARM_UP, BETWEEN, READINGS = 30, 2, 10
AT_THE_END = 2  # readings that may be of a process that is ending
SAMPLES_MIN = 10  # after the warm-up, to say anything of an attempt
GROWTH_MAX = 0.01
RESTARTS = 3  # of a launcher: the delay before each is twice the one before


def words(ranks, steps, folder, run_dir, every=EVERY):
    return [BINARY, "launch", "-n", ranks, "--max-restarts", RESTARTS, "--", "train", "--data", folder / "text.txt", "--run-dir", run_dir,
            *TINY, "--batch", ranks, "--steps", steps, "--checkpoint-every", every]


# ---- what a process holds -------------------------------------------------------------------------------------------

def resident_kib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise OSError("it is ending")


def held_by(pid):
    """(resident KiB, descriptors, threads), the latter two between saves."""
    descriptors, threads = [], []
    for _ in range(READINGS):
        descriptors.append(len(os.listdir(f"/proc/{pid}/fd")))
        threads.append(len(os.listdir(f"/proc/{pid}/task")))
        time.sleep(1 / READINGS / 3)  # three ranks within a second
    return resident_kib(pid), min(descriptors), min(threads)


def growth(samples):
    """By how much of its first value the fitted line grows from the first to the last of [(moment, value)]."""
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(samples, 2) if b[0] > a[0]]
    slope = statistics.median(slopes)
    return slope * (samples[-1][0] - samples[0][0]) / samples[0][1]


class Attempt:
    """What the ranks of one attempt hold over time."""

    def __init__(self, pids):
        self.pids = pids
        self.began = time.monotonic()
        self.samples = {rank: [] for rank in pids}

    def look(self):
        with contextlib.suppress(OSError):  # it ends
            for rank, pid in self.pids.items():
                self.samples[rank].append((time.monotonic() - self.began, *held_by(pid)))

    def verdict(self):
        """([problem], {rank: growth}); nothing where it was too short to tell."""
        problems, grown = [], {}
        for rank, samples in self.samples.items():
            samples = samples[:-AT_THE_END]
            warm_up = min(WARM_UP, samples[-1][0] / 6) if samples else 0
            samples = [sample for sample in samples if sample[0] >= warm_up]
            if len(samples) < SAMPLES_MIN:
                continue
            grown[rank] = growth([(moment, resident) for moment, resident, _, _ in samples])
            seconds = samples[-1][0] - samples[0][0]
            if grown[rank] >= GROWTH_MAX:
                problems.append(f"rank {rank} has grown by {100 * grown[rank]:.2f} % in {seconds:.0f} s: "
                                f"{samples[0][1]} to {samples[-1][1]} KiB")
            for what, index in (("descriptors", 2), ("threads", 3)):
                if samples[0][index] != samples[-1][index]:
                    problems.append(f"rank {rank} has {samples[-1][index]} {what} after {seconds:.0f} s, and had {samples[0][index]}")
        return problems, grown


# ---- the run --------------------------------------------------------------------------------------------------------

class Soak:
    def __init__(self, chosen, folder):
        self.chosen, self.folder, self.dice = chosen, folder, random.Random(chosen.seed)
        self.problems, self.grown, self.kills, self.attempts = [], [], [], 0

    def steps_that_fit(self):
        began = time.monotonic()
        self.unkilled(CALIBRATION_STEPS, self.folder / "calibration")
        rate = CALIBRATION_STEPS / (time.monotonic() - began)
        fit = int(rate * 60 * self.chosen.minutes * SHARE_OF_TIME / 2)
        print(f"{rate:.0f} steps/s with {self.chosen.ranks} ranks: {min(fit, self.chosen.steps)} steps, twice, in "
              f"{self.chosen.minutes:g} minutes" + (f", instead of {self.chosen.steps}" if fit < self.chosen.steps else ""), flush=True)
        return min(fit, self.chosen.steps)

    def unkilled(self, steps, run_dir):
        with WatchedJob(words(self.chosen.ranks, steps, self.folder, run_dir)) as job:
            attempt = None
            while job.lives():
                attempt = self.look(job, attempt)
            self.judge(attempt)
            if job.code() != 0:
                raise SystemExit(f"the run without kills left with {job.code()}:\n{job.last_words()}")

    def look(self, job, attempt):
        """One reading of what the ranks hold; a new attempt where they are others."""
        ranks = job.ranks()
        if len(ranks) == self.chosen.ranks and (attempt is None or ranks != attempt.pids):
            self.judge(attempt)
            attempt = Attempt(ranks)
        if attempt is not None:
            attempt.look()
        if job.lives():
            time.sleep(BETWEEN)
        return attempt

    def judge(self, attempt):
        if attempt is None:
            return
        problems, grown = attempt.verdict()
        self.attempts += bool(grown)
        self.grown += grown.values()
        self.problems += problems
        for problem in problems:
            print(problem, flush=True)

    def killed(self, steps, run_dir):
        everything = False
        while True:
            with WatchedJob(words(self.chosen.ranks, steps, self.folder, run_dir)) as job:
                attempt, killed_all, kills = None, False, 0
                tail = MetricsTail(run_dir, from_now=True)
                due = None
                while job.lives() and not killed_all:
                    attempt = self.look(job, attempt)
                    if due is None and tail.new_steps():
                        due = time.monotonic() + self.chosen.kill_every
                    if due is not None and time.monotonic() >= due and attempt is not None and job.ranks() == attempt.pids:
                        victim = None if everything or kills == RESTARTS else self.dice.randrange(self.chosen.ranks)
                        if victim is None:
                            job.kill_all()
                            killed_all = True
                        else:
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(attempt.pids[victim], signal.SIGKILL)
                            wait_until(lambda: job.ranks() != attempt.pids, 60, "the rank to be gone")
                        self.kills.append("all" if victim is None else victim)
                        kills, everything, due = kills + 1, not everything, None
                        tail.new()
                self.judge(attempt)
                if killed_all:
                    continue
                if job.code() != 0:
                    self.problems.append(f"it left with {job.code()}:\n{job.last_words()}")
                return

    def run(self):
        steps = self.steps_that_fit()
        whole, killed = self.folder / "whole", self.folder / "killed"
        began = time.monotonic()
        self.unkilled(steps, whole)
        between = time.monotonic()
        self.killed(steps, killed)
        print(f"{steps} steps in {between - began:.0f} s without kills, and in {time.monotonic() - between:.0f} s with "
              f"{len(self.kills)}: {self.kills}", flush=True)
        if not self.kills:
            self.problems.append("it was never killed: --kill-every is too long")
        if not self.problems:
            last = published_steps(whole)[0]
            if model_of(killed) != model_of(whole):
                self.problems.append("the parameters are not those of the run without kills")
            if published_steps(killed)[0] != last or checkpoint_of(killed, last) != checkpoint_of(whole, last):
                self.problems.append("the last checkpoint is not that of the run without kills")
        return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--kill-every", type=float, default=150, metavar="SECONDS", help="after an attempt's first steps")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    chosen = parser.parse_args()
    print(f"--seed {chosen.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="test-of-fusedbun-", dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        folder = Path(name)
        (folder / "text.txt").write_text(TEXT)
        soak = Soak(chosen, folder)
        steps = soak.run()
    for problem in soak.problems:
        print(f"WRONG: {problem}")
    largest = f"{100 * max(soak.grown):.2f} %" if soak.grown else "not measured"
    print(f"{steps} steps, {len(soak.kills)} kills, {soak.attempts} attempts measured: resident sets grew by at most {largest}; "
          f"{len(soak.problems)} problems")
    return 1 if soak.problems or not soak.grown else 0


if __name__ == "__main__":
    sys.exit(main())
