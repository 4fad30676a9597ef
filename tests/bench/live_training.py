"""A small GPT that trains under `fusedbun launch` for as long as a benchmark wants to do something to it."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = 64


def options(doc):
    """The flags that such benchmarks share."""
    arguments = argparse.ArgumentParser(description=doc.split("\n")[0])
    arguments.add_argument("--build", type=Path, default=ROOT / "build" / "test")
    arguments.add_argument("--json", action="store_true")
    return arguments


def build_storm(build):
    """Builds the command and the program that sends changes to a job, and returns the latter."""
    subprocess.run(["cmake", "--build", build, "--target", "change_storm", "fusedbun"], check=True, stdout=subprocess.DEVNULL)
    return build / "tests" / "bench" / "change_storm"


class LiveTraining:
    """A context: the job runs inside, has made `first_steps` of them, and is killed at the end if it was not ended before."""

    def __init__(self, build, ranks, *flags, first_steps=20):
        self.binary = build / "launcher" / "fusedbun"
        self._first_steps = first_steps
        self._tokens = 2 * ranks * CONTEXT
        self._words = [self.binary, "launch", "-n", ranks, "--", "train", "--steps", 10_000_000, "--layers", 2, "--heads", 2, "--context",
                       CONTEXT, "--batch", 2 * ranks, "--warmup", 2, "--eval-every", 0, "--validation-batches", 1, "--threads", 1,
                       "--control-rate", 0, *flags]

    def __enter__(self):
        os.environ["FUSEDBUN_BINARY"] = str(self.binary)  # job_process.py reads it when it is imported
        sys.path.insert(0, str(ROOT / "tests" / "support"))
        from job_process import wait_until
        from training import TEXT, steps
        self._steps = steps
        self._folder = tempfile.TemporaryDirectory(prefix="fusedbun-bench-")
        text, self.run_dir = Path(self._folder.name) / "text.txt", Path(self._folder.name) / "run"
        text.write_text(TEXT)
        words = [*self._words, "--data", text, "--run-dir", self.run_dir]
        self.job = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: len(self.steps()) >= self._first_steps, 60, "the first steps")
        return self

    def __exit__(self, *_):
        self.job.kill()
        self.job.communicate()
        self._folder.cleanup()

    def steps(self):
        """Those so far, in order."""
        return self._steps(self.run_dir)

    def milliseconds(self, steps):
        return [1000 * self._tokens / step["tokens_per_second"] for step in steps]

    def quartiles(self, steps):
        """Of the milliseconds that `steps` took."""
        low, middle, high = statistics.quantiles(self.milliseconds(steps), n=4)
        return {"low": low, "median": middle, "high": high}

    def drain(self):
        """Returns what the job said at its end."""
        subprocess.run([self.binary, "drain", "--run-dir", self.run_dir, "--wait"], check=True, capture_output=True)
        return self.job.communicate(timeout=60)[1]
