"""Told to leave: every signal, under every launcher, saves the model; one request stays one however often it arrives.

FUSEDBUN_LONG=1 sends every signal to the launcher alone and to all its processes; else each signal goes one of the two ways.
"""

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import BINARY, MPI_ENVIRONMENT, Process, lives, run, start, tree, wait_until  # noqa: E402
from training import TrainingTestCase, metrics, steps, steps_done  # noqa: E402

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
LONG = os.environ.get("FUSEDBUN_LONG") == "1"
MPIRUN = [os.environ["FUSEDBUN_MPIRUN"], "-np", "2", "--oversubscribe", "--mca", "odls_base_sigkill_timeout", "3"]
TORCHRUN = [os.environ["FUSEDBUN_TORCHRUN"], "--standalone", "--no-python", "--nproc-per-node", "2"]


def ways(of_signals):
    """[(signal, whether it goes to the whole tree)]: of each signal all ways, or in turns one of them."""
    return [(number, whole_tree) for at, (number, choices) in enumerate(of_signals.items())
            for whole_tree in (choices if LONG else [choices[at % len(choices)]])]


class SignalTestCase(TrainingTestCase):
    def into(self, name):
        self.run_dir = self.folder / name
        return self.train(1_000_000)

    def send(self, job, number, whole_tree):
        """Once three steps are done. Returns all processes of the job."""
        self.wait_for_steps(3, 120)
        pids = tree(job.pid)
        for pid in pids if whole_tree else [job.pid]:
            os.kill(pid, number)
        return pids

    def assert_saved(self, pids):
        wait_until(lambda: not any(lives(pid) for pid in pids), 60, "all processes to end")
        self.assertTrue((self.run_dir / "model.safetensors").exists())
        self.assertIn('"state": "DRAINED"', (self.run_dir / "run.json").read_text())
        self.assertEqual([path.name for path in self.run_dir.iterdir() if path.name.endswith(".tmp")], [])


class UnderLaunch(SignalTestCase):
    def test_every_signal_drains(self):
        for number, whole_tree in ways({number: (False, True) for number in SIGNALS}):
            with self.subTest(number=number.name, whole_tree=whole_tree):
                with start("launch", "-n", "2", "--", *self.into(f"{number.name}-{whole_tree}")) as job:
                    pids = self.send(job, number, whole_tree)
                    result = job.result()
                self.assert_fails(result, 75, "left before the last step as asked",
                                  "another signal, a second or more from now, leaves at once")
                self.assertEqual(result.err.count("told to leave"), 1, result)
                self.assert_saved(pids)

    def test_one_process_alone(self):
        for number in SIGNALS:
            with self.subTest(number=number.name):
                with start(*self.into(number.name)) as job:
                    pids = self.send(job, number, False)
                    os.kill(job.pid, number)
                    self.assertEqual(job.result().code, 75)
                self.assert_saved(pids)

    def test_what_the_launcher_passes_on_late_is_the_same_request(self):
        # Steps of some seconds, so the echo comes before the first signal could be answered. mpirun's comes that late.
        words = self.train(1_000_000, "--layers", "4", "--width", "256", "--context", "256", "--batch", "64")
        with start("launch", "-n", "2", "--grace", "100", "--", *words) as job:
            wait_until(lambda: metrics(self.run_dir), 120, "training to begin")
            pids = tree(job.pid)
            for pid in job.ranks(2):
                os.kill(pid, signal.SIGTERM)
            time.sleep(1.5)
            self.assertEqual(steps(self.run_dir)[1:], [], "the steps are too short for this test")
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result(120).code, 75)
        self.assert_saved(pids)

    def test_a_reader_of_standard_error_that_has_stopped_holds_nothing_up(self):
        # The test does not read the pipe until the job has ended. Each step prints a line of 40 bytes, and the pipe holds 100 lines. The
        # launcher buffers the output of its ranks until it is read.
        for words in ([], ["launch", "-n", "2", "--"]):
            self.run_dir = self.folder / f"run-{len(words)}"
            with self.subTest(words=words), start(*words, *self.train(1_000_000, "--eval-every", "1")) as job:
                fcntl.fcntl(job.popen.stderr, fcntl.F_SETPIPE_SZ, 4096)
                self.wait_for_steps(400)
                pids = tree(job.pid)[:-1]
                job.signal(signal.SIGTERM)
                if not words:
                    self.assertEqual(job.popen.wait(30), 75)
                self.assert_saved(pids)
                result = job.result()
                self.assertEqual(result.code, 75)
                self.assertGreater((self.run_dir / "train.log").read_text().count("validation loss"), 400)
                if not words:
                    self.assertLess(result.err.count("validation loss"), 400)

    def test_a_terminal_that_is_held_holds_nothing_up(self):
        self.run_dir = self.folder / "run"
        terminal, ours = pty.openpty()
        self.addCleanup(os.close, terminal)
        self.addCleanup(os.close, ours)
        with start(*self.train(1_000_000, "--eval-every", "1"), streams={"stdout": subprocess.DEVNULL, "stderr": ours}) as job:
            self.wait_for_steps(3)
            termios.tcflow(ours, termios.TCOOFF)  # Ctrl-S
            self.wait_for_steps(len(steps(self.run_dir)) + 300)
            job.signal(signal.SIGTERM)
            self.assertEqual(job.popen.wait(30), 75)
        self.assert_saved([])

    def test_nohup_keeps_a_run_alive(self):
        with Process(["sh", "-c", 'trap "" HUP; exec "$0" "$@"', BINARY, "launch", "-n", "2", "--", *self.into("run")]) as job:
            self.send(job, signal.SIGHUP, True)
            self.wait_for_steps(len(steps(self.run_dir)) + 10)
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)


