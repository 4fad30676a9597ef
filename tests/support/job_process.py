"""Runs the real commands for process tests: starts them, waits with a deadline, leaves nothing behind.

FUSEDBUN_BINARY names the fusedbun binary under test. Every wait has a deadline; a test that ends early, for whatever
reason, kills what it has started.
"""

import os
import signal
import subprocess
import time
import unittest

BINARY = os.environ["FUSEDBUN_BINARY"]

# Open MPI refuses root otherwise.
MPI_ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

# A test run that was started by nohup, or in the background of a script, has these ignored, and its children would inherit that.
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


def wait_until(condition, seconds, what):
    """Returns the first true value of condition(); fails after `seconds`."""
    end = time.monotonic() + seconds
    pause = 0.01
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(pause)
        pause = min(pause * 1.1, 0.05)  # the processors are the job's
    raise AssertionError(f"not within {seconds} s: {what}")


def lives(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end between open and read
        return False


def children(pid):
    """Process ids of the living children of `pid`."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as listed:
            return [int(word) for word in listed.read().split() if lives(int(word))]
    except (FileNotFoundError, ProcessLookupError):  # it may end between open and read
        return []


def tree(pid):
    """The process and all its living descendants, the process last."""
    return [each for child in children(pid) for each in tree(child)] + [pid]


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __repr__(self):
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Process:
    """A started command; a context manager that kills its process group at the end."""

    def __init__(self, words, environment=None, folder=None, streams=None):
        variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        variables.update(environment or {})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} if streams is None else streams
        self.popen = subprocess.Popen(
            [str(word) for word in words], env=variables, cwd=folder, text=True, stdin=subprocess.DEVNULL,
            start_new_session=True, **pipes)
        self.pid = self.popen.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.popen.poll() is None:
            for pid in children(self.pid) + [self.pid]:
                for kill in (os.killpg, os.kill):
                    try:
                        kill(pid, signal.SIGKILL)
                    except (ProcessLookupError, PermissionError):
                        pass
        self.popen.communicate()

    def signal(self, number):
        os.kill(self.pid, number)

    def result(self, seconds=60):
        """Waits for the end. The code is as a shell shows it."""
        out, err = self.popen.communicate(timeout=seconds)
        code = self.popen.returncode
        return Result(code if code >= 0 else 128 - code, out, err)

    def ranks(self, count, seconds=10):
        """Waits until `count` children live and returns their process ids."""
        return wait_until(lambda: len(children(self.pid)) == count and children(self.pid), seconds,
                          f"{count} ranks")


def start(*words, **options):
    """Starts `fusedbun <words>`."""
    return Process([BINARY, *words], **options)


def run(*words, seconds=60, **options):
    """Runs `fusedbun <words>` to its end."""
    with start(*words, **options) as process:
        return process.result(seconds)


class TestCase(unittest.TestCase):
    def assert_fails(self, result, code, *parts):
        """The exit code, and one sentence on stderr that contains all `parts`."""
        self.assertEqual(result.code, code, result)
        sentences = [line for line in result.err.splitlines() if "fusedbun: " in line]
        self.assertTrue(sentences, result)
        for part in parts:
            self.assertTrue(any(part in line for line in sentences), f"no '{part}' in {result}")
