#!/usr/bin/env python3
"""Kills a job inside its saves: what is left must be whole, as new as the job said, and what the next start goes on from.

    save_kills.py [--kills 200] [--seed S] [--random-only]

Three ranks over Gloo train a small model and save a checkpoint every 10 steps. Each kill is SIGKILL, to all ranks and the launcher at
once or to one rank alone, after which the rest ends by itself. Some are aimed at named points of a save (`POINTS`): strace sends the
signal when rank R enters its N-th call of that kind, or holds it there until all have been killed. The others come a random time, at
most the measured length of a save, after step-N.tmp has appeared. Only those count that hit a save, by what is on the disk.

After each kill `fusedbun checkpoint verify --all` must find every checkpoint whole; each must be, bit for bit, the checkpoint of that
step of the same run without kills; the newest must not be older than the last that the job called durable; and the same command must
go on from it, leave nothing of the broken save behind, and save again. Whenever a run comes to its end, its model must be that of the
run without kills. Without --random-only it needs strace, and the right to use it.
"""

import argparse
import collections
import contextlib
import dataclasses
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import BINARY, run, wait_until  # noqa: E402
from training import SMALL, TEXT  # noqa: E402
from watched_job import WatchedJob, checkpoint_of, model_of, published_steps  # noqa: E402

RANKS = 3
STEPS = 606
EVERY = 10
KEEP = 2
SAVES_BEFORE_A_KILL_MAX = 3
GOES_ON = r"this one goes on after step (\d+), from "
HELD = 20  # seconds that a call is held; nothing waits for its end
TRIES_AT_A_POINT_MAX = 8  # strace may come in the middle of a save, and counts from there


# ---- points of a save -----------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Point:
    rank: int
    call: str
    number: int  # of that rank's calls of this kind in one save
    place: str  # what place_of() says there


MADE, FILES, DIGESTS, MANIFEST, PUBLISHED, SURPLUS, REMOVED = (
    "step-N.tmp is being made", "files are being written", "manifest.json is being written", "manifest.json is there",
    "step-N is there, `latest` is older", "`latest` is there, an old one is to go", "an old one is being removed")
BETWEEN = "no save"
PLACES = (MADE, FILES, DIGESTS, MANIFEST, PUBLISHED, SURPLUS, REMOVED)

# A save as dist/checkpoint/FORMAT.md has it, each rank with a file in model/ and one in optimizer/.
POINTS = (
    Point(0, "mkdir", 2, MADE), Point(0, "mkdir", 4, MADE),
    Point(0, "fsync", 1, FILES), Point(1, "fsync", 1, FILES), Point(2, "fsync", 2, FILES),  # files of tensors
    Point(1, "fsync", 4, FILES), Point(0, "fsync", 5, FILES),  # their folders
    Point(0, "fsync", 6, DIGESTS), Point(0, "rename", 1, DIGESTS),
    Point(0, "fsync", 7, MANIFEST), Point(0, "rename", 2, MANIFEST),
    Point(0, "fsync", 8, PUBLISHED), Point(0, "fsync", 9, PUBLISHED), Point(0, "rename", 3, PUBLISHED),
    Point(0, "fsync", 10, SURPLUS), Point(0, "rename", 4, SURPLUS),
    Point(0, "fsync", 11, REMOVED), Point(0, "unlinkat", 1, REMOVED), Point(0, "unlinkat", 5, REMOVED), Point(0, "rmdir", 1, REMOVED))


def place_of(run_dir):
    """Where in a save the disk is."""
    root = run_dir / "checkpoints"
    names = os.listdir(root) if root.exists() else []
    if any(name.endswith(".removed") for name in names):
        return REMOVED
    for name in names:
        if re.fullmatch(r"step-\d+\.tmp", name):
            with contextlib.suppress(FileNotFoundError):  # it is being renamed while we look
                inside = os.listdir(root / name)
                if "manifest.json" in inside:
                    return MANIFEST
                if any(each.startswith("manifest.json.") for each in inside):
                    return DIGESTS
                if any(file.is_file() for file in (root / name).rglob("*")):
                    return FILES
                return MADE
            return MANIFEST
    steps = published_steps(run_dir)
    if steps and (not (root / "latest").exists() or (root / "latest").read_text().strip() != f"step-{steps[0]}"):
        return PUBLISHED
    return SURPLUS if len(steps) > KEEP else BETWEEN


