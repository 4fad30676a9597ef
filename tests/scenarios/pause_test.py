"""A person pauses a running job and resumes it, or has it leave out of the pause: fusedbun pause, resume, drain, stop --force."""

import json
import os
import re
import signal
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import BINARY, MPI_ENVIRONMENT, Process, lives, run, start, tree, wait_until  # noqa: E402
from training import TrainingTestCase, steps_done  # noqa: E402

MPIRUN = [os.environ["FUSEDBUN_MPIRUN"], "-np", "2", "--oversubscribe"]
TORCHRUN = [os.environ["FUSEDBUN_TORCHRUN"], "--standalone", "--no-python", "--nproc-per-node", "2"]
LAUNCHERS = {"launch": ([BINARY, "launch", "-n", "2", "--"], {}), "mpirun": (MPIRUN, MPI_ENVIRONMENT), "torchrun": (TORCHRUN, {})}
SPAN = 100_000  # steps: the job is always ended before its end


class PauseTestCase(TrainingTestCase):
    def ask(self, command, *more):
        return run(command, "--run-dir", self.run_dir, *more)

    def job(self):
        return json.loads(self.ask("status", "--output", "json").out)["job"]

    def paused(self):
        result = self.ask("pause", "--reason", "lunch", "--wait", "--timeout", "60")
        self.assertEqual(result.code, 0, result)
        self.assertRegex(result.out, r"step \d+: pause asked by uid:\d+: lunch; the job is paused")
        return int(re.match(r"step (\d+)", result.out).group(1))


class Pause(PauseTestCase):
    def test_the_ranks_are_held_and_watch_over_one_another_and_the_result_is_the_same(self):
        with start("launch", "-n", "2", "--", *self.train(60, "--run-dir", self.folder / "unpaused")) as whole:
            self.assertEqual(whole.result().code, 0)
        with start("launch", "-n", "2", "--", *self.train(60, "--hang-timeout", "2", "--stall-timeout", "1", "--lost-timeout", "4")) as job:
            self.wait_for_steps(3)
            step = self.paused()
            time.sleep(4)  # twice the hang timeout
            self.assertEqual(self.job()["step"], str(step))
            ranks = json.loads(self.ask("ranks", "--output", "json").out)["ranks"]
            self.assertEqual([(rank["phase"], rank["liveness"]) for rank in ranks], [("paused", "ALIVE")] * 2)
            self.assertTrue(all(float(rank["heartbeat_age"].rstrip("s")) < 3 for rank in ranks), ranks)
            self.assertEqual(self.ask("health").code, 0)
            self.assert_fails(run("checkpoint", "save", "--run-dir", self.run_dir), 69, "paused")
            self.assertEqual(self.ask("resume").code, 0)
            result = job.result()
        self.assertEqual(result.code, 0, result)
        self.assertIn(f"paused before step {step}: pause asked by uid:", result.err + result.out)
        self.assertEqual((self.run_dir / "model.safetensors").read_bytes(), (self.folder / "unpaused" / "model.safetensors").read_bytes())

    def test_a_change_in_a_pause_is_used_after_it(self):
        with start("launch", "-n", "2", "--", *self.train(SPAN)) as job:
            self.wait_for_steps(3)
            step = self.paused()
            changed = self.ask("set", "lr=1e-4")
            self.assertEqual(changed.code, 0, changed)
            used_from = int(re.search(r"used from step (\d+) on", changed.out).group(1))
            self.assertGreaterEqual(used_from, step)
            self.ask("resume")
            self.wait_for_steps(used_from + 2)
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)

    def test_under_every_launcher_it_leaves_out_of_a_pause_when_it_is_told_to(self):
        for name, (words, environment) in LAUNCHERS.items():
            with self.subTest(name):
                self.run_dir = self.folder / name
                with Process(words + ([] if words[0] == BINARY else [BINARY]) + self.train(SPAN), environment) as job:
                    self.wait_for_steps(3)
                    step = self.paused()
                    drained = self.ask("drain", "--wait", "--timeout", "60")
                    self.assertEqual(drained.code, 0, drained)
                    job.result()
                self.assertEqual(json.loads(self.ask("status", "--output", "json").out)["job"]["state"], "STOPPED")
                self.assertEqual(steps_done(self.run_dir), step)
                self.assertTrue((self.run_dir / "model.safetensors").exists())

    def test_a_signal_ends_a_pause(self):
        with start("launch", "-n", "2", "--", *self.train(SPAN)) as job:
            self.wait_for_steps(3)
            self.paused()
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)

    def test_a_rank_that_dies_in_a_pause_is_named(self):
        with start("launch", "-n", "2", "--", *self.train(SPAN)) as job:
            victim = job.ranks(2)[1]
            self.wait_for_steps(3)
            self.paused()
            os.kill(victim, signal.SIGKILL)
            self.assert_fails(job.result(), 137, f"rank 1 (pid {victim} ")


