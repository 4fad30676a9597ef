"""What a run has learned is never thrown away: full disks, names of folders, folders used twice, and what is known after the end."""

import contextlib
import json
import os
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import Process, BINARY, run, start, wait_until  # noqa: E402
from small_disk import CannotMount, empty, fill, small_disk  # noqa: E402
from training import TrainingTestCase, metrics, steps  # noqa: E402


class SmallDisk(TrainingTestCase):
    """A file system of a few MiB of its own."""

    def setUp(self):
        super().setUp()
        self.disk = self.folder / "disk"
        self.disk.mkdir()
        self.mounted = contextlib.ExitStack()
        try:
            self.mounted.enter_context(small_disk(self.disk, 4))
        except CannotMount as error:
            self.skipTest(str(error))
        self.addCleanup(self.mounted.close)
        self.run_dir = self.disk / "run"

    def step(self):
        status = run("status", "--run-dir", self.run_dir, "--output", "json")
        self.assertEqual(status.code, 0, status)
        return int(json.loads(status.out)["job"]["step"])

    def test_a_full_disk_costs_lines_of_metrics_and_nothing_else(self):
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            self.wait_for_steps(3)
            fill(self.disk)
            full = self.step()
            wait_until(lambda: self.step() > full + 50, 60, "the run to go on")
            lines = len(steps(self.run_dir))
            empty(self.disk)
            self.wait_for_steps(lines + 5)
            job.signal(signal.SIGTERM)
            result = job.result()
        self.assert_fails(result, 75, "left before the last step")
        self.assertEqual(result.err.count("cannot write " + str(self.run_dir / "metrics.jsonl")), 1, result)
        self.assertIn("lines were lost", result.out)
        self.assertTrue((self.run_dir / "model.safetensors").exists())
        for line in (self.run_dir / "metrics.jsonl").read_text().splitlines():
            json.loads(line)

    def test_a_full_disk_never_costs_the_model(self):
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            self.wait_for_steps(3)
            fill(self.disk)
            job.signal(signal.SIGTERM)
            lines = []
            while "saving is tried again" not in "".join(lines[-1:]):
                lines.append(job.popen.stderr.readline())
                self.assertTrue(lines[-1], lines)
            self.assertFalse((self.run_dir / "model.safetensors").exists())
            empty(self.disk)
            result = job.result()
        self.assertEqual(result.code, 75, result)
        self.assertTrue((self.run_dir / "model.safetensors").exists())
        self.assertEqual([path.name for path in self.run_dir.iterdir() if ".tmp" in path.name], [])

    def test_stop_leaves_without_the_model(self):
        with start(*self.train(100_000)) as job:
            self.wait_for_steps(3)
            fill(self.disk)
            job.signal(signal.SIGTERM)
            while "saving is tried again" not in (line := job.popen.stderr.readline()):
                self.assertTrue(line)
            self.assertEqual(run("stop", "--run-dir", self.run_dir).code, 0)
            self.assert_fails(job.result(), 75, "left without saving the model, as told")

    def test_the_model_is_saved_in_another_place_that_is_named_meanwhile(self):
        model = self.folder / "another disk" / "model.safetensors"
        save_to = ["save-to", model, "--run-dir", self.run_dir]
        self.assert_fails(run(*save_to), 69, "no run is going on")
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            self.wait_for_steps(3)
            self.assert_fails(run(*save_to), 78, f"{model.parent} is no folder")
            fill(self.disk)
            job.signal(signal.SIGTERM)
            while "saving is tried again" not in (line := job.popen.stderr.readline()):
                self.assertTrue(line)
            model.parent.mkdir()
            self.assertEqual(run(*save_to).code, 0)
            result = job.result()
        self.assert_fails(result, 75, "the model so far is saved")
        self.assertIn(f"model              {model}", result.out)
        self.assertGreater(model.stat().st_size, 0)
        self.assert_fails(run(*save_to), 69, "no run is going on")

    def test_a_model_that_cannot_fit_is_refused_before_training(self):
        result = run("launch", "-n", "2", "--", *self.train(5, "--width", "256", "--layers", "2"))
        self.assert_fails(result, 74, "model.safetensors: it will take", "make room")
        self.assertEqual(steps(self.run_dir), [])

    def test_a_trace_that_does_not_fit_costs_itself_alone(self):
        with start(*self.train(100_000, "--trace", self.disk / "trace.json")) as job:
            self.wait_for_steps(3)
            model = self.folder / "elsewhere.safetensors"
            job.signal(signal.SIGTERM)
            job.result()
        with start(*self.train(100_000, "--trace", self.disk / "trace.json", "--save", model, "--run-dir", self.folder / "run")) as job:
            self.run_dir = self.folder / "run"
            self.wait_for_steps(3)
            fill(self.disk)
            job.signal(signal.SIGTERM)
            result = job.result()
        self.assert_fails(result, 75, "left before the last step")
        self.assertIn("the run ends without its trace", result.err)
        self.assertTrue(model.exists())


