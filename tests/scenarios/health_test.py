"""Health means something: progress is SERVING only while steps finish, and who holds them up is named (K9, P2)."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
from bare_ranks import bare_ranks  # noqa: E402
from job_process import run, wait_until  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402

# Stopped ranks are lost only long after what is looked at here.
PATIENT = ["--heartbeat", "0.1", "--stall-timeout", "0.4", "--lost-timeout", "30"]


class Health(TrainingTestCase):
    def ask(self, *words):
        result = run(*words, "--run-dir", self.run_dir, "--output", "json")
        return json.loads(result.out) if result.out else {}

    def wait_for(self, what, seconds=10, **expected):
        """Until `what` (health or a job's field) answers as expected."""
        def answers():
            said = self.ask("health") if what == "health" else self.ask("status").get("job", {})
            return all(said.get(name) == value for name, value in expected.items())
        wait_until(answers, seconds, f"{what} {expected}")

    def rank(self, number):
        return next(rank for rank in self.ask("ranks")["ranks"] if rank["rank"] == number)

    def test_start_stall_drain_end(self):
        with bare_ranks(2, [*self.train(1_000_000), *PATIENT]) as ranks:
            self.wait_for_steps(5)
            self.wait_for("health", server="SERVING", control="SERVING", progress="SERVING")
            self.assertEqual([self.rank(number)["liveness"] for number in (0, 1)], ["ALIVE", "ALIVE"])

            ranks[1].signal(signal.SIGSTOP)
            self.wait_for("health", server="SERVING", control="SERVING", progress="NOT_SERVING")
            self.wait_for("job", state="DEGRADED")
            late = self.rank(1)
            self.assertEqual((late["liveness"], late["pid"]), ("LATE", str(ranks[1].pid)))
            self.assertGreater(float(late["heartbeat_age"].rstrip("s")), 0.3)
            self.assertIn(late["phase"], ["forward_backward", "reduce_scatter", "agreement", "update", "all_gather",
                                          "step_message"])
            waiting = self.rank(0)
            self.assertEqual(waiting["liveness"], "STALLED")
            self.assertIn(waiting["phase"], ["forward_backward", "reduce_scatter", "agreement", "all_gather",
                                             "step_message"])

            ranks[1].signal(signal.SIGCONT)
            self.wait_for("health", server="SERVING", control="SERVING", progress="SERVING")
            self.wait_for("job", state="RUNNING")
            self.assertEqual(self.rank(1)["liveness"], "ALIVE")

            # Held between two steps, a job that drains says so before it leaves.
            ranks[1].signal(signal.SIGSTOP)
            drained = self.ask("drain", "--reason", "a test")
            self.assertEqual((drained["state"], "a test" in drained["state_reason"]), ("DRAINING", True))
            self.wait_for("health", server="SERVING", control="NOT_SERVING")
            self.assertEqual(run("set", "lr=1e-3", "--run-dir", self.run_dir).code, 69)
            ranks[1].signal(signal.SIGCONT)
            for process in ranks:
                self.assertEqual(process.result(30).code, 75)
        self.assertEqual(run("health", "--run-dir", self.run_dir).code, 69)
        self.assertFalse((self.run_dir / "error.json").exists())


class Watch(TrainingTestCase):
    def test_lines_of_a_live_job(self):
        with bare_ranks(2, [*self.train(1_000_000), *PATIENT]):
            self.wait_for_steps(5)
            self.assertEqual(run("set", "lr=0.00123", "--wait", "--reason", "seen?", "--run-dir", self.run_dir).code, 0)
            shown = run("watch", "--snapshot", "--run-dir", self.run_dir)
            self.assertEqual(shown.code, 0, shown)
            for part in ("RUNNING", "loss ", "lr 0.00123", "tokens/s", "forward and backward", "▲ 1", "seen?", "ALIVE"):
                self.assertIn(part, shown.out)
            self.assertEqual(run("stop", "--wait", "--run-dir", self.run_dir).code, 0)


class PythonClient(TrainingTestCase):
    def test_twenty_lines_change_the_learning_rate_of_a_live_job(self):
        python = os.environ["FUSEDBUN_PYTHON"]
        with tempfile.TemporaryDirectory() as stubs, bare_ranks(2, [*self.train(1_000_000), *PATIENT]) as ranks:
            contract = "fusedbun/control/v1/control.proto"
            subprocess.run([python, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={stubs}",
                            f"--grpc_python_out={stubs}", contract], check=True, timeout=60)
            self.wait_for_steps(5)
            said = subprocess.run(
                [python, ROOT / "tests/dist/control/change_learning_rate.py", self.run_dir, "0.00321"], text=True,
                env=dict(os.environ, PYTHONPATH=stubs), stdout=subprocess.PIPE, check=True, timeout=60).stdout
            first = int(said.split("from step ")[1].split()[0])
            self.wait_for_steps(first + 3)
            ranks[0].signal(signal.SIGTERM)
            for process in ranks:
                self.assertEqual(process.result(30).code, 75)
        used = [line["lr"] for line in steps(self.run_dir)]
        self.assertTrue(all(lr != 0.00321 for lr in used[:first]))
        self.assertTrue(all(lr == 0.00321 for lr in used[first:]))


if __name__ == "__main__":
    unittest.main()
