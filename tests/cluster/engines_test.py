"""Jobs over two hosts by launchers of others, which `fusedbun launch` hands over to: Open MPI's mpirun with its remote shell, and torchrun with
its c10d rendezvous. What they train is what one host trains."""

import os
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from hosts import Hosts, problem  # noqa: E402
from job_process import MPI_ENVIRONMENT, run, tree  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402

WHY_NOT = problem()
TORCHRUN = os.environ["FUSEDBUN_TORCHRUN"]
ON_PATH = {"PATH": f"{Path(TORCHRUN).parent}:{os.environ['PATH']}"}


@unittest.skipIf(WHY_NOT, WHY_NOT)
class Engines(TrainingTestCase):
    def setUp(self):
        super().setUp()
        self.hosts = self.enterContext(Hosts(2))
        shell = self.folder / "remote_shell"
        self.hosts.write_remote_shell(shell)
        self.mpi = {**MPI_ENVIRONMENT, "OMPI_MCA_plm_rsh_agent": str(shell), "OMPI_MCA_rmaps_base_oversubscribe": "1"}

    def expected(self, words):
        """The model that one host trains."""
        result = run("launch", "-n", "4", "--", *words)
        self.assertEqual(result.code, 0, result)
        self.run_dir.rename(self.folder / "one")
        return (self.folder / "one" / "model.safetensors").read_bytes()

    def torchrun(self, *words, restarts=0):
        """Starts torchrun on both hosts."""
        return [self.enterContext(self.hosts.fusedbun(host, "launch", "--nnodes", 2, "-n", 2, "--rdzv-endpoint", "node0:29400", "--max-restarts",
                                                      restarts, "--", *words, environment=ON_PATH)) for host in range(2)]

    def test_mpirun_and_torchrun_train_what_one_host_trains(self):
        words = self.train(6, "--preset", "sm3", "--no-host-window", "")
        expected = self.expected(words)
        for name, flags in {"gloo": ("--backend", "gloo"), "mpi": ("--backend", "mpi")}.items():
            with self.subTest(engine="mpirun", backend=name):
                with self.hosts.fusedbun(0, "launch", "--hosts", "node0:2,node1:2", "--", *words, *flags, "--overwrite",
                                         environment=self.mpi) as mpirun:
                    result = mpirun.result(120)
                self.assertEqual(result.code, 0, result)
                self.assertEqual((self.run_dir / "model.safetensors").read_bytes(), expected)
        with self.subTest(engine="torchrun"):
            results = [each.result(120) for each in self.torchrun(*words, "--overwrite")]
            self.assertEqual([result.code for result in results], [0, 0], results)
            self.assertEqual((self.run_dir / "model.safetensors").read_bytes(), expected)

    def test_torchrun_starts_again_from_the_checkpoint(self):
        agents = self.torchrun(*self.train(60, "--checkpoint-every", 10), restarts=2)
        self.wait_for_steps(25)
        ranks = [pid for pid in tree(agents[1].pid)[:-1] if b"fusedbun\0train" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(ranks[0], signal.SIGKILL)
        results = [agent.result(120) for agent in agents]
        self.assertEqual([result.code for result in results], [0, 0], results)
        self.assertIn("goes on after step 20", "".join(result.out + result.err for result in results))
        self.assertEqual(sorted({line["step"] for line in steps(self.run_dir)}), list(range(60)))


if __name__ == "__main__":
    unittest.main()
