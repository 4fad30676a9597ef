#!/usr/bin/env python3
"""Cuts the power while a job saves checkpoints: of whatever the disk has then, the newest checkpoint must be whole, and not older
than the one that the job last said was durable.

    power_cut.py [--points N] [--seed S] [--filesystem ext4|xfs|btrfs] [--without files]

The job writes to a file system in a file; ext4 and btrfs commit nothing by themselves for ten minutes, XFS not for half a minute. At a random moment all its processes
are stopped and the file is copied: that is the disk as a power cut would leave it. The copy is mounted, its journal replayed, and every
checkpoint on it is verified. Now and then a rank is killed as well, and the job started again. `--without files` takes every fsync of
files away: then the test must fail, or it proves nothing. Those of folders it cannot judge: ext4 commits all names with the next fsync of
any file (checkpoint_folder_test holds their order). What it shows is what these file systems do between system calls. Needs root.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import BINARY, run, tree, wait_until  # noqa: E402
from training import SMALL, TEXT  # noqa: E402

class Filesystem(NamedTuple):
    """`live` and `copy`: how the disk of the job and what is left of it are mounted, the latter beside the former."""
    mebibytes: int
    make: str
    live: str
    copy: str


FILESYSTEMS = {"ext4": Filesystem(48, "mkfs.ext4 -q -F", "commit=600", "defaults"),
               "xfs": Filesystem(320, "mkfs.xfs -q -f", "defaults", "nouuid"),
               "btrfs": Filesystem(256, "mkfs.btrfs -q -f", "commit=600", "defaults")}
DURABLE = re.compile(r"checkpoint of step (\d+) is durable")


@contextlib.contextmanager
def mounted(image, folder, options):
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", f"loop,{options}", image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # who was killed may not have let go yet


class Job:
    """Trains into `run_dir`, and remembers which checkpoint it last said was durable."""

    def __init__(self, text, run_dir, without):
        environment = dict(os.environ)
        if without:
            environment |= {"LD_PRELOAD": os.environ["FUSEDBUN_SLOW_WORLD"], "FUSEDBUN_TEST_NO_FSYNC": without}
        words = [BINARY, "launch", "-n", "2", "--", "train", "--data", text, "--run-dir", run_dir, *SMALL, "--steps", "100000000",
                 "--checkpoint-every", "3", "--keep", "2", "--no-control"]
        self.durable = -1
        self.lines = []
        self.process = subprocess.Popen([str(word) for word in words], env=environment, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            self.lines = [*self.lines[-20:], line]
            if found := DURABLE.search(line):
                self.durable = int(found[1])

    def signal(self, number):
        for pid in tree(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_a_rank(self, choose):
        ranks = tree(self.process.pid)[:-1]
        if ranks:
            os.kill(choose(ranks), signal.SIGKILL)
        self.process.wait(timeout=60)


def problems_on(disk, durable):
    """What is wrong on a disk after the cut; nothing if all is well."""
    run_dir = disk / "run"
    listed = run("checkpoint", "list", "--run-dir", run_dir, "--output", "json")
    if listed.code != 0:
        return [f"the checkpoints cannot be listed: {listed}"]
    found = json.loads(listed.out)["checkpoints"]
    problems = [entry["problem"] for entry in found if "problem" in entry]
    if found:
        verified = run("checkpoint", "verify", "--all", "--run-dir", run_dir)
        if verified.code != 0:
            problems.append(verified.out + verified.err)
    newest = max((entry["job_step"] for entry in found), default=-1)
    if newest < durable:
        problems.append(f"step {durable} was said to be durable, and the newest is {newest}")
    return problems


def prove(points, seed, filesystem, without):
    choice = random.Random(seed)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="fusedbun-power-") as name:
        folder = Path(name)
        (folder / "text.txt").write_text(TEXT)
        image, copy = folder / "disk.img", folder / "copy.img"
        with open(image, "wb") as file:
            file.truncate(filesystem.mebibytes << 20)
        subprocess.run([*filesystem.make.split(), image], check=True)
        with mounted(image, folder / "disk", filesystem.live) as disk:
            job = Job(folder / "text.txt", disk / "run", without)
            try:
                wait_until(lambda: job.durable > 0, 60, "the first checkpoint")
                for point in range(points):
                    time.sleep(choice.uniform(0, 0.2))
                    durable = job.durable
                    job.signal(signal.SIGSTOP)
                    subprocess.run(["cp", "--sparse=always", image, copy], check=True)
                    job.signal(signal.SIGCONT)
                    with mounted(copy, folder / "after", filesystem.copy) as after:
                        problems = problems_on(after, durable)
                    if problems:
                        wrong += 1
                        print(f"point {point} of seed {seed}: " + "; ".join(problems), flush=True)
                        if without:
                            break  # found: that is what was to be shown
                    if choice.random() < 0.05:
                        job.kill_a_rank(choice.choice)
                        before = job.durable
                        job = Job(folder / "text.txt", disk / "run", without)
                        wait_until(lambda: job.durable > before, 60, "a checkpoint after the restart")
            finally:
                job.signal(signal.SIGCONT)
                job.signal(signal.SIGKILL)
                job.process.wait()
    return wrong


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--points", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--filesystem", choices=FILESYSTEMS, default="ext4")
    arguments.add_argument("--without", choices=("files",))
    chosen = arguments.parse_args()
    wrong = prove(chosen.points, chosen.seed, FILESYSTEMS[chosen.filesystem], chosen.without)
    print(f"{chosen.points} points from seed {chosen.seed} on {chosen.filesystem}, {wrong} wrong" +
          (f", without fsync of {chosen.without}" if chosen.without else ""))
    return 0 if (wrong == 0) != bool(chosen.without) else 1


if __name__ == "__main__":
    sys.exit(main())
