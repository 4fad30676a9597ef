"""A person asks a running job for a checkpoint: fusedbun checkpoint save."""

import contextlib
import json
import os
import re
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import run, start, tree, wait_until  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402

SPAN = 100_000  # steps: the job is always stopped before its end


class SaveOnDemand(TrainingTestCase):
    def job(self, *more, count=SPAN, ranks=2):
        return start("launch", "-n", ranks, "--", *self.train(count, *more))

    def ask(self, *more):
        return run("checkpoint", "save", "--run-dir", self.run_dir, *more)

    def status(self):
        return json.loads(run("status", "--run-dir", self.run_dir, "--output", "json").out)["job"]

    def test_it_is_durable_when_the_command_comes_back_and_the_run_goes_on_from_it(self):
        with self.job() as job:
            self.wait_for_steps(5)
            result = self.ask("--reason", "before the higher lr")
            self.assertEqual(result.code, 0, result)
            step = int(re.match(r"the checkpoint of step (\d+) is durable", result.out).group(1))
            folder = self.run_dir / "checkpoints" / f"step-{step}"
            self.assertTrue((folder / "manifest.json").exists())
            self.assertIn(str(folder), result.out)
            shown = json.loads(self.ask("--output", "json").out)
            self.assertEqual((shown["state"], shown["world_size"]), ("ACTIVE", 2))
            newest = int(shown["step"])
            self.assertGreater(newest, step)
            self.assertTrue(self.status()["last_checkpoint"].endswith(f"/checkpoints/{newest}"))
            done = len(steps(self.run_dir))
            self.wait_for_steps(done + 3)
            for pid in tree(job.pid):
                os.kill(pid, signal.SIGKILL)
            job.result()
        self.assertEqual(run("checkpoint", "verify", "--all", "--run-dir", self.run_dir).code, 0)
        with self.job() as job:
            wait_until(lambda: [line for line in steps(self.run_dir) if line["attempt"] == 2], 60, "a step of the second attempt")
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)
        self.assertEqual([line["step"] for line in steps(self.run_dir) if line["attempt"] == 2][0], newest)

    def test_many_who_ask_at_once_all_get_one(self):
        self.ask_at_once("--checkpoint-every", 2)  # the job's own saves come between

    def test_who_looks_late_gets_a_newer_one(self):
        self.ask_at_once("--checkpoint-every", 1, "--keep", 1)  # theirs are gone again at once

    def ask_at_once(self, *flags):
        with self.job(*flags) as job:
            self.wait_for_steps(5)
            with contextlib.ExitStack() as stack:
                asking = [start("checkpoint", "save", "--run-dir", self.run_dir, "--output", "json") for _ in range(4)]
                for each in asking:
                    stack.enter_context(each)
                for result in [each.result(60) for each in asking]:
                    self.assertEqual(result.code, 0, result)
                    self.assertEqual(json.loads(result.out)["state"], "ACTIVE")
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)

    def test_who_does_not_wait_is_told_the_step(self):
        with self.job() as job:
            self.wait_for_steps(3)
            result = self.ask("--no-wait")
            self.assertEqual(result.code, 0, result)
            step = int(re.search(r"after step (\d+);", result.out).group(1))
            wait_until(lambda: (self.run_dir / "checkpoints" / f"step-{step}").exists(), 30, "that checkpoint")
            job.signal(signal.SIGTERM)
            job.result()

    def test_watch_tells_of_it(self):
        with self.job() as job:
            self.wait_for_steps(3)
            with start("watch", "--run-dir", self.run_dir, "--output", "json") as watch:
                self.assertTrue(watch.popen.stdout.readline(), "it watches")
                self.assertEqual(self.ask("--reason", "look").code, 0)
                job.signal(signal.SIGTERM)
                job.result()
                told = [json.loads(line) for line in watch.result(30).out.splitlines()]
        checkpoints = [line["event"]["checkpoint"] for line in told if "checkpoint" in line.get("event", {})]
        states = [checkpoint["state"] for checkpoint in checkpoints if checkpoint.get("reason") == "look"]
        self.assertEqual(states, ["CREATING", "ACTIVE"])

    def test_a_disk_that_hangs_holds_no_step_up(self):
        slow = {"LD_PRELOAD": os.environ["FUSEDBUN_SLOW_WORLD"], "FUSEDBUN_TEST_FSYNC_SECONDS": "1"}
        words = ["launch", "-n", 2, "--", *self.train(SPAN, "--checkpoint-every", 0)]
        with start(*words, environment=slow) as job:
            self.wait_for_steps(3)
            result = self.ask("--no-wait", "--output", "json")
            self.assertEqual(result.code, 0, result)
            name = json.loads(result.out)["step"]
            self.wait_for_steps(int(name) + 1)
            done = len(steps(self.run_dir))
            self.wait_for_steps(done + 50)
            self.assertNotIn("last_checkpoint", {k: v for k, v in self.status().items() if v})
            self.assertFalse((self.run_dir / "checkpoints" / f"step-{name}").exists())
            self.assert_fails(self.ask("--timeout", 0.5), 124, "no checkpoint is durable after 0.5 s")
            for pid in tree(job.pid):
                os.kill(pid, signal.SIGKILL)
            job.result()

    def test_where_none_is_saved_it_says_so(self):
        with self.job("--no-checkpoints", "") as job:
            self.wait_for_steps(3)
            self.assert_fails(self.ask(), 78, "saves no checkpoints")
            job.signal(signal.SIGTERM)
            job.result()
        self.assert_fails(self.ask(), 69, "")

    def test_a_disk_that_does_not_take_it_costs_the_run_nothing(self):
        with self.job() as job:
            self.wait_for_steps(3)
            self.assertEqual(self.ask().code, 0)
            before = self.status()["last_checkpoint"]
            # As if somebody had put a file where the folder of the next one goes: no rank can write there.
            checkpoints = self.run_dir / "checkpoints"
            checkpoints.rename(self.run_dir / "away")
            checkpoints.write_text("in the way")
            self.assert_fails(self.ask(), 74, "is not saved")
            status = self.status()
            self.assertIn("checkpoints", status["last_checkpoint_error"])
            self.assertEqual(status["last_checkpoint"], before)
            checkpoints.unlink()
            (self.run_dir / "away").rename(checkpoints)
            self.assertEqual(self.ask().code, 0)
            self.assertNotIn("last_checkpoint_error", {k: v for k, v in self.status().items() if v})
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)


if __name__ == "__main__":
    unittest.main()
