"""What stops a whole job for a while changes nothing: a suspended laptop, a clock that is set back.

FUSEDBUN_LONG=1 waits as long as it takes in life: a minute of suspension.
"""

import datetime
import json
import os
import signal
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import children, run, start, wait_until  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402

IS_LONG = os.environ.get("FUSEDBUN_LONG") == "1"
SLOW_WORLD = {"LD_PRELOAD": os.environ["FUSEDBUN_SLOW_WORLD"]}
LOST = 2  # seconds without a heartbeat after which a rank is lost, in the short form; else the default's 10


def samples(told):
    return [line for line in told.read_text().splitlines() if '"sample"' in line]


class Interruptions(TrainingTestCase):
    def train_for_long(self, *more):
        watch = () if IS_LONG else ("--heartbeat", "0.1", "--stall-timeout", "0.4", "--lost-timeout", LOST)
        return self.train(1_000_000, *watch, *more)

    def assert_goes_on_and_drains(self, job, count=5):
        self.wait_for_steps(len(steps(self.run_dir)) + count)
        job.signal(signal.SIGTERM)
        result = job.result(60)
        self.assertEqual(result.code, 75, result)
        self.assertTrue((self.run_dir / "model.safetensors").exists())
        self.assertFalse((self.run_dir / "error.json").exists())
        self.assertEqual([line["step"] for line in steps(self.run_dir)], list(range(len(steps(self.run_dir)))))

    def test_all_ranks_are_stopped_for_longer_than_a_lost_rank_is_waited_for(self):
        with start("launch", "-n", "2", "--", *self.train_for_long()) as job:
            self.wait_for_steps(3)
            ranks = children(job.pid)
            self.assertEqual(len(ranks), 2)
            for pid in ranks:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(60 if IS_LONG else 2 * LOST)
            for pid in ranks:
                os.kill(pid, signal.SIGCONT)
            self.assert_goes_on_and_drains(job)

    def test_a_clock_that_is_set_back_by_an_hour(self):
        if run("stop", "--help").code != 0:
            self.skipTest("this build has no control plane")
        back = self.folder / "back"
        with start("launch", "-n", "2", "--", *self.train_for_long(),
                   environment={**SLOW_WORLD, "FUSEDBUN_TEST_CLOCK_BACK": str(back)}) as job:
            self.wait_for_steps(3)
            told = self.folder / "told"
            with told.open("w") as file, start("watch", "--run-dir", self.run_dir, "--output", "json",
                                               streams={"stdout": file, "stderr": file}):
                wait_until(lambda: samples(told), 60, "the first sample")
                now = time.time()
                back.touch()
                for word in ("lr=0.002", "lr=0.001"):
                    result = run("set", word, "--run-dir", self.run_dir)
                    self.assertEqual(result.code, 0, result)
                count = len(samples(told))
                wait_until(lambda: len(samples(told)) > count + 3, 60, "watch to go on telling")
            self.assert_goes_on_and_drains(job)
        changes = json.loads(run("history", "--run-dir", self.run_dir, "--output", "json").out)["changes"]
        self.assertEqual([change["state"] for change in changes], ["APPLIED", "APPLIED"])
        for change in changes:
            made = datetime.datetime.fromisoformat(change["create_time"]).timestamp()
            self.assertLess(made, now - 3000, "the clock was not set back")


if __name__ == "__main__":
    unittest.main()
