#!/usr/bin/env python3
"""Random faults on whole jobs: kills, stops, full disks, floods, closed pipes and signals, under every launcher, in every phase.

    tests/scenarios/chaos.py [--cases 300] [--seed S] [--seconds N] [--jobs N] [--show]

Case i is drawn from seed S + i, so `--cases 1 --seed S+i` repeats one; --show prints the cases and runs none. Of each: the job
ends in one of the ways that are written down for it (`outcomes_of`), a lost rank is named within 10 s, no process and no shared
memory of the job is left, every line of metrics.jsonl is whole, and a model is there exactly when the job says that it saved one.
FUSEDBUN_BINARY names the command, FUSEDBUN_MPIRUN, FUSEDBUN_TORCHRUN and FUSEDBUN_SLOW_WORLD the rest. Needs root for the small disk.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import BINARY, MPI_ENVIRONMENT, Process, lives, run, tree, wait_until  # noqa: E402
from small_disk import CannotMount, empty, fill, small_disk  # noqa: E402
from training import SMALL, TEXT, metrics, steps, steps_done  # noqa: E402

NAMED_WITHIN = 10  # seconds from a fault to the sentence that names the lost rank
WATCH = ["--heartbeat", "0.1", "--stall-timeout", "0.4", "--lost-timeout", "2"]
ENDS_WITHIN = 60  # seconds from the last thing that is done to a job to its end; torchrun gives a stopped rank 30
SIGNALS = {"launch": ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"), "mpirun": ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"),
           "torchrun": ("SIGTERM", "SIGINT", "SIGHUP")}


# ---- decisions ------------------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Case:
    launcher: str  # launch, mpirun, torchrun
    ranks: int
    window: bool  # ranks share memory, or send messages
    phase: str  # starting, training, validating, saving
    fault: str
    victim: int  # the rank that is killed or stopped
    number: str  # the signal that is sent
    whole_tree: bool
    delay: float  # seconds after the phase has begun


def draw(seed):
    dice = random.Random(seed)
    launcher = dice.choice(("launch", "launch", "mpirun", "torchrun"))
    phase = dice.choice(("starting", "training", "training", "validating", "saving"))
    faults = ["kill", "signal"]
    if phase != "saving":
        faults.append("stop")  # a rank that is stopped when it has done its part is waited for, as it may go on
    if phase != "starting":
        faults += ["flood", "pause"]
    if phase in ("training", "validating"):
        faults += ["disk", "pipe"]
    if launcher == "launch":
        faults.append("kill launcher")
    ranks = dice.choice((2, 3))
    return Case(launcher, ranks, dice.random() < 0.5, phase, dice.choice(faults), dice.randrange(ranks),
                dice.choice(SIGNALS[launcher]), dice.random() < 0.5, dice.uniform(0, 1.0 if phase in ("starting", "saving") else 0.3))


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What may become of a case. `saved`: True, False, or None where the moment decides."""
    codes: frozenset
    saved: bool | None
    names_rank: bool


def outcomes_of(case):
    """The ways to end that README, launcher/README and dist/health/README promise."""
    def these(*codes, saved, names_rank=False):
        return Outcomes(frozenset(codes), saved, names_rank)

    any_failure = {"launch": set(), "mpirun": set(range(1, 256)), "torchrun": {1}}[case.launcher]
    number = 128 + getattr(signal, case.number)
    drained = {75} | any_failure | ({128 + signal.SIGTERM} if case.launcher == "torchrun" else set())
    if case.fault == "kill launcher":
        return these(137, saved=None)
    if case.phase == "saving" and case.fault in ("signal", "pause", "flood"):
        return these(0, 75, *any_failure, saved=True)  # it is at its end, and ends
    if case.fault == "signal" and case.phase == "starting":
        # A rank that has not come to its handlers is ended by the signal, and the others are told.
        return these(*drained, number, 76, 69, 128 + signal.SIGTERM, saved=None)
    if case.fault in ("signal", "pause", "flood", "disk", "pipe"):
        # torchrun is a Python program, which exits with 120 when nobody takes its last words.
        return these(*drained, *({120} if case.launcher == "torchrun" and case.fault == "pipe" else ()), saved=True)
    # kill, stop. A rank that has done its part may be gone already; a job that is just starting has no heartbeats yet, and an engine
    # that ends the others at once leaves them no time for a sentence.
    lost = {"kill": {137}, "stop": {76, 124, 137}}[case.fault]
    early = {69, 76, 124, 143} if case.phase == "starting" else set()
    names = case.phase in ("training", "validating") and (case.launcher == "launch" or case.fault == "stop")
    return these(*lost, *early, *any_failure, *({0} if case.phase == "saving" else ()),
                 saved=None if case.phase == "saving" else False, names_rank=names)


# ---- the world ------------------------------------------------------------------------------------------------------