# ---- the job --------------------------------------------------------------------------------------------------------

def words(folder, run_dir, every=EVERY, keep=KEEP):
    flags = dict(zip(SMALL[::2], SMALL[1::2])) | {"--batch": RANKS, "--steps": STEPS, "--checkpoint-every": every, "--keep": keep}
    return [BINARY, "launch", "-n", RANKS, "--", "train", "--data", folder / "text.txt", "--run-dir", run_dir, "--no-control",
            *(word for flag in flags.items() for word in flag)]


class WholeRun:
    """The run without kills: its model, how long its saves take, and its checkpoint of any step. A save that is due while another is
    under way comes later, so killed runs have checkpoints of any step."""

    def __init__(self, folder, memory):
        self.folder, self.memory = folder, memory
        seconds, began, run_dir = [], None, folder / "whole"
        with WatchedJob(words(folder, run_dir)) as job:
            while job.lives():
                saves = place_of(run_dir) != BETWEEN
                if saves and began is None:
                    began = time.monotonic()
                elif not saves and began is not None:
                    seconds.append(time.monotonic() - began)
                    began = None
                time.sleep(0.0005)
            self.require_end(job)
        self.seconds_of_a_save = statistics.median(seconds)
        self.model = model_of(run_dir)
        # In memory a save takes about as long as a step: these have most steps, and the others begin at one of them.
        self.with_all = memory / "whole"
        with WatchedJob(words(folder, self.with_all, 1, 0)) as job:
            job.code(120)
            self.require_end(job)
        assert model_of(self.with_all) == self.model, "two runs without kills differ"
        self.checkpoints = {step: checkpoint_of(self.with_all, step) for step in published_steps(self.with_all)}

    @staticmethod
    def require_end(job):
        if job.code() != 0:
            raise SystemExit(f"the run without kills left with {job.code()}:\n{job.last_words()}")

    def checkpoint(self, step):
        if step not in self.checkpoints:
            before = max((each for each in published_steps(self.with_all) if each < step), default=0)
            run_dir = self.memory / f"whole-{step}"
            from_there = ["--resume", self.with_all / "checkpoints" / f"step-{before}"] if before else []
            with WatchedJob([*words(self.folder, run_dir, step, 0), *from_there]) as job:
                wait_until(lambda: step in published_steps(run_dir) or not job.lives(), 60, f"the run without kills at step {step}")
            self.checkpoints[step] = checkpoint_of(run_dir, step)
            shutil.rmtree(run_dir)
        return self.checkpoints[step]


