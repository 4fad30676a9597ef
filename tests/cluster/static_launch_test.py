"""`fusedbun launch --nnodes 2` on two hosts without any engine: the job is that of one host, and hosts that fail are noticed and made up for."""

import os
import signal
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from hosts import Hosts, problem  # noqa: E402
from job_process import children, run, wait_until  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402

WHY_NOT = problem()
HOSTS = 2


@unittest.skipIf(WHY_NOT, WHY_NOT)
class StaticLaunch(TrainingTestCase):
    def setUp(self):
        super().setUp()
        self.hosts = Hosts(HOSTS)
        self.enterContext(self.hosts)

    def launch(self, host, *words, ranks=2, flags=(), master="node0"):
        """Starts the launcher of one host."""
        return self.enterContext(self.hosts.fusedbun(host, "launch", "--nnodes", HOSTS, "--node-rank", host, "--master-addr", master,
                                                     "-n", ranks, *flags, "--", *words))

    def launch_all(self, *words, **options):
        return [self.launch(host, *words, **options) for host in range(HOSTS)]

    def rank(self, launcher, local_rank):
        """The process id of one of a launcher's ranks."""
        return wait_until(lambda: len(children(launcher.pid)) == 2 and children(launcher.pid), 20, "two ranks")[local_rank]

    def test_two_hosts_train_what_one_host_trains(self):
        words = self.train(6, "--preset", "sm3", "--no-host-window", "")
        one = run("launch", "-n", "4", "--", *words)
        self.assertEqual(one.code, 0, one)
        self.run_dir.rename(self.folder / "one")
        results = [launcher.result(120) for launcher in self.launch_all(*words)]
        self.assertEqual([result.code for result in results], [0, 0], results)
        self.assertIn("validation loss", results[0].out)
        self.assertEqual((self.run_dir / "model.safetensors").read_bytes(), (self.folder / "one" / "model.safetensors").read_bytes())

    def test_a_killed_rank_ends_both_hosts_and_with_restarts_the_job_goes_on(self):
        first, second = self.launch_all(*self.train(100_000))
        self.wait_for_steps(3)
        os.kill(self.rank(second, 1), signal.SIGKILL)
        there, here = second.result(30), first.result(30)
        self.assert_fails(there, 137, "rank 3 (pid ", "on node1) failed first: it was ended by SIGKILL")
        self.assert_fails(here, 76, "rank 3 (pid ", "on node1")

        first, second = self.launch_all(*self.train(60, "--checkpoint-every", 10, "--overwrite", ""), flags=("--max-restarts", "3"))
        self.wait_for_steps(25)
        os.kill(self.rank(second, 0), signal.SIGKILL)
        results = [launcher.result(120) for launcher in (first, second)]
        self.assertEqual([result.code for result in results], [0, 0], results)
        self.assertIn("goes on after step 20", results[0].err)
        self.assertIn("restart 1 of at most 3", results[1].err)

    def test_a_host_that_vanishes_is_named_and_the_job_goes_on_without_and_with_it(self):
        words = self.train(100_000, "--checkpoint-every", 10)
        first, second = self.launch_all(*words)
        self.wait_for_steps(25)
        start = time.monotonic()
        self.hosts.set_link(1, False)
        here = first.result(40)
        self.assertLess(time.monotonic() - start, 15, "10 s until a rank is lost, and what ending takes")
        self.assert_fails(here, 76, "on node1")
        there = second.result(40)
        self.assert_fails(there, 76, "on node0")
        # Without it, on half as many ranks.
        alone = self.enterContext(self.hosts.fusedbun(0, "launch", "-n", 2, "--", *self.train(60, "--checkpoint-every", 10)))
        result = alone.result(60)
        self.assertEqual(result.code, 0, result)
        self.assertRegex(result.err, r"goes on after step [23]0")
        self.assertEqual(len({line["step"] for line in steps(self.run_dir)}), 60)

    def test_what_keeps_hosts_apart_is_said(self):
        def said(code, *parts, host=1, **options):
            start = time.monotonic()
            result = self.launch(host, *self.train(1, "--timeout", 4), **options).result(40)
            self.assert_fails(result, code, *parts)
            self.assertLess(time.monotonic() - start, 30)

        said(69, "cannot reach the store at node0:29500", "is rank 0 running there")
        said(69, "nowhere", master="nowhere")
        said(124, "waited 4000 ms for the other ranks to start; missing: 2 3", host=0)
        # Different numbers of ranks.
        first = self.launch(0, *self.train(1, "--timeout", 20), ranks=2)
        second = self.launch(1, *self.train(1, "--timeout", 20), ranks=1)
        for launcher in (first, second):
            self.assert_fails(launcher.result(40), 78, "start all ranks with one size")
        self.assertFalse(self.run_dir.exists())


if __name__ == "__main__":
    unittest.main()
