#!/usr/bin/env python3
"""Ranks are killed and launchers start them again: at most a checkpoint's interval is lost, and the end is that of a run without kills.

    restarts.py [--kills 50] [--seed S]

Jobs of two and of three ranks run under `fusedbun launch --max-restarts 5` and `torchrun --max-restarts 5`, in turns. In each attempt a
rank that is drawn, rank 0 included, is killed (SIGKILL) a drawn number of steps after the attempt's first one, until the five restarts
are used up. The steps that an attempt does again may be those of one interval between checkpoints and of one save, which goes on while
they are done. At the end the parameters, and the last checkpoint with the optimizer's state, must be bit for bit those of the same run
without kills, every step must have been done, and whatever was done twice must have had the same loss, also bit for bit.
"""

import argparse
import collections
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import BINARY  # noqa: E402
from training import SMALL, TEXT, steps  # noqa: E402
from watched_job import MetricsTail, WatchedJob, checkpoint_of, model_of, published_steps  # noqa: E402

STEPS = 1000
EVERY = 50
SAVE_STEPS_MAX = 15  # done while a save is under way: it takes 10 to 60 ms, and a step 7
RESTARTS = 5
KILLED_AFTER_MAX = 150  # steps of an attempt: five of them leave some to do
LAUNCHERS = ("launch", "torchrun")
RANKS = (3, 2)


def words(launcher, ranks, folder, run_dir):
    flags = dict(zip(SMALL[::2], SMALL[1::2])) | {"--batch": ranks, "--steps": STEPS, "--checkpoint-every": EVERY, "--keep": 0}
    before = {"launch": [BINARY, "launch", "-n", ranks, "--max-restarts", RESTARTS, "--"],
              "torchrun": [os.environ["FUSEDBUN_TORCHRUN"], "--standalone", "--no-python", "--nproc-per-node", ranks,
                           "--max-restarts", RESTARTS, "--monitor-interval", "0.1", BINARY]}
    return [*before[launcher], "train", "--data", folder / "text.txt", "--run-dir", run_dir, "--no-control",
            *(word for flag in flags.items() for word in flag)]


class Whole:
    """The run without kills."""

    def __init__(self, ranks, folder):
        self.run_dir = folder / f"whole-{ranks}"
        with WatchedJob(words("launch", ranks, folder, self.run_dir)) as job:
            if job.code(300) != 0:
                raise SystemExit(f"the run without kills left with {job.code()}:\n{job.last_words()}")
        self.model = model_of(self.run_dir)
        self.losses = {line["step"]: line["loss"] for line in steps(self.run_dir)}


def wait_for_step(tail, attempt, count, job):
    """Until that attempt has done `count` steps. The newest step, or None if the job ended."""
    done, end = 0, time.monotonic() + 120
    while job.lives() and time.monotonic() < end:
        for line in tail.new_steps():
            if line["attempt"] >= attempt:
                done += 1
                if done >= count:
                    return line["step"]
        time.sleep(0.005)
    return None


def run_job(launcher, ranks, kills, folder, run_dir, dice):
    """Kills `kills` times. Returns (ranks that were killed, exit code, last words)."""
    killed, tail = [], MetricsTail(run_dir)
    with WatchedJob(words(launcher, ranks, folder, run_dir)) as job:
        for attempt in range(1, kills + 1):
            if wait_for_step(tail, attempt, dice.randint(1, KILLED_AFTER_MAX), job) is None:
                break
            victim = dice.randrange(ranks)
            with contextlib.suppress(KeyError, ProcessLookupError):
                os.kill(job.ranks()[victim], signal.SIGKILL)
                killed.append(victim)
        return killed, job.code(300), job.last_words()


def problems_of(run_dir, whole, kills):
    """What is not as promised; and how many steps each kill cost."""
    problems, of_attempt = [], collections.defaultdict(list)
    for line in steps(run_dir):
        of_attempt[line["attempt"]].append(line["step"])
        if line["loss"] != whole.losses[line["step"]]:
            problems.append(f"attempt {line['attempt']} has another loss in step {line['step']}")
    attempts = [of_attempt[number] for number in sorted(of_attempt)]
    if len(attempts) != kills + 1:
        problems.append(f"{len(attempts)} attempts have done steps")
    if {step for attempt in attempts for step in attempt} != set(range(STEPS)):
        problems.append("not every step was done")
    lost = [before[-1] + 1 - after[0] for before, after in zip(attempts, attempts[1:])]
    if [steps_lost for steps_lost in lost if not 0 <= steps_lost <= EVERY + SAVE_STEPS_MAX]:
        problems.append(f"kills have cost {lost} steps")
    if model_of(run_dir) != whole.model:
        problems.append("its parameters are not those of the run without kills")
    last = published_steps(run_dir)[0]
    if last != published_steps(whole.run_dir)[0] or checkpoint_of(run_dir, last) != checkpoint_of(whole.run_dir, last):
        problems.append(f"its last checkpoint, of step {last}, is not that of the run without kills")
    return problems[:5], lost


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    chosen = parser.parse_args()
    print(f"{chosen.kills} kills from --seed {chosen.seed}", flush=True)
    dice, done, wrong, all_lost, of_rank = random.Random(chosen.seed), 0, 0, [], collections.Counter()
    with tempfile.TemporaryDirectory(prefix="test-of-fusedbun-", dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        folder, wholes, job = Path(name), {}, 0
        (folder / "text.txt").write_text(TEXT)
        while done < chosen.kills and not wrong:
            launcher, ranks = LAUNCHERS[job % 2], RANKS[job // 2 % 2]
            if ranks not in wholes:
                wholes[ranks] = Whole(ranks, folder)
            run_dir = folder / f"killed-{job}"
            began = time.monotonic()
            killed, code, last_words = run_job(launcher, ranks, min(RESTARTS, chosen.kills - done), folder, run_dir, dice)
            if code == 0 and killed:
                problems, lost = problems_of(run_dir, wholes[ranks], len(killed))
            else:
                problems, lost = [f"it left with {code} after {len(killed)} kills:\n{last_words}"], []
            print(f"job {job}: {launcher}, {ranks} ranks, killed {killed}, steps lost {lost}, {time.monotonic() - began:.0f} s: "
                  + ("; ".join(problems) or "as the run without kills"), flush=True)
            done, job, wrong = done + len(killed), job + 1, wrong + bool(problems)
            all_lost += lost
            of_rank.update(killed)
    over = sum(steps_lost > EVERY for steps_lost in all_lost)
    print(f"{done} kills of rank {dict(sorted(of_rank.items()))}, {wrong} jobs wrong; steps lost: at most {max(all_lost, default=0)}, "
          f"{over} times more than the interval of {EVERY}, as a save was under way")
    return 1 if wrong or done < chosen.kills else 0


if __name__ == "__main__":
    sys.exit(main())
