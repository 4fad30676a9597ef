"""The control plane of a live job: status, health, and a change that all ranks use from one step on."""

import json
import re
import signal
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import run, start  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402


class Control(TrainingTestCase):
    def command(self, *words):
        return run(*words, "--run-dir", self.run_dir)

    def test_a_change_is_used_from_one_step_on(self):
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            self.wait_for_steps(3)
            result = self.command("set", "lr=0.00123", "--reason", "a test", "--wait", "--output", "json")
            self.assertEqual(result.code, 0, result)
            change = json.loads(result.out)
            first = int(change["effective_step"])
            self.wait_for_steps(first + 5)
            job.signal(signal.SIGTERM)
            # Ranks that switched at different steps would hold different digests and exit with 79.
            self.assertEqual(job.result().code, 75)
        lines = steps(self.run_dir)
        self.assertTrue(all(line["revision"] == 0 for line in lines[:first]))
        self.assertTrue(all(line["lr"] != 0.00123 for line in lines[:first]))
        self.assertTrue(all((line["lr"], line["revision"]) == (0.00123, 1) for line in lines[first:]))
        self.assertEqual(change["reason"], "a test")

    def test_status_and_health(self):
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            self.wait_for_steps(3)
            status = json.loads(self.command("status", "--output", "json").out)
            self.assertEqual((status["job"]["state"], status["job"]["world_size"]), ("RUNNING", 2))
            self.assertGreaterEqual(int(status["job"]["step"]), 3)
            self.assertRegex(self.command("status").out, r"state +RUNNING")
            health = self.command("health")
            self.assertEqual(health.code, 0, health)
            self.assertEqual(len(re.findall(r"\bSERVING", health.out)), 3)
            job.signal(signal.SIGTERM)
            job.result()
        self.assertEqual(self.command("health").code, 69)
        self.assertRegex(self.command("status").out, r"state +DRAINED")

    def test_what_is_refused_changes_nothing(self):
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            self.wait_for_steps(2)
            self.assert_fails(self.command("set", "lr=nan"), 78, "learning_rate")
            self.assert_fails(self.command("set", "lrr=1"), 64, "lrr")
            self.assert_fails(self.command("set", "lr=1", "--group", "nobody"), 78, "nobody")
            self.assertEqual(self.command("set", "lr=0.5", "--dry-run").code, 0)
            self.wait_for_steps(len(steps(self.run_dir)) + 5)
            job.signal(signal.SIGTERM)
            job.result()
        self.assertTrue(all(line["revision"] == 0 for line in steps(self.run_dir)))

    def test_over_tls_roles_decide(self):
        script = Path(__file__).resolve().parents[2] / "deploy" / "control_certificates.sh"
        credentials = self.folder / "credentials"
        subprocess.run([script, credentials], check=True, stdout=subprocess.DEVNULL)
        words = self.train(100_000, "--control", "127.0.0.1:0", "--control-credentials", credentials)
        with start("launch", "-n", "2", "--", *words) as job:
            self.wait_for_steps(3)
            owner = json.loads(self.command("set", "lr=0.5", "--output", "json").out)
            self.assertEqual(owner["actor"], "fusedbun://credentials/admin")
            address = json.loads((self.run_dir / "control.json").read_text())["address"]
            viewer = ["--address", address, "--credentials", credentials / "viewer"]
            self.assertEqual(run("status", *viewer).code, 0)
            self.assert_fails(run("set", "lr=0.25", *viewer), 77, "requires the role operator")
            self.assert_fails(run("status", "--address", address), 69, address)
            job.signal(signal.SIGTERM)
            job.result()

    def test_a_port_of_loopback_serves_who_may_read_the_run_folder(self):
        with start("launch", "-n", "2", "--", *self.train(100_000, "--control", "127.0.0.1:0")) as job:
            self.wait_for_steps(3)
            self.assertEqual(self.command("set", "lr=0.5").code, 0)
            address = json.loads((self.run_dir / "control.json").read_text())["address"]
            self.assert_fails(run("set", "lr=0.25", "--address", address), 77, "token")
            self.assert_fails(run("stop", "--address", address), 77, "token")
            another_jobs = {"FUSEDBUN_TOKEN": "0" * 32}
            self.assert_fails(run("stop", "--address", address, environment=another_jobs), 77, "token")
            self.assertEqual(run("status", "--run-dir", self.run_dir, environment=another_jobs).code, 0)
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)

    def test_all_interfaces_over_tls_with_the_owners_own_commands(self):
        script = Path(__file__).resolve().parents[2] / "deploy" / "control_certificates.sh"
        credentials = self.folder / "credentials"
        subprocess.run([script, credentials], check=True, stdout=subprocess.DEVNULL)
        for address in ("0.0.0.0:0", "[::]:0"):
            with self.subTest(address):
                self.run_dir = self.folder / address
                words = self.train(100_000, "--control", address, "--control-credentials", credentials)
                with start(*words) as job:
                    self.wait_for_steps(3)
                    for command in ("status", "health", "ranks", "history"):
                        self.assertEqual(self.command(command).code, 0, command)
                    stopped = self.command("stop", "--wait")
                    self.assertEqual(stopped.code, 0, stopped)
                    self.assertEqual(job.result().code, 0)

    def test_what_others_wrote_cannot_steer_the_terminal(self):
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            self.wait_for_steps(2)
            evil = "\x1b]0;owned\x07\x9b31m\u202e\nfusedbun: nothing was changed"
            asked = self.command("set", "lr=0.5", "--wait", "--reason", evil)
            self.assertIn(asked.code, (0, 78), asked)  # a job may refuse such a reason in the first place
            answers = [self.command(*words) for words in (["history"], ["watch", "--snapshot"], ["status"])]
            if asked.code == 0:
                self.assertTrue(any("owned" in answer.out for answer in answers), answers)
            job.signal(signal.SIGTERM)
            job.result()
        for answer in answers:
            self.assertEqual(answer.code, 0, answer)
            self.assertIsNone(re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", answer.out), answer)
            self.assertNotRegex(answer.out, "(?m)^fusedbun: nothing was changed")


if __name__ == "__main__":
    unittest.main()