class ByForce(PauseTestCase):
    def test_stop_with_force_ends_every_process_without_saving(self):
        for name, (words, environment) in LAUNCHERS.items():
            with self.subTest(name):
                self.run_dir = self.folder / name
                with Process(words + ([] if words[0] == BINARY else [BINARY]) + self.train(SPAN), environment) as job:
                    self.wait_for_steps(3)
                    ranks = [pid for pid in tree(job.pid) if pid != job.pid]
                    begin = time.monotonic()
                    result = self.ask("stop", "--force", "--reason", "it hangs", "--wait", "--timeout", "20")
                    self.assertEqual(result.code, 0, result)
                    ended = job.result()
                    self.assertLess(time.monotonic() - begin, 10)
                    wait_until(lambda: not any(map(lives, ranks)), 10, "all processes have ended")
                self.assertIn("it hangs; by force, without saving", ended.err + ended.out)
                # A process that leaves without MPI_Finalize is an abnormal end to mpirun, whatever its code.
                self.assertEqual(ended.code, 1 if name == "mpirun" else 0, ended)
                self.assertFalse((self.run_dir / "model.safetensors").exists())
                self.assertFalse((self.run_dir / "control.json").exists())
                record = json.loads(self.ask("status", "--output", "json").out)
                self.assertEqual(record["job"]["state"], "STOPPED")
                self.assertIn("by force", record["job"]["state_reason"])

    def test_a_drain_past_its_deadline_ends_every_process_also_one_that_is_stopped(self):
        with start("launch", "-n", "2", "--", *self.train(SPAN, "--lost-timeout", "60")) as job:
            stopped = job.ranks(2)[1]
            self.wait_for_steps(3)
            os.kill(stopped, signal.SIGSTOP)
            self.assertEqual(self.ask("drain", "--deadline", "1").code, 0)
            result = job.result()
            self.assertFalse(lives(stopped))
        # It cannot obey, so it is killed, and the launcher says so; that the job drained is in its record.
        self.assertEqual(result.code, 137, result)
        self.assertIn("its deadline passed before it had saved", result.err + result.out)
        self.assertEqual(json.loads(self.ask("status", "--output", "json").out)["job"]["state"], "STOPPED")

    def test_a_drain_past_its_deadline_ends_with_75(self):
        with start("launch", "-n", "2", "--", *self.train(SPAN)) as job:
            self.wait_for_steps(3)
            self.assertEqual(self.ask("drain", "--deadline", "0").code, 0)
            self.assertEqual(job.result().code, 75)

    def test_who_leaves_in_time_is_not_ended(self):
        with start("launch", "-n", "2", "--", *self.train(SPAN)) as job:
            self.wait_for_steps(3)
            self.assertEqual(self.ask("drain", "--deadline", "60").code, 0)
            self.assertEqual(job.result().code, 75)
        self.assertTrue((self.run_dir / "model.safetensors").exists())


if __name__ == "__main__":
    unittest.main()
