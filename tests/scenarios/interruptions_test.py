"""What stops a whole job for a while changes nothing: a suspended laptop, a disk that stalls.

FUSEDBUN_LONG=1 waits as long as it takes in life: ten minutes of stalled writing, a minute of suspension.
"""

import os
import signal
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import children, start  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402

IS_LONG = os.environ.get("FUSEDBUN_LONG") == "1"
SLOW_WORLD = {"LD_PRELOAD": os.environ["FUSEDBUN_SLOW_WORLD"]}
LOST = 2  # seconds without a heartbeat after which a rank is lost, in the short form; else the default's 10


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

    def test_a_save_that_stalls_is_waited_for(self):
        stalls = 300 if IS_LONG else 2 * LOST  # the file and its folder are synced one after the other
        with start("launch", "-n", "2", "--grace", "2000", "--", *self.train_for_long("--steps", 3, "--timeout", 4),
                   environment={**SLOW_WORLD, "FUSEDBUN_TEST_FSYNC_SECONDS": str(stalls)}) as job:
            self.assert_trained(job.result(90 + 3 * stalls), 3)


if __name__ == "__main__":
    unittest.main()
