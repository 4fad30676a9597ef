"""A rank that dies or stops is named by all others, who exit with 76 in time (P1, P2 of the reliability list, thinned)."""

import json
import os
import signal
import socket
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from bare_ranks import QUICK, bare_ranks, seeded  # noqa: E402
from job_process import run, start, wait_until  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402

RANKS = 3
WINDOW = ()
MESSAGES = ("--no-host-window",)


class LostRanks(TrainingTestCase):
    def setUp(self):
        super().setUp()
        self.random = seeded(os.environ)

    def ranks(self, *more):
        return bare_ranks(RANKS, [*self.train(1_000_000, "--batch", "6"), *QUICK, *more])

    def let_run(self):
        """Some steps, and then until a moment that no clock of the job knows."""
        self.wait_for_steps(5)
        time.sleep(self.random.uniform(0, 0.3))

    def assert_named(self, survivors, victim, victim_pid, since, cause):
        for process in survivors:
            result = process.result(30)
            self.assert_fails(result, 76, f"rank {victim} (pid {victim_pid} on {socket.gethostname()}) is lost")
        seconds = time.monotonic() - since
        error = json.loads((self.run_dir / "error.json").read_text())
        print(f"  victim {victim}: {error['phase']}, all left after {seconds:.2f} s", flush=True)
        self.assertEqual((error["rank"], error["pid"], error["host"]), (victim, victim_pid, socket.gethostname()))
        self.assertEqual(error["cause"], cause)
        self.assertIn("is lost", error["sentence"])
        self.assertLessEqual(error["step"], len(steps(self.run_dir)) + 2)
        self.assertFalse((self.run_dir / "model.safetensors").exists())
        self.assertEqual([path.name for path in self.run_dir.glob("error.json.*")], [])
        return seconds

    def kill_one(self, victim, flags):
        with self.ranks(*flags) as ranks:
            self.let_run()
            ranks[victim].signal(signal.SIGKILL)
            killed = time.monotonic()
            survivors = [process for rank, process in enumerate(ranks) if rank != victim]
            self.assertLess(self.assert_named(survivors, victim, ranks[victim].pid, killed, "gone"), 10)

    def test_a_killed_rank_is_named_over_shared_memory(self):
        self.kill_one(self.random.randrange(1, RANKS), WINDOW)

    def test_a_killed_rank_is_named_over_messages(self):
        self.kill_one(self.random.randrange(1, RANKS), MESSAGES)

    def test_a_killed_rank_zero_is_named(self):
        self.kill_one(0, self.random.choice([WINDOW, MESSAGES]))

    def stop_one(self, victim, flags):
        with self.ranks(*flags) as ranks:
            self.let_run()
            ranks[victim].signal(signal.SIGSTOP)
            stopped = time.monotonic()
            survivors = [process for rank, process in enumerate(ranks) if rank != victim]
            seconds = self.assert_named(survivors, victim, ranks[victim].pid, stopped, "silent")
            self.assertGreater(seconds, 0.9)
            self.assertLess(seconds, 10)
            ranks[victim].signal(signal.SIGCONT)
            self.assert_fails(ranks[victim].result(10), 76, f"the other ranks gave this one up: rank {victim} ")

    def test_a_stopped_rank_is_named_over_shared_memory(self):
        self.stop_one(self.random.randrange(1, RANKS), WINDOW)

    def test_a_stopped_rank_is_named_over_messages(self):
        self.stop_one(self.random.randrange(1, RANKS), MESSAGES)

    def test_a_stopped_rank_zero_is_named(self):
        self.stop_one(0, self.random.choice([WINDOW, MESSAGES]))

    def test_all_ranks_leave_without_the_model_when_told(self):
        if run("stop", "--help").code != 0:
            self.skipTest("this build has no control plane")
        # The model's folder goes, the job is drained, and then told to leave without the model.
        place = self.folder / "place"
        place.mkdir()
        with self.ranks("--save", place / "model.safetensors") as ranks:
            self.let_run()
            place.rmdir()
            self.assertEqual(run("drain", "--run-dir", self.run_dir).code, 0)
            wait_until(lambda: "saving is tried again" in (self.run_dir / "train.log").read_text(), 30, "the first try")
            self.assertEqual(run("stop", "--run-dir", self.run_dir).code, 0)
            for process in ranks:
                self.assert_fails(process.result(30), 75, "left without saving the model, as told")
        self.assertIn("place/model", (self.run_dir / "train.log").read_text().splitlines()[-1])
        attempt = json.loads((self.run_dir / "run.json").read_text())["attempts"][-1]
        self.assertEqual((attempt["state"], attempt["exit_code"]), ("STOPPED", 75))
        self.assertFalse((self.run_dir / "error.json").exists(), "nothing failed")

    def test_the_launcher_shows_the_stopped_rank(self):
        with start("launch", "-n", "2", "--grace", "1", "--", *self.train(1_000_000), *QUICK) as job:
            victim = job.ranks(2)[1]
            self.wait_for_steps(3)
            os.kill(victim, signal.SIGSTOP)
            result = job.result(30)
        self.assertEqual(result.code, 76, result)
        self.assertIn(f"rank 1 (pid {victim} on {socket.gethostname()}) is lost: no heartbeat", result.err)


if __name__ == "__main__":
    unittest.main()