class Names(TrainingTestCase):
    def test_a_run_folder_may_have_any_name(self):
        for name in ("a%20b", "run#1", "what?x=1", "lr=0.1,wd=0.01", "two words", "x" * 120):
            with self.subTest(name=name):
                self.run_dir = self.folder / name
                with start(*self.train(100_000)) as job:
                    self.wait_for_steps(2)
                    result = run("set", "lr=0.01", "--run-dir", self.run_dir)
                    self.assertEqual(result.code, 0, result)
                    result = run("stop", "--wait", "--run-dir", self.run_dir)
                    self.assertEqual(result.code, 0, result)
                    self.assertEqual(job.result().code, 0)


class UsedTwice(TrainingTestCase):
    def test_a_finished_run_is_not_touched_without_overwrite(self):
        self.assert_trained(run(*self.train(3)), 3)
        before = {path.name: path.read_bytes() for path in self.run_dir.iterdir() if path.name != "run.lock"}
        self.assert_fails(run("launch", "-n", "2", "--", *self.train(4)), 78, "holds a finished run (SUCCEEDED after 3 steps)",
                          "--overwrite")
        self.assertEqual({path.name: path.read_bytes() for path in self.run_dir.iterdir() if path.name != "run.lock"}, before)
        self.assert_trained(run(*self.train(4, "--overwrite", "")), 4)

    def leave_early(self, *flags):
        with start(*self.train(100_000), *flags) as job:
            self.wait_for_steps(3)
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)
        return json.loads((self.run_dir / "run.json").read_text())["attempts"][-1]["steps"]

    def test_an_attempt_that_left_early_goes_on_where_it_was(self):
        steps = self.leave_early()
        result = run(*self.train(steps + 3))
        self.assertEqual(result.code, 0, result)
        self.assertIn(f"this one goes on after step {steps}, from ", result.err)
        self.assertIn(f"the schedule is another from here on: --steps (100000, here {steps + 3})", result.err)
        states = [attempt["state"] for attempt in json.loads((self.run_dir / "run.json").read_text())["attempts"]]
        self.assertEqual(states, ["DRAINED", "SUCCEEDED"])
        told = [(line["attempt"], line["step"]) for line in metrics(self.run_dir) if "loss" in line]
        self.assertEqual(told[steps - 1 :], [(1, steps - 1), (2, steps), (2, steps + 1), (2, steps + 2)])

    def test_a_run_of_other_samples_is_not_gone_on_with(self):
        self.leave_early()
        self.assert_fails(run(*self.train(100), "--seed", "7"), 78, "--seed (1, here 7)", "--overwrite")
        self.assert_trained(run(*self.train(4, "--overwrite", "", "--seed", "7")), 4)

    def test_a_finished_run_is_gone_on_with_in_a_sentence(self):
        self.assert_trained(run(*self.train(3)), 3)
        before = (self.run_dir / "model.safetensors").read_bytes()
        result = run(*self.train(3), "--resume")
        self.assertEqual(result.code, 0, result)
        self.assertIn("is SUCCEEDED after 3 steps, and nothing is left to do", result.err)
        self.assertEqual((self.run_dir / "model.safetensors").read_bytes(), before)

    def test_without_a_checkpoint_an_attempt_starts_at_step_0_and_says_so(self):
        self.leave_early("--no-checkpoints")
        self.assertFalse((self.run_dir / "checkpoints").exists())
        result = run(*self.train(3))
        self.assertEqual(result.code, 0, result)
        self.assertIn("this one starts from step 0, since there is no checkpoint", result.err)
        states = [attempt["state"] for attempt in json.loads((self.run_dir / "run.json").read_text())["attempts"]]
        self.assertEqual(states, ["DRAINED", "SUCCEEDED"])

    def test_two_jobs_with_one_save_both_keep_their_model(self):
        model = self.folder / "model.safetensors"
        first = self.train(100_000, "--save", model, "--run-dir", self.folder / "first")
        second = self.train(100_000, "--save", model, "--run-dir", self.folder / "second", "--seed", "2")
        with start(*first) as one, start(*second) as two:
            for run_dir in ("first", "second"):
                self.run_dir = self.folder / run_dir
                self.wait_for_steps(2)
            one.signal(signal.SIGTERM)
            self.assertEqual(one.result().code, 75)
            kept = model.read_bytes()
            two.signal(signal.SIGTERM)
            result = two.result()
            self.assertEqual(result.code, 75, result)
        self.assertEqual(model.read_bytes(), kept)
        (beside,) = self.folder.glob("model-*.safetensors")
        self.assertIn(beside.name, result.out)
        self.assertEqual(json.loads((self.folder / "second" / "run.json").read_text())["attempts"][0]["model"], str(beside))