class KilledRun:
    """A run folder, and one job after the other in it."""

    def __init__(self, folder, number, whole):
        self.folder, self.run_dir, self.whole = folder, folder / f"killed-{number}", whole
        self.durable = 0  # what any job of this run has called durable
        self.is_over = False  # before it was killed
        self.start()

    def start(self):
        steps = published_steps(self.run_dir)
        self.began_at = steps[0] if steps else 0
        self.job = WatchedJob(words(self.folder, self.run_dir))

    def wait_for_save(self, number):
        """Until the save after `number` others begins. False if the run ends before."""
        root = self.run_dir / "checkpoints"
        least = self.began_at + 1 + EVERY * number
        end = time.monotonic() + 60
        while self.job.lives():
            for name in os.listdir(root) if root.exists() else ():
                if (found := re.fullmatch(r"step-(\d+)\.tmp", name)) and int(found[1]) >= least:
                    return True
            if time.monotonic() > end:
                raise AssertionError(f"no save within 60 s:\n{self.job.last_words()}")
            time.sleep(0.0005)
        return False

    def kill(self, ranks=None):
        """Those ranks, or everything. Returns where in a save it was."""
        before = place_of(self.run_dir)
        if ranks is None:
            self.job.kill_all()
        else:
            there = self.job.ranks()
            for rank in ranks:
                with contextlib.suppress(KeyError, ProcessLookupError):
                    os.kill(there[rank], signal.SIGKILL)
        self.job.code()
        return before if ranks is not None else place_of(self.run_dir)

    def kill_at(self, point, alone):
        """When `point` comes next, that rank alone or everything. Returns where in a save it was; None if the run ended before."""
        pid = self.job.ranks().get(point.rank)
        if pid is None:
            return None
        what = "signal=SIGKILL" if alone else f"delay_enter={HELD}s"
        strace = subprocess.Popen(["strace", "-f", "-p", str(pid), "-o", os.devnull, "-e", f"trace={point.call}",
                                   "-e", f"inject={point.call}:{what}:when={point.number}"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            if alone:
                said = strace.communicate(timeout=60)[1]
                if "not permitted" in said:
                    raise SystemExit(f"strace cannot be used here: {said}")
                self.job.code()
            elif wait_until(lambda: self.is_held() or not self.job.lives(), 60, f"{point}") and self.job.lives():
                self.job.kill_all()
                self.job.code()
        finally:
            strace.kill()
            strace.communicate()
        return place_of(self.run_dir) if self.job.code() != 0 else None

    def is_held(self):
        """Whether the disk stays at one place of a save."""
        place = place_of(self.run_dir)
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            if place == BETWEEN or place_of(self.run_dir) != place:
                return False
            time.sleep(0.005)
        return True

    def problems_after_kill(self):
        self.durable = max(self.durable, self.job.durable)
        steps = published_steps(self.run_dir)
        problems = []
        if steps:
            verified = run("checkpoint", "verify", "--all", "--run-dir", self.run_dir)
            if verified.code != 0 or verified.out.count(": whole") != len(steps):
                problems.append(f"not all of {steps} are whole: {verified}")
        for step in steps:
            try:
                if checkpoint_of(self.run_dir, step) != self.whole.checkpoint(step):
                    problems.append(f"the checkpoint of step {step} is not that of the run without kills")
            except (OSError, ValueError, KeyError) as error:
                problems.append(f"the checkpoint of step {step} cannot be read: {error}")
        if (steps or [0])[0] < self.durable:
            problems.append(f"step {self.durable} was said to be durable, and the newest is {steps}")
        return problems

    def problems_of_next_start(self):
        """Starts the next job, and waits for its first save."""
        left = self.leftovers()
        self.start()
        wait_until(lambda: self.job.said("run folder: ") or not self.job.lives(), 60, "the start")
        goes_on = self.wait_for_save(0)
        if not goes_on and self.job.code() != 0:
            return [f"it did not go on:\n{self.job.last_words()}"]
        if self.job.said(r"is SUCCEEDED after \d+ steps, and nothing is left to do"):
            self.is_over = True  # all was done except for this save, which was held
            return []
        problems = []
        begun = [int(found[1]) for found in self.job.said(GOES_ON)]
        if begun != ([self.began_at] if self.began_at else []):
            problems.append(f"it went on after {begun}, and the newest was {self.began_at}:\n{self.job.last_words()}")
        if stays := left & self.leftovers():
            problems.append(f"the broken save has left {stays}")
        return problems

    def leftovers(self):
        """What is in the folder but no checkpoint, and whether it is that one or another of the same name."""
        root, found = self.run_dir / "checkpoints", set()
        for path in root.iterdir() if root.exists() else ():
            with contextlib.suppress(FileNotFoundError):
                if path.name.endswith((".tmp", ".removed", ".replaced")):
                    found.add((path.name, path.stat().st_ino, path.stat().st_ctime_ns))
        return found

    def problems_at_its_end(self):
        if self.job.code() != 0:
            return [f"it left with {self.job.code()}:\n{self.job.last_words()}"]
        problems = [] if model_of(self.run_dir) == self.whole.model else ["its model is not that of the run without kills"]
        if not self.is_over and (left := self.leftovers()):
            problems.append(f"left at its end: {left}")
        return problems + self.problems_after_kill()


# ---- the proof ------------------------------------------------------------------------------------------------------

class Tally:
    def __init__(self):
        self.hit, self.at_point, self.how = collections.Counter(), collections.Counter(), collections.Counter()
        self.missed = self.wrong = self.ended = 0
        self.never_hit = []

    def kills(self):
        return sum(self.hit.values())

    def text(self):
        places = ", ".join(f"{place}: {self.hit[place]}" for place in PLACES)
        return (f"{self.kills()} kills inside saves ({', '.join(f'{how} {count}' for how, count in sorted(self.how.items()))}), "
                f"{sum(self.at_point.values())} of them at {len(self.at_point)} of {2 * len(POINTS)} named points, and {self.missed} "
                f"between saves; {self.ended} runs came to their end; {self.wrong} wrong\n  {places}")


def prove(kills, seed, aims):
    dice = random.Random(seed)
    tally = Tally()
    # Each point, for one rank alone and for all; then whatever comes.
    wanted = [(point, alone) for point in POINTS for alone in (True, False)] if aims else []
    dice.shuffle(wanted)
    tries = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="test-of-fusedbun-", dir=os.environ.get("TMPDIR", "/var/tmp")) as name, \
            tempfile.TemporaryDirectory(prefix="test-of-fusedbun-", dir="/dev/shm") as memory, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "text.txt").write_text(TEXT)
        whole = WholeRun(folder, Path(memory))
        print(f"a save takes {1000 * whole.seconds_of_a_save:.1f} ms; of the run without kills {len(whole.checkpoints)} of {STEPS} "
              f"checkpoints are known from the start", flush=True)
        killed, began = KilledRun(folder, 0, whole), time.monotonic()
        stack.callback(lambda: killed.job.kill_all())
        while tally.kills() < kills:
            saves = dice.randrange(SAVES_BEFORE_A_KILL_MAX + 1)
            aimed = wanted[-1] if wanted and dice.random() < 0.5 else None
            alone = aimed[1] if aimed else dice.random() < 0.5
            delay = dice.uniform(0, 1.5 * whole.seconds_of_a_save)
            victim = dice.randrange(RANKS)
            place = None
            if killed.wait_for_save(saves):
                if aimed:
                    with contextlib.suppress(AssertionError):
                        wait_until(lambda: place_of(killed.run_dir) == BETWEEN, 1, "the end of that save")
                    place = killed.kill_at(aimed[0], alone)
                else:
                    time.sleep(delay)
                    place = killed.kill([victim] if alone else None)
            if killed.job.code() == 0:  # it came to its end before
                tally.ended += 1
                problems = killed.problems_at_its_end()
                shutil.rmtree(killed.run_dir)
                killed = KilledRun(folder, tally.ended, whole)
            else:
                where = f"kill {tally.kills()}, {'one rank' if alone else 'all'}, {aimed[0] if aimed else f'{delay:.4f} s'}, {place}"
                if aimed:
                    tries[aimed] += 1
                    if place == aimed[0].place:
                        tally.at_point[aimed] += 1
                    else:
                        print(f"{where}: not where it was aimed", flush=True)
                    if place == aimed[0].place or tries[aimed] == TRIES_AT_A_POINT_MAX:
                        wanted.pop()
                if place == BETWEEN:
                    tally.missed += 1
                else:
                    tally.hit[place] += 1
                    tally.how["one rank" if alone else "all"] += 1
                problems = killed.problems_after_kill() + killed.problems_of_next_start()
                if tally.kills() % 25 == 0:
                    print(f"{tally.kills()} kills, {time.monotonic() - began:.0f} s", flush=True)
                if problems:
                    print(where, flush=True)
            if problems:
                tally.wrong += 1
                print("; ".join(problems), flush=True)
                break  # what follows would follow from it
    tally.never_hit = [each for each in tries if not tally.at_point[each] and each not in wanted]
    for point, alone in tally.never_hit:
        print(f"not hit in {TRIES_AT_A_POINT_MAX} tries: {point}, {'alone' if alone else 'all'}")
    return tally


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="inside saves; from 80 on all named points are among them")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--random-only", action="store_true", help="no kills at named points")
    chosen = parser.parse_args()
    print(f"{chosen.kills} kills from --seed {chosen.seed}", flush=True)
    tally = prove(chosen.kills, chosen.seed, not chosen.random_only)
    print(tally.text())
    return 1 if tally.wrong or tally.never_hit or tally.kills() < chosen.kills else 0


if __name__ == "__main__":
    sys.exit(main())
