"""One binary under `fusedbun launch`, the real mpirun and the real torchrun."""

import json
import os
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import BINARY, MPI_ENVIRONMENT, Process, lives, run, start, wait_until  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402

MPIRUN = [os.environ["FUSEDBUN_MPIRUN"], "-np", "2", "--oversubscribe"]
TORCHRUN = [os.environ["FUSEDBUN_TORCHRUN"], "--standalone", "--no-python", "--nproc-per-node", "2"]


class Launchers(TrainingTestCase):
    def test_alone(self):
        self.assert_trained(run(*self.train(5)), 5)

    def test_launch(self):
        self.assert_trained(run("launch", "-n", "2", "--", *self.train(5)), 5)
        self.assertLess(steps(self.run_dir)[-1]["loss"], steps(self.run_dir)[0]["loss"])

    @unittest.skipIf(not MPIRUN[0], "this build has no Open MPI")
    def test_mpirun(self):
        with Process(MPIRUN + [BINARY, *self.train(5)], MPI_ENVIRONMENT) as job:
            self.assert_trained(job.result(), 5)
        self.assertIn("mpi: Open MPI started this job", (self.run_dir / "train.log").read_text())

    @unittest.skipIf(not MPIRUN[0], "this build has no Open MPI")
    def test_mpirun_with_gloo(self):
        with Process(MPIRUN + [BINARY, *self.train(3, "--backend", "gloo")], MPI_ENVIRONMENT) as job:
            self.assert_trained(job.result(), 3)

    def test_torchrun(self):
        with Process(TORCHRUN + [BINARY, *self.train(5)]) as job:
            self.assert_trained(job.result(120), 5)
        self.assertIn("gloo", (self.run_dir / "train.log").read_text())

    def test_three_ranks_and_a_batch_that_they_share(self):
        self.assert_trained(run("launch", "-n", "3", "--", *self.train(3, "--batch", "6")), 3)


class Identity(unittest.TestCase):
    def test_env_names_the_launcher_and_what_it_ignores(self):
        slurm = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "9"}
        result = run("launch", "--", "env", "--output", "json", environment=slurm)
        said = json.loads(result.out)
        self.assertEqual(said["identity"]["launcher"], "torchrun")
        self.assertIn("Slurm: rank 3 of 8", said["identity"]["ignored"][0])
        self.assertFalse(said["identity"]["agent_serves_store"])
        self.assertEqual(said["backend"]["cpu"]["auto"], "local")
        self.assertGreaterEqual(said["cores"], 1)

    @unittest.skipIf(not MPIRUN[0], "this build has no Open MPI")
    def test_env_under_mpirun_takes_mpi(self):
        with Process(MPIRUN + [BINARY, "env"], MPI_ENVIRONMENT) as job:
            result = job.result()
        self.assertEqual(result.code, 0, result)
        self.assertIn("rank 1 of 2", result.out)
        self.assertIn("takes mpi: Open MPI started this job", result.out)


class Leaving(TrainingTestCase):
    def test_a_signal_drains_the_job_on_all_ranks(self):
        for number in (signal.SIGTERM, signal.SIGUSR1):
            with self.subTest(number=number):
                self.run_dir = self.folder / number.name
                with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
                    self.wait_for_steps(3)
                    job.signal(number)
                    result = job.result()
                self.assert_fails(result, 75, "left before the last step as asked")
                self.assertTrue((self.run_dir / "model.safetensors").exists())

    def test_a_killed_launcher_leaves_no_rank_behind(self):
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            ranks = job.ranks(2)
            self.wait_for_steps(2)
            job.signal(signal.SIGKILL)
            wait_until(lambda: not any(lives(pid) for pid in ranks), 5, "the ranks to end")


if __name__ == "__main__":
    unittest.main()