class AfterTheEnd(TrainingTestCase):
    def status(self):
        result = run("status", "--run-dir", self.run_dir, "--output", "json")
        self.assertEqual(result.code, 0, result)
        return json.loads(result.out)

    def test_status_and_history_answer(self):
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            self.wait_for_steps(2)
            for words in (["lr=0.01", "--reason", "used"], ["lr=0.02", "--at-step", "90000", "--reason", "never"]):
                self.assertEqual(run("set", *words, "--run-dir", self.run_dir).code, 0)
            self.wait_for_steps(len(steps(self.run_dir)) + 10)
            self.assertEqual(run("stop", "--run-dir", self.run_dir).code, 0)
            self.assertEqual(job.result().code, 0)
        status = self.status()
        self.assertEqual((status["job"]["state"], status["run"]["exit_code"]), ("STOPPED", 0))
        self.assertEqual(int(status["job"]["step"]), len(steps(self.run_dir)))
        self.assertEqual(status["run"]["flags"]["--layers"], "1")
        self.assertEqual(status["run"]["flags"]["--accumulate"], "1")
        self.assertEqual(status["run"]["flags"]["--overwrite"], "false")
        self.assertIn("lr=0.003 ", status["run"]["optimizer"])
        self.assertIn("--steps", status["run"]["command"])
        self.assertIn("torch", status["run"]["versions"])
        self.assertEqual((status["run"]["seed"], status["run"]["world_size"]), (1, 2))
        self.assertRegex(run("status", "--run-dir", self.run_dir).out, r"state +STOPPED")
        changes = json.loads(run("history", "--run-dir", self.run_dir, "--output", "json").out)["changes"]
        self.assertEqual([(change["state"], change["reason"]) for change in changes], [("APPLIED", "used"), ("REJECTED", "never")])
        table = run("history", "--run-dir", self.run_dir).out
        self.assertRegex(table, r"1 +\d+ +APPLIED .* lr=0.01 +used")

    def test_every_end_is_known(self):
        self.run_dir = self.folder / "failed"
        self.assertEqual(run(*self.train(50, "--optimizer", "adamw", "--lr", "1e30", "--warmup", "0")).code, 78)
        failed = self.status()
        self.assertEqual((failed["job"]["state"], failed["run"]["exit_code"]), ("FAILED", 78))
        self.assertIn("the loss became", failed["job"]["state_reason"])
        self.run_dir = self.folder / "killed"
        with start(*self.train(100_000)) as job:
            self.wait_for_steps(3)
            job.signal(signal.SIGKILL)
            job.result()
        killed = self.status()
        self.assertEqual(killed["job"]["state"], "FAILED")
        self.assertGreaterEqual(int(killed["job"]["step"]), 3)
        self.run_dir = self.folder / "never"
        self.assertEqual(run("status", "--run-dir", self.run_dir).code, 69)


class PoorFileSystem(TrainingTestCase):
    """One without locks, second names, sockets and synced folders, as some that clusters and containers have."""

    def test_a_job_runs_there_and_is_reached(self):
        runtime = self.folder / "runtime"  # for the socket
        runtime.mkdir(mode=0o700)
        poor = self.folder / "poor"
        environment = {"LD_PRELOAD": os.environ["FUSEDBUN_SLOW_WORLD"], "FUSEDBUN_TEST_POOR_FOLDER": str(poor),
                       "XDG_RUNTIME_DIR": str(runtime)}
        self.run_dir = poor / "trained"
        self.assert_trained(run("launch", "-n", "2", "--", *self.train(3), environment=environment), 3)
        self.run_dir = poor / "killed"
        with start("launch", "-n", "2", "--", *self.train(100_000), environment=environment) as job:
            self.wait_for_steps(3)
            status = run("status", "--run-dir", self.run_dir, "--output", "json")
            self.assertEqual(json.loads(status.out)["job"]["state"], "RUNNING", status)
            os.kill(job.ranks(2)[1], signal.SIGKILL)
            result = job.result()
        self.assertNotEqual(result.code, 0)
        self.assertIn(f"the file system of {self.run_dir} has no locks (Function not implemented)", result.err)
        error = json.loads((self.run_dir / "error.json").read_text())
        self.assertEqual((error["rank"], error["cause"]), (1, "gone"))
        self.assertEqual([path.name for path in self.run_dir.glob("*.tmp")], [])


class Start(TrainingTestCase):
    def test_a_model_with_nan_or_inf_is_refused(self):
        self.assert_trained(run(*self.train(2)), 2)
        good = (self.run_dir / "model.safetensors").read_bytes()
        bad = self.folder / "bad.safetensors"
        for value in (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff"):  # NaN, -inf
            bad.write_bytes(good[:-4] + value)
            for words in (["launch", "-n", "2", "--"], []):
                self.run_dir = self.folder / "refused"
                self.assert_fails(run(*words, *self.train(2, "--init", bad)), 78, "holds NaN or inf", str(bad))
                self.assertFalse((self.run_dir / "model.safetensors").exists())

    def test_closed_streams_do_not_end_in_files(self):
        with Process(["sh", "-c", 'exec "$0" "$@" >&- 2>&-', BINARY, *self.train(3)]) as job:
            self.assertEqual(job.result().code, 0)
        self.assertRegex((self.run_dir / "run.lock").read_text(), r"^pid \d+ on host \S+\n$")
        for path in self.run_dir.iterdir():
            if path.name != "train.log":
                self.assertNotIn(b"tokens/s  ", path.read_bytes(), path.name)


if __name__ == "__main__":
    unittest.main()