def words_of(case, folder):
    flags = dict(zip(SMALL[::2], SMALL[1::2])) | {"--batch": 6, "--timeout": 5, "--steps": 6 if case.phase == "saving" else 1_000_000}
    if case.phase == "validating":
        flags |= {"--eval-every": 1, "--validation-batches": 20}
    train = [BINARY, "train", "--data", folder / "text.txt", "--run-dir", folder / "run", *WATCH, *itertools.chain(*flags.items())]
    if not case.window:
        train.append("--no-host-window")
    # A full disk, or more connections than descriptors, delay the model: saving is tried again every 5 s.
    grace = 20 if case.fault in ("disk", "flood") else 5
    before = {"launch": [BINARY, "launch", "-n", case.ranks, "--"],
              "mpirun": [os.environ["FUSEDBUN_MPIRUN"], "-np", case.ranks, "--oversubscribe",
                         "--mca", "odls_base_sigkill_timeout", grace],
              "torchrun": [os.environ["FUSEDBUN_TORCHRUN"], "--standalone", "--no-python", "--nproc-per-node", case.ranks]}
    return before[case.launcher] + train


class Job:
    """The started job, its lines with the moment at which each came, and its processes."""

    def __init__(self, case, folder):
        self.case, self.folder, self.run_dir = case, folder, folder / "run"
        environment = dict(MPI_ENVIRONMENT)
        if case.phase == "saving":
            environment |= {"LD_PRELOAD": os.environ["FUSEDBUN_SLOW_WORLD"], "FUSEDBUN_TEST_FSYNC_SECONDS": "0.2"}
        self.process = Process(words_of(case, folder), environment)
        self.popen = self.process.popen
        self.lines = []
        self.pids = {self.process.pid}
        self.readers = [threading.Thread(target=self.read, args=(stream,), daemon=True)
                        for stream in (self.popen.stdout, self.popen.stderr)]
        for reader in self.readers:
            reader.start()

    def read(self, stream):
        with contextlib.suppress(ValueError, OSError):
            for line in stream:
                self.lines.append((time.monotonic(), line))

    def ends(self):
        return self.popen.poll() is not None

    def tree(self):
        found = tree(self.process.pid)
        self.pids.update(found)
        return found

    def ranks(self):
        """Process ids by rank, of those that have begun."""
        found = {}
        for pid in self.tree()[:-1]:
            with contextlib.suppress(OSError):
                variables = dict(entry.partition("=")[::2] for entry in
                                 Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0"))
                rank = variables.get("OMPI_COMM_WORLD_RANK", variables.get("RANK"))
                if rank is not None and b"train" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found[int(rank)] = pid
        return found

    def wait_for_phase(self):
        conditions = {"starting": lambda: len(self.ranks()) == self.case.ranks,
                      "training": lambda: steps_done(self.run_dir) >= 3,
                      "validating": lambda: len([line for line in metrics(self.run_dir) if "validation_loss" in line]) >= 3,
                      "saving": lambda: steps_done(self.run_dir) >= 6}
        wait_until(lambda: self.ends() or conditions[self.case.phase](), 60, f"the phase {self.case.phase}")
        assert not self.ends(), "it ended before the fault"
        self.tree()
        time.sleep(self.case.delay)

    def signal(self, number, whole_tree=False):
        for pid in self.tree() if whole_tree else [self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def ports(self):
        """The TCP ports on which ranks listen, except for the store's, which is torch's. Under mpirun they are Open MPI's."""
        if self.case.launcher == "mpirun":
            return []
        inodes = set()
        for pid in self.ranks().values():
            with contextlib.suppress(OSError):
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor)))
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        store = {int(port) for port in re.findall(r"MASTER_PORT=(\d+)", environment_of(self))}
        return sorted({int(line[1].partition(":")[2], 16) for line in lines if line[3] == "0A" and line[9] in inodes} - store)


def make_noise(family, address, dice):
    """A second of connections that send rubbish, stay half open, or close at once."""
    end = time.monotonic() + 1
    held = []
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            held.append(socket.socket(family))
            held[-1].settimeout(0.2)
            held[-1].connect(address)
            if dice.random() < 0.7:
                held[-1].sendall(dice.randbytes(dice.choice((1, 16, 152, 4096))))
        if len(held) > 100 or (held and dice.random() < 0.3):
            held.pop(0).close()
    for connection in held:
        connection.close()


def do_fault(case, job, seed):
    """Returns when the fault began."""
    dice = random.Random(seed)
    began = time.monotonic()
    if case.fault in ("kill", "stop", "pause"):
        pid = job.ranks().get(case.victim)
        if pid is not None:  # else it is done
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if case.fault == "kill" else signal.SIGSTOP)
                if case.fault == "pause":
                    time.sleep(0.4)
                    os.kill(pid, signal.SIGCONT)
    elif case.fault == "kill launcher":
        job.signal(signal.SIGKILL)
    elif case.fault == "signal":
        job.signal(getattr(signal, case.number), case.whole_tree)
    elif case.fault == "flood":
        for port in job.ports():
            make_noise(socket.AF_INET, ("127.0.0.1", port), dice)
        make_noise(socket.AF_UNIX, str(job.run_dir / "control.sock"), dice)
    elif case.fault == "disk":
        fill(job.folder)
        time.sleep(0.5)
    elif case.fault == "pipe":
        with open(os.devnull, "rb") as nothing:
            for stream in (job.popen.stdout, job.popen.stderr):
                os.dup2(nothing.fileno(), stream.fileno())  # the pipe has no reader any more, as after `| head`
        time.sleep(0.5)
    if case.fault in ("pause", "flood", "disk", "pipe") and case.phase != "saving":
        job.signal(signal.SIGTERM)
    if case.fault == "disk":
        time.sleep(1)
        empty(job.folder)
    return began


