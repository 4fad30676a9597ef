"""`fusedbun launch` over two hosts by the engines of others: Open MPI's mpirun over sshd, and torchrun's rendezvous."""

import os
import shutil
import time
import unittest

from cluster_case import ClusterTestCase, SshCluster
from job_process import run
from training import TrainingTestCase, steps

MPIRUN = os.environ["FUSEDBUN_MPIRUN"]
TORCHRUN = os.environ["FUSEDBUN_TORCHRUN"]


def on_path(program):
    return {"PATH": f"{os.path.dirname(program)}:{os.environ['PATH']}"}


@unittest.skipIf(not MPIRUN, "this build has no Open MPI")
@unittest.skipIf(shutil.which("sshd") is None and not os.path.exists("/usr/sbin/sshd"), "no sshd (Debian: openssh-server)")
class Mpirun(ClusterTestCase):
    def setUp(self):
        super().setUp()
        self.ssh = SshCluster(self.hosts, self.folder)
        self.addCleanup(self.ssh.close)

    def mpirun(self, words, *flags):
        return self.start(0, "launch", "--hosts", "node-0:2,node-1:2", *flags, "--", *words,
                          environment={**self.ssh.environment(), **on_path(MPIRUN)})

    def test_trains_over_mpi_and_over_gloo_what_one_host_trains(self):
        logs = self.folder / "logs"
        result = self.mpirun(self.train(5), "--log-dir", logs).result(90)
        self.assertEqual(result.code, 0, result)
        self.assertEqual(len(list(logs.glob("1/rank.*/stdout"))), 4)
        self.assertIn("mpi: Open MPI started this job", (self.run_dir / "train.log").read_text())
        by_mpi = [line["loss"] for line in steps(self.run_dir)]
        shutil.rmtree(self.run_dir)
        result = self.mpirun(self.train(5, "--backend", "gloo")).result(90)
        self.assertEqual(result.code, 0, result)
        self.assertEqual(self.model(), self.model_of_one_host(5))
        self.assertEqual([line["loss"] for line in steps(self.run_dir)], by_mpi)

    def test_a_host_that_vanishes_is_named(self):
        job = self.mpirun(self.train(1_000_000), "--grace", "2")
        self.wait_for_steps(3)
        self.hosts[1].cut()
        cut = time.monotonic()
        result = job.result(60)
        self.assertLess(time.monotonic() - cut, 30)
        # mpirun notices after 7 s without an answer, and says 205; the ranks after 10, and say 76.
        self.assertIn(result.code, (205, 76), result)
        self.assertRegex(result.err, r"on node-1\) is lost|Remote daemon.*node-1")

    def test_an_unknown_host_key(self):
        (self.ssh.folder / "known").write_text("")
        result = self.mpirun(self.train(3)).result(60)
        self.assertNotEqual(result.code, 0, result)
        self.assertIn("Host key verification failed", result.err)


class Torchrun(ClusterTestCase):
    def torchrun(self, number, words, *flags):
        return self.start(number, "launch", "--nnodes", "2", "--rdzv-endpoint", "node-0:29400", "--rdzv-id", "job", "-n", "2", *flags,
                          "--", *words, environment=on_path(TORCHRUN))

    def test_trains_what_one_host_trains(self):
        jobs = [self.torchrun(number, self.train(5)) for number in (0, 1)]
        for job in jobs:
            result = job.result(120)
            self.assertEqual(result.code, 0, result)
        self.assertEqual(self.model(), self.model_of_one_host(5))


class WithoutThem(TrainingTestCase):
    def test_an_engine_that_is_not_there_is_named(self):
        nothing = self.folder / "empty"
        nothing.mkdir()
        for words, name in ((["--hosts", "node-0,node-1"], "mpirun"), (["--rdzv-endpoint", "node-0"], "torchrun")):
            result = run("launch", *words, "--", "train", environment={"PATH": str(nothing)})
            self.assert_fails(result, 64, f"cannot start '{name}'")
        result = run("launch", "--dry-run", "--", "train", environment={"SLURM_JOB_ID": "1"})
        self.assertTrue(result.out.startswith("srun --kill-on-bad-exit=1 "), result)


if __name__ == "__main__":
    unittest.main()
