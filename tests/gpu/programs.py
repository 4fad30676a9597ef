"""The build in the background, and the programs that it leaves: run within the time that there is."""

import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

from machine import REHEARSE, ROOT, nvcc_program, torch_folder

BUILD = ROOT / "build" / "gpu" / "build"
HEADERS = ROOT / "build" / "gpu" / "headers"
OUT = Path(os.environ.get("OUT") or ROOT / "build" / "gpu" / "results")
LIMIT_S = 4 * 3600 if REHEARSE else 360
STARTED = time.monotonic()


class Failed(Exception):
    """A stage did not hold; the text says why. `result` is what it found anyway, `printed` all that its program had printed."""

    def __init__(self, text, result=None, printed=""):
        super().__init__(text)
        self.result = result
        self.printed = printed


class NotRun(Exception):
    """A stage that this machine cannot run; the text says why."""


def seconds_left(wanted):
    left = LIMIT_S - (time.monotonic() - STARTED)
    if left < 5:
        raise Failed(f"not run: the {LIMIT_S} seconds are used up")
    return min(left, wanted * (12 if REHEARSE else 1))


class Build:
    """The build in the background, behind all else that runs: configured at once, then what the stages run."""

    def __init__(self, env):
        self.log = OUT / "build.log"
        self.linked_after_s = {}  # by program, as far as somebody has asked
        shutil.rmtree(BUILD, ignore_errors=True)  # what an older run linked would count as linked
        with tarfile.open(ROOT / "tests" / "gpu" / "headers.tar.gz") as archive:
            archive.extractall(HEADERS)
        capability = (env["compute_capability"] or "9.0").replace(".", "")
        nvcc = nvcc_program()
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            "-DFUSEDBUN_BUILD_TESTS=OFF", "-DFUSEDBUN_BUILD_GPU_CHECKS=ON", "-DFUSEDBUN_BUILD_LAUNCHER=ON",
            "-DFUSEDBUN_WITH_CUDA=ON", "-DFUSEDBUN_WITH_NCCL=ON",
            "-DFUSEDBUN_WITH_MPI=OFF", "-DFUSEDBUN_WITH_CONTROL=OFF",
            "-DFUSEDBUN_WARNINGS_ARE_ERRORS=OFF",
            f"-DCMAKE_CUDA_ARCHITECTURES={capability}-real",
            f"-DFUSEDBUN_TORCH_DIR={torch_folder()}",
            f"-DCMAKE_PREFIX_PATH={HEADERS}", f"-DCMAKE_CXX_FLAGS=-isystem {HEADERS}/include",
        ] + ([f"-DFUSEDBUN_NVCC={nvcc}"] if nvcc else [])
        self.process = None
        with self.log.open("w") as log:
            done = subprocess.run(configure, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        if done.returncode != 0:
            raise Failed(f"cmake could not configure: {self.last_error()}")
        # The first program alone at first: it is small, and what it checks is worth most.
        self.process = subprocess.Popen(
            ["nice", "-n", "10", "sh", "-c", f"cmake --build '{BUILD}' --target gpu_step_check -- -k 0; "
             f"cmake --build '{BUILD}' --target gpu_graph_check gpu_job_check fusedbun gpu_train_loop -- -k 0"],
            stdout=self.log.open("a"), stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)

    def last_error(self):
        lines = self.log.read_text(errors="replace").splitlines()
        wrong = [line for line in lines if re.search(r"\berror:|CMake Error|FAILED|build stopped", line)]
        return (wrong or lines or ["no output"])[0][:300] + f" (all of it: {self.log.name})"

    def is_linked(self, target):
        """Ninja's log names an output once it is complete."""
        log = BUILD / ".ninja_log"
        is_there = log.exists() and re.search(rf"\t{re.escape(target)}\t", log.read_text()) is not None
        if is_there:
            self.linked_after_s.setdefault(target, round(time.monotonic() - STARTED))
        return is_there

    def is_over(self):
        return self.process.poll() is not None

    def wait_for(self, target, seconds=240):
        """The program `target`, once it is linked."""
        until = time.monotonic() + seconds_left(seconds)
        while not self.is_linked(target):
            if self.is_over():
                if self.is_linked(target):
                    break
                raise Failed(f"{target} was not built: {self.last_error()}")
            if time.monotonic() > until:
                raise Failed(f"{target} was not built in time")
            time.sleep(0.2)
        return BUILD / target

    def stop(self):
        if self.process is not None and not self.is_over():
            os.killpg(self.process.pid, signal.SIGTERM)  # its own session: the shell, ninja and the compilers
            self.process.wait()


def run(words, seconds, settings=None):
    """Runs a program with environment variables `settings`; returns what it printed. Failed with its last words if it does not exit with 0."""
    limit = seconds_left(seconds)
    try:
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=limit, cwd=ROOT,
                              env=os.environ | (settings or {}))
    except subprocess.TimeoutExpired as late:
        printed = (late.stdout or b"").decode(errors="replace")
        raise Failed(f"not done after {limit:.0f} s: {Path(words[0]).name} {words[1]}", printed=printed) from late
    if done.returncode != 0:
        sentence = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Failed(f"exit code {done.returncode}: {sentence}", json_or_none(done.stdout), done.stdout)
    return done.stdout


def json_or_none(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def rehearsing():
    return ["--rehearse"] if REHEARSE else []
