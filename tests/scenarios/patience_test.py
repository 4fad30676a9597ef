"""A rank that lives may take its time: slow disks, slow data and closed ports cost a job seconds, never the model."""

import json
import os
import signal
import sys
import threading
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import BINARY, run, start  # noqa: E402
from training import TrainingTestCase  # noqa: E402

TIMEOUT = 4  # seconds that a rank would wait for another without heartbeats
# Of each sync, about a dozen in a run; FUSEDBUN_LONG=1 makes it ten minutes in all.
LONG = os.environ.get("FUSEDBUN_LONG") == "1"
SYNC_SECONDS = 60 if LONG else TIMEOUT * 3 // 2 + 1
SLOW_WORLD = {"LD_PRELOAD": os.environ["FUSEDBUN_SLOW_WORLD"]}


class Patience(TrainingTestCase):
    def train_briefly(self, *more):
        return self.train(3, "--timeout", TIMEOUT, *more)

    def test_rank_0_saves_for_three_times_the_timeout(self):
        # The file and its folder are synced one after the other, after the last line of metrics.
        with start("launch", "-n", "2", "--", *self.train_briefly(),
                   environment={**SLOW_WORLD, "FUSEDBUN_TEST_FSYNC_SECONDS": str(SYNC_SECONDS)}) as job:
            self.assert_trained(job.result(90 + 20 * SYNC_SECONDS), 3)
        self.assertGreater(time.time() - (self.run_dir / "metrics.jsonl").stat().st_mtime, 3 * TIMEOUT)
        self.assertFalse((self.run_dir / "error.json").exists())

    @unittest.skipUnless(LONG, "takes minutes: FUSEDBUN_LONG=1")
    def test_a_signal_to_the_launcher_waits_for_the_model(self):
        with start("launch", "-n", "2", "--", *self.train(100_000),
                   environment={**SLOW_WORLD, "FUSEDBUN_TEST_FSYNC_SECONDS": "20"}) as job:
            self.wait_for_steps(3, 300)
            began = time.monotonic()
            job.signal(signal.SIGTERM)
            self.assert_fails(job.result(200), 75, "the model so far is saved")
        self.assertGreater(time.monotonic() - began, 35, "longer than another program's 30 s")
        self.assertTrue((self.run_dir / "model.safetensors").exists())

    def test_rank_1_reads_its_data_for_three_times_the_timeout(self):
        slow = self.folder / "slow-text"
        os.mkfifo(slow)

        def write_late():
            time.sleep(3 * TIMEOUT)
            slow.write_text(self.text.read_text())

        writer = threading.Thread(target=write_late, daemon=True)
        writer.start()
        words = " ".join([BINARY, *self.train_briefly("--data", f"$([ $RANK = 1 ] && echo {slow} || echo {self.text})")])
        with start("launch", "-n", "2", "--", "sh", "-c", f"exec {words}") as job:
            self.assert_trained(job.result(90), 3)
        writer.join()

    def test_a_rank_that_never_ends_reading_hangs_the_job(self):
        endless = self.folder / "endless-text"
        os.mkfifo(endless)
        words = " ".join([BINARY, *self.train_briefly(
            "--hang-timeout", 3, "--data", f"$([ $RANK = 1 ] && echo {endless} || echo {self.text})")])
        with start("launch", "-n", "2", "--grace", "20", "--", "sh", "-c", f"exec {words}") as job:
            self.assert_fails(job.result(60), 124, "(--hang-timeout)", "ranks 0-1 in starting, job step 0")
        error = json.loads((self.run_dir / "error.json").read_text())
        self.assertEqual((error["cause"], error["rank"]), ("hung", None))

    def test_a_port_that_a_firewall_drops_costs_the_heartbeats_and_no_more(self):
        result = run("launch", "-n", "2", "--", *self.train_briefly(),
                     environment={**SLOW_WORLD, "FUSEDBUN_TEST_DROP_HEARTBEATS": "1"})
        self.assert_trained(result, 3)
        self.assertRegex((self.run_dir / "train.log").read_text() + result.err,
                         r"no heartbeats: .*rank 1: no heartbeat connection to rank 0 on .*127\.0\.0\.1 port \d+: no answer")


if __name__ == "__main__":
    unittest.main()
