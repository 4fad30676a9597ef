"""Changes that outlive the process: a file repeats a run bit for bit, and a run that crashed uses them again in their steps."""

import json
import os
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import run, start  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402


class Changes(TrainingTestCase):
    def set(self, *words):
        result = run("set", *words, "--output", "json", "--run-dir", self.run_dir)
        self.assertEqual(result.code, 0, result)
        return json.loads(result.out)

    def used(self):
        """What each step was and used."""
        return [(line["step"], line["loss"], line["lr"], line["grad_norm"]) for line in steps(self.run_dir)]

    def test_a_run_with_live_changes_is_repeated_by_its_file(self):
        # Long enough for three commands, one after the other, on a machine that is busy.
        with start("launch", "-n", "2", "--", *self.train(1500)) as job:
            self.wait_for_steps(5)
            first = self.set("lr=0.00123", "Lambda=0.05")
            self.set("lr_scale=0.5", "--at-step", "1400")
            self.set("unpin_lr=true", "max_grad_norm=0.5")
            self.assertEqual(job.result(240).code, 0)
        live, model = self.used(), (self.run_dir / "model.safetensors").read_bytes()
        self.assertEqual(live[int(first["effective_step"])][2], 0.00123)

        file = self.folder / "changes.toml"
        history = run("history", "--as-toml", "--run-dir", self.run_dir)
        self.assertEqual(history.code, 0, history)
        self.assertEqual(history.out.count("[[changes]]"), 3, history)
        file.write_text(history.out)
        self.run_dir = self.folder / "again"
        self.assert_trained(run("launch", "-n", "2", "--", *self.train(1500, "--changes", file), seconds=240), 1500)
        self.assertEqual(self.used(), live)
        self.assertEqual((self.run_dir / "model.safetensors").read_bytes(), model)

    def test_after_a_crash_changes_apply_again_in_their_steps(self):
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            self.wait_for_steps(5)
            step = int(self.set("lr=0.00123", "--reason", "before the crash")["effective_step"])
            self.wait_for_steps(step + 5)
            for pid in job.ranks(2) + [job.pid]:
                os.kill(pid, signal.SIGKILL)
        before = self.used()
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            self.wait_for_steps(len(before) + step + 5)
            job.signal(signal.SIGTERM)
            result = job.result()
        self.assertEqual(result.code, 75, result)
        self.assertIn("apply again", result.err)
        self.assertEqual(self.used()[len(before):][:step + 5], before[:step + 5])

    def test_a_run_that_diverged_of_a_live_change_is_not_repeated_blindly(self):
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            self.wait_for_steps(5)
            self.set("lr=1e30", "--reason", "a slip")
            self.assertEqual(job.result().code, 78)
        again = run("launch", "-n", "2", "--", *self.train(100_000))
        self.assert_fails(again, 78, "live changes in use", "--changes FILE")
        file = self.folder / "changes.toml"
        file.write_text(run("history", "--as-toml", "--run-dir", self.run_dir).out.replace("1e+30", "0.001"))
        self.assertIn("0.001", file.read_text())
        self.run_dir = self.folder / "again"
        self.assert_trained(run("launch", "-n", "2", "--", *self.train(20, "--changes", file), seconds=120), 20)

    def test_a_file_that_cannot_be_right_ends_the_job_before_its_first_step(self):
        file = self.folder / "changes.toml"
        for text, code, part, more in (
                ("[[changes]]\nat_step = 1\nlrr = 1\n", 78, ":3: changes[1]: there is no", []),
                ("[[changes]]\nat_step = 1\nlr = 1\ngroup = \"nobody\"\n", 78, "nobody", ["--no-control"]),
                ("[[changes]]\nat_step = 1\nmax_grad_norm = 1\n", 78, "step_in_backward",
                 ["--step-in-backward", "--clip", "0", "--propagate-nonfinite"]),
                ("[[changes]\n", 64, ":1: ", [])):
            file.write_text(text)
            words = [*self.train(3, "--changes", file), *more]
            self.assert_fails(run("launch", "-n", "2", "--", *words), code, f"{file}", part)
        self.assertEqual(steps(self.run_dir), [])

    def test_a_file_needs_no_control_plane(self):
        file = self.folder / "changes.toml"
        file.write_text("[[changes]]\nat_step = 0\nlr = 0.5\n[[changes]]\nat_step = 4\nlr = 0.25\n")
        self.assert_trained(run("launch", "-n", "2", "--", *self.train(6, "--changes", file), "--no-control"), 6)
        self.assertEqual([line["lr"] for line in steps(self.run_dir)], [0.5] * 4 + [0.25] * 2)


if __name__ == "__main__":
    unittest.main()