def environment_of(job):
    text = ""
    for pid in job.tree():
        with contextlib.suppress(OSError):
            text += Path(f"/proc/{pid}/environ").read_text(errors="replace").replace("\0", "\n")
    return text


# ---- a case ---------------------------------------------------------------------------------------------------------

def problems_of(case, job, began):
    """What is not as promised."""
    expected = outcomes_of(case)
    problems = []
    try:
        job.popen.wait(ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        return [f"not ended {ENDS_WITHIN} s after the fault"]
    code = job.popen.returncode if job.popen.returncode >= 0 else 128 - job.popen.returncode
    if code not in expected.codes:
        problems.append(f"exit code {code}, not one of {sorted(expected.codes)}")
    try:
        wait_until(lambda: not any(lives(pid) for pid in job.pids), 15, "all processes to end")
    except AssertionError:
        problems.append(f"left behind: {[pid for pid in job.pids if lives(pid)]}")
    if case.fault != "pipe":
        for reader in job.readers:
            reader.join(10)
    model = (job.run_dir / "model.safetensors").exists()
    if expected.saved is not None and model != expected.saved:
        problems.append(f"model saved: {model}")
    if model and run("train", "--init", job.run_dir / "model.safetensors", "--data", job.folder / "text.txt", "--run-dir",
                     job.folder / "again", *SMALL, "--steps", 1).code != 0:
        problems.append("the saved model cannot be read")
    if expected.names_rank:
        named = [moment for moment, line in job.lines if re.search(rf"rank {case.victim} \(pid \d+ on .*\) (is lost|was ended)", line)]
        if not named:
            problems.append(f"rank {case.victim} was not named")
        elif named[0] - began > NAMED_WITHIN:
            problems.append(f"rank {case.victim} was named after {named[0] - began:.1f} s")
    path = job.run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    was_killed = case.fault in ("kill", "kill launcher", "stop")
    for line in lines[:-1] if was_killed else lines:
        try:
            json.loads(line)
        except json.JSONDecodeError:
            problems.append(f"a broken line in metrics.jsonl: {line!r}")
    if code == 75 and '"DRAINED"' not in (job.run_dir / "run.json").read_text():
        problems.append("run.json does not say DRAINED")
    return problems


def shared_memory():
    """What others leave is not ours: Open MPI's segments of a rank that was killed, folders of tests that run at the same time."""
    others = ("vader_segment", "test-of-fusedbun-")
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith(others)}


def run_case(seed):
    """Nothing, or what went wrong."""
    case = draw(seed)
    before = shared_memory()
    with tempfile.TemporaryDirectory(prefix="fusedbun-chaos-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if case.fault == "disk":
            stack.enter_context(small_disk(folder, 6))
        (folder / "text.txt").write_text(TEXT)
        job = Job(case, folder)
        try:
            job.wait_for_phase()
            problems = problems_of(case, job, do_fault(case, job, seed))
        except AssertionError as error:
            problems = [str(error)]
        finally:
            for pid in job.pids | set(job.tree()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if left := shared_memory() - before:
            problems.append(f"left in shared memory: {left}")
        if problems:
            problems += ["  " + line.rstrip() for _, line in job.lines[-20:]]
    return problems


def run_unless_late(seed, end):
    """As run_case, or why it was not run."""
    if time.monotonic() > end:
        return "the time is up"
    try:
        return run_case(seed)
    except CannotMount as error:
        return str(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after so long")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time; most of one is waiting")
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    print(f"{arguments.cases} cases from --seed {arguments.seed}", flush=True)
    seeds = range(arguments.seed, arguments.seed + arguments.cases)
    if arguments.show:
        for seed in seeds:
            print(seed, draw(seed))
        return 0
    began, done, failed = time.monotonic(), collections.Counter(), []
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for seed, problems in zip(seeds, pool.map(lambda seed: run_unless_late(seed, began + arguments.seconds), seeds)):
            case = draw(seed)
            where = f"seed {seed}: {case.launcher}, {case.ranks} ranks, {case.phase}, {case.fault}"
            if isinstance(problems, str):
                print(f"{where}: not run, {problems}", flush=True)
                continue
            print(f"{where}: {'WRONG' if problems else 'as promised'}", flush=True)
            done.update((case.launcher, case.phase, case.fault))
            if problems:
                failed.append(seed)
                print(f"  {case}", *problems, sep="\n  ", flush=True)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(done.items()))
    print(f"{sum(done.values()) // 3} cases, {len(failed)} wrong {failed or ''}; {counts}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
