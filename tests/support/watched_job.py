"""A job that a test watches and harms: what it says and when, which process is which rank, what it has done so far, what it leaves.

The expected side of a comparison is the same training that nothing happened to: its model, and its checkpoint of each step.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

from job_process import Process, tree

DURABLE = re.compile(r"checkpoint of step (\d+) is durable")
PUBLISHED = re.compile(r"step-(\d+)")


class WatchedJob(Process):
    """A launcher with its ranks. Its standard error is read as it comes: `lines` has (moment, line)."""

    def __init__(self, words, environment=None, folder=None):
        super().__init__(words, environment, folder, {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE})
        self.lines = []
        self.durable = 0  # the newest step whose checkpoint the job has called durable
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(ValueError, OSError):
            for line in self.popen.stderr:
                self.lines.append((time.monotonic(), line))
                if found := DURABLE.search(line):
                    self.durable = max(self.durable, int(found[1]))

    def __exit__(self, *_):
        self.kill_all()
        self.popen.wait()
        self._reader.join(10)
        self.popen.stderr.close()

    def lives(self):
        return self.popen.poll() is None

    def ranks(self):
        """{rank: process id} of those that run the trainer."""
        found = {}
        for pid in tree(self.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2] != [b"train"]:
                    continue
                if rank := re.search(rb"(?:^|\0)RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes()):
                    found[int(rank[1])] = pid
        return found

    def kill_all(self):
        """Launcher and ranks, as a machine that goes away; the launcher first, so that it starts nothing again."""
        for pid in reversed(tree(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def code(self, seconds=60):
        """Waits for the end and for the last words; the exit code, as a shell shows it."""
        self.popen.wait(seconds)
        self._reader.join(10)
        return self.popen.returncode if self.popen.returncode >= 0 else 128 - self.popen.returncode

    def said(self, pattern):
        """Every match of `pattern` in what was said, in order."""
        return [found for _, line in list(self.lines) if (found := re.search(pattern, line))]

    def last_words(self, count=15):
        return "".join(line for _, line in self.lines[-count:])


class MetricsTail:
    """metrics.jsonl as it grows: each whole line once."""

    def __init__(self, run_dir, from_now=False):
        self._path = Path(run_dir) / "metrics.jsonl"
        self._offset = self._path.stat().st_size if from_now and self._path.exists() else 0

    def new(self):
        """The lines that came since the last call."""
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._offset)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._offset += len(whole)
            return [json.loads(line) for line in whole.splitlines()]
        return []

    def new_steps(self):
        return [line for line in self.new() if "loss" in line]


def model_of(run_dir):
    return (Path(run_dir) / "model.safetensors").read_bytes()


def published_steps(run_dir):
    """Steps of the checkpoints that are named as whole, the newest first."""
    root = Path(run_dir) / "checkpoints"
    names = os.listdir(root) if root.exists() else []
    return sorted((int(found[1]) for name in names if (found := PUBLISHED.fullmatch(name))), reverse=True)


def checkpoint_of(run_dir, step):
    """{file: bytes} of a checkpoint; of its manifest all that does not tell when it was written, or that it is that one."""
    folder = Path(run_dir) / "checkpoints" / f"step-{step}"
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = json.loads(files["manifest.json"])
    files["manifest.json"] = {name: value for name, value in manifest.items() if name not in ("written", "xxh3_128")}
    return files
