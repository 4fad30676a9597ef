"""Jobs under a real Slurm of two hosts: ranks of srun find one another without any variable set by hand, and deploy/slurm/train.sbatch saves,
is requeued and goes on, to the bits of the run that was not disturbed."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import slurm_cluster  # noqa: E402
from hosts import Hosts  # noqa: E402
from job_process import BINARY, wait_until  # noqa: E402
from training import TrainingTestCase, metrics, steps  # noqa: E402

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "slurm" / "train.sbatch"
WHY_NOT = slurm_cluster.missing()


@unittest.skipIf(WHY_NOT, WHY_NOT)
class Slurm(TrainingTestCase):
    @classmethod
    def setUpClass(cls):
        folder = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="fusedbun-slurm-"))
        cls.slurm = cls.enterClassContext(slurm_cluster.SlurmCluster(cls.enterClassContext(Hosts(2)), folder))

    def flags(self, count, *more):
        """The flags of a training, without the run folder, which is the job's."""
        words = self.train(count, *more)
        at = words.index("--run-dir")
        return words[1:at] + words[at + 2:]

    def submit(self, *flags):
        """Submits train.sbatch from self.folder. Returns the job and its run folder."""
        out = self.slurm.command("sbatch", "--parsable", "--ntasks-per-node=2", "--cpus-per-task=1", f"--chdir={self.folder}", SCRIPT, *flags,
                                 environment={"FUSEDBUN": BINARY}).stdout
        job = int(out)
        self.run_dir = self.folder / "runs" / f"slurm-{job}"
        return job

    def log(self):
        return "".join(path.read_text() for path in self.folder.glob("slurm-fusedbun-*.log"))

    def test_ranks_of_srun_find_one_another(self):
        words = self.train(5)
        done = self.slurm.command("srun", "--nodes=2", "--ntasks-per-node=2", "--label", BINARY, *words, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(steps(self.run_dir)), 5)
        self.assertIn("ranks: 4, ", done.stderr)
        # On one host, over PMIx too.
        for flags in (["--nodes=1"], ["--nodes=2", "--mpi=pmix"]):
            with self.subTest(flags=flags):
                done = self.slurm.command("srun", *flags, "--ntasks=2", BINARY, *words, "--overwrite", check=False)
                self.assertEqual(done.returncode, 0, done.stderr)

    def wait_for_requeue(self, job, number):
        try:
            wait_until(lambda: f"requeue {number} of at most 50" in self.log(), 60, "a requeue")
        except AssertionError as late:
            self.fail(f"{late}: {self.slurm.state(job)}, after {len(steps(self.run_dir))} steps\n{self.log()}")

    def kill_a_rank(self, job):
        rank = subprocess.run(["pgrep", "-n", "-f", f"{BINARY} train .*slurm-{job}"], capture_output=True, text=True, check=True).stdout
        os.kill(int(rank), signal.SIGKILL)

    def newest_checkpoint(self):
        return max((int(path.name[5:]) for path in (self.run_dir / "checkpoints").glob("step-*") if path.name[5:].isdigit()), default=0)

    def test_the_script_saves_in_time_is_requeued_and_goes_on(self):
        whole = self.submit(*self.flags(300, "--seed", 3))
        self.slurm.wait_for(whole, "COMPLETED")
        expected = (self.run_dir / "model.safetensors").read_bytes()

        job = self.submit(*self.flags(300, "--seed", 3, "--checkpoint-every", 20))
        self.wait_for_steps(50)
        self.slurm.command("scancel", "--signal=USR1", str(job))  # as --signal=USR1@300 does when the time is nearly up
        self.wait_for_requeue(job, 1)
        saved = self.newest_checkpoint()
        wait_until(lambda: self.newest_checkpoint() > saved, 90, "a checkpoint of the second attempt")
        self.kill_a_rank(job)
        self.wait_for_requeue(job, 2)
        self.slurm.wait_for(job, "COMPLETED")
        self.assertEqual((self.run_dir / "model.safetensors").read_bytes(), expected)
        attempts = {line["attempt"] for line in metrics(self.run_dir) if "attempt" in line}
        self.assertRegex(self.log(), r"left with 75: requeue 1")
        self.assertRegex(self.log(), r"left with (76|137): requeue 2")  # of killed and lost ranks the first to be noticed
        self.assertRegex(self.log(), r"goes on after step \d+")
        self.assertEqual(attempts, {1, 2, 3})

    def test_a_rank_that_is_killed_before_there_is_a_checkpoint_ends_the_job(self):
        job = self.submit(*self.flags(1_000_000))
        self.wait_for_steps(20)
        self.kill_a_rank(job)
        self.slurm.wait_for(job, "FAILED")
        self.assertNotIn("requeue", self.log())

    def test_a_cancelled_job_leaves_a_checkpoint_and_does_not_come_back(self):
        job = self.submit(*self.flags(1_000_000))
        self.wait_for_steps(20)
        self.slurm.command("scancel", str(job))
        self.slurm.wait_for(job, "CANCELLED")
        wait_until(lambda: list((self.run_dir / "checkpoints").glob("*")), 20, "a checkpoint")
        self.assertNotIn("requeue", self.log())
        self.assertTrue(re.search(r"checkpoint", self.log()), self.log())


if __name__ == "__main__":
    unittest.main()