class Twice(SignalTestCase):
    def test_a_second_signal_later_than_a_second_leaves_at_once(self):
        # A step that takes longer than the test: the first signal cannot be answered yet.
        words = self.train(1_000_000, "--layers", "4", "--width", "256", "--context", "256", "--batch", "128")
        with start(*words) as job:
            wait_until(lambda: any("validation_loss" in line for line in metrics(self.run_dir)), 120, "training to begin")
            job.signal(signal.SIGTERM)
            time.sleep(1.1)
            job.signal(signal.SIGTERM)
            began = time.monotonic()
            self.assertEqual(job.result(20).code, 143)
        self.assertLess(time.monotonic() - began, 5)
        status = run("status", "--run-dir", self.run_dir)
        self.assertEqual(status.code, 0, status)
        self.assertRegex(status.out, r"state +FAILED: its process, pid \d+, is gone")


class ClosedTerminal(SignalTestCase):
    def test_the_run_is_saved(self):
        words = [BINARY, "launch", "-n", "2", "--", *self.into("run")]
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(words[0], words)
        try:
            self.read_until(terminal, lambda: steps_done(self.run_dir) > 3)
            pids = tree(pid)
        finally:
            os.close(terminal)  # the kernel sends SIGHUP to the launcher
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 75)
        self.assert_saved(pids)

    def read_until(self, terminal, condition):
        """As a terminal does; what nobody reads would hold the ranks up."""
        end = time.monotonic() + 120
        while not condition():
            self.assertLess(time.monotonic(), end)
            if select.select([terminal], [], [], 0.05)[0]:
                os.read(terminal, 4096)


@unittest.skipIf(not MPIRUN[0], "this build has no Open MPI")
class UnderMpirun(SignalTestCase):
    def test_every_signal_drains(self):
        for number, whole_tree in ways({signal.SIGTERM: (False, True), signal.SIGINT: (False,), signal.SIGHUP: (False,),
                                        signal.SIGUSR1: (False, True)}):
            with self.subTest(number=number.name, whole_tree=whole_tree):
                words = self.into(f"{number.name}-{whole_tree}")
                with Process(MPIRUN + [BINARY, *words], MPI_ENVIRONMENT) as job:
                    pids = self.send(job, number, whole_tree)
                    result = job.result()
                self.assertNotEqual(result.code, 0, result)
                self.assert_saved(pids)


class UnderTorchrun(SignalTestCase):
    def test_every_signal_drains(self):
        for number, whole_tree in ways({signal.SIGTERM: (False, True), signal.SIGINT: (False,), signal.SIGHUP: (False,)}):
            with self.subTest(number=number.name, whole_tree=whole_tree):
                words = self.into(f"{number.name}-{whole_tree}")
                with Process(TORCHRUN + [BINARY, *words]) as job:
                    pids = self.send(job, number, whole_tree)
                    result = job.result()
                self.assertEqual(result.code, 1, result)
                self.assert_saved(pids)

    def test_usr1_to_a_rank_drains(self):  # torchrun itself would die of it
        with Process(TORCHRUN + [BINARY, *self.into("run")]) as job:
            self.wait_for_steps(3, 120)
            pids = tree(job.pid)
            os.kill(next(pid for pid in pids if "--run-dir" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:6]
                         and b"fusedbun" in os.readlink(f"/proc/{pid}/exe").encode()), signal.SIGUSR1)
            self.assertEqual(job.result().code, 1)
        self.assert_saved(pids)


class AtTheEnd(SignalTestCase):
    """A request in one of the last steps: exit code 75 says that steps are missing, 0 that none is."""

    def test_the_code_says_whether_steps_are_missing(self):
        total = 6
        codes = set()
        for optimizer in ("fusedbun", "adamw"):
            for seen in (total - 3, total - 2, total - 1):
                with self.subTest(optimizer=optimizer, seen=seen):
                    self.run_dir = self.folder / f"{optimizer}-{seen}"
                    words = self.train(total, "--optimizer", optimizer, "--layers", "4", "--width", "128", "--batch", "16",
                                       "--context", "128")
                    with start(*words) as job:
                        self.wait_for_steps(seen, 120)  # so the signal comes in the step after them
                        job.signal(signal.SIGTERM)
                        result = job.result(120)
                    done = len(steps(self.run_dir))
                    self.assertEqual(result.code, 0 if done == total else 75, result)
                    self.assertIn("SUCCEEDED" if done == total else "DRAINED", (self.run_dir / "run.json").read_text())
                    at_the_end = [line for line in metrics(self.run_dir) if "validation_loss" in line and line["step"] == total]
                    self.assertEqual(len(at_the_end), 1 if done == total else 0)
                    codes.add(result.code)
        self.assertEqual(codes, {0, 75})


class Advice(unittest.TestCase):
    @unittest.skipIf(not MPIRUN[0], "this build has no Open MPI")
    def test_env_prints_lines_that_start_a_job_here(self):
        out = run("env").out
        line = re.search(r"^start with +(mpirun .*) train$", out, re.MULTILINE)
        self.assertIsNotNone(line, out)
        self.assertIn("--mca odls_base_sigkill_timeout", line[1])
        # The very words, with another command at the end.
        with Process(["sh", "-c", line[1].replace("mpirun", MPIRUN[0], 1) + " env"]) as job:
            result = job.result()
        self.assertEqual(result.code, 0, result)
        self.assertIn("rank 1 of 2", result.out)

    def test_an_unknown_launcher_is_refused_by_name(self):
        result = run("train", "--steps", "1", environment={"PMI_RANK": "1", "PMI_SIZE": "2"})
        self.assertEqual(result.code, 78, result)
        self.assertIn("PMI_RANK = 1", result.err)


if __name__ == "__main__":
    unittest.main()
