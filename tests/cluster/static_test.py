"""`fusedbun launch --nnodes 2 --node-rank R --master-addr H`, started on two hosts: without any other engine."""

import os
import re
import shutil
import signal
import time
import unittest
from pathlib import Path

from cluster_case import QUICK, ClusterTestCase, OnHost
from job_process import BINARY, MPI_ENVIRONMENT, tree, wait_until
from training import steps, steps_done


def ranks_of(job):
    """Process ids of the trainers below a launcher."""
    return [pid for pid in tree(job.pid) if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2] == [b"train"]]


class Static(ClusterTestCase):
    def test_trains_what_one_host_trains(self):
        for result in self.on_both(*self.train(5)):
            self.assertEqual(result.code, 0, result)
        self.assertEqual(self.model(), self.model_of_one_host(5))

    def test_rows_cross_between_the_hosts_once(self):
        count = 5
        for wire, number_bytes in (((), 4), (("--bf16-wire", ""), 2)):
            words = self.train(count, "--width", "256", "--layers", "4", "--run-dir", self.folder / str(number_bytes), *wire)
            before = [host.sent_bytes() for host in self.hosts]
            for result in self.on_both(*words):
                self.assertEqual(result.code, 0, result)
            parameters = (self.folder / str(number_bytes) / "model.safetensors").stat().st_size / 4
            for host, was in zip(self.hosts, before):
                # At the start, rank 0's parameters; in a step the gradients of both ranks for the other host's half, and the rows of this half.
                per_step = (host.sent_bytes() - was - 4 * parameters) / count
                self.assertLess(per_step, 1.1 * (2 / 2 + 1 / 2) * parameters * number_bytes)

    def test_clocks_that_are_an_hour_apart(self):
        behind = self.folder / "behind"
        behind.touch()
        words = self.train(30, "--checkpoint-every", "10", "--heartbeat", "0.1")
        jobs = [self.static(0, *words, ranks=1),
                self.static(1, *words, ranks=1, environment={"LD_PRELOAD": os.environ["FUSEDBUN_SLOW_WORLD"],
                                                             "FUSEDBUN_TEST_CLOCK_BACK": str(behind)})]
        for job in jobs:
            result = job.result(60)
            self.assertEqual(result.code, 0, result)
        self.assertTrue((self.run_dir / "checkpoints" / "step-20").exists())

    def test_a_killed_rank_ends_both_hosts(self):
        jobs = [self.static(number, *self.train(1_000_000), *QUICK) for number in (0, 1)]
        self.wait_for_steps(3)
        victim = ranks_of(jobs[1])[1]
        killed = time.monotonic()

        os.kill(victim, signal.SIGKILL)
        first, second = (job.result(30) for job in jobs)
        self.assertLess(time.monotonic() - killed, 10)
        self.assert_fails(second, 137, "rank 3 (pid ", "on node-1) failed first: it was ended by SIGKILL")
        self.assert_fails(first, 76, "on node-1) is lost")

    def test_a_stop_of_one_host_lets_both_save_and_leave(self):
        jobs = [self.static(number, *self.train(1_000_000)) for number in (0, 1)]
        self.wait_for_steps(3)
        jobs[1].signal(signal.SIGTERM)
        for job in jobs:
            self.assertEqual(job.result(30).code, 75)
        self.assertTrue((self.run_dir / "model.safetensors").exists())

    def test_a_host_that_vanishes_is_named_and_the_job_goes_on_when_it_is_back(self):
        flags = ("--max-restarts", "5", "--restart-delay", "0.5")
        jobs = [self.static(number, *self.train(150, "--checkpoint-every", "20", "--timeout", "20"), *QUICK, flags=flags)
                for number in (0, 1)]
        wait_until(lambda: steps_done(self.run_dir) >= 45, 60, "45 steps")
        self.hosts[1].cut()
        cut = time.monotonic()
        # All four ranks leave by themselves: those of each host, because they hear nothing from the other.
        alive = [ranks_of(job) for job in jobs]
        wait_until(lambda: all(ranks_of(job) != was for job, was in zip(jobs, alive)), 10, "the ranks of both hosts left")
        self.assertLess(time.monotonic() - cut, 10)
        self.hosts[1].mend()
        first, second = (job.result(90) for job in jobs)
        self.assertEqual((first.code, second.code), (0, 0), (first, second))
        for result, name in ((first, "on node-1) is lost"), (second, "on node-0) is lost")):
            self.assertIn(name, result.err)
            self.assertIn("restart 1 of at most 5", result.err)
        self.assertRegex(first.err, "from (the )?checkpoint|step-[0-9]+")
        self.assertEqual(steps(self.run_dir)[-1]["step"], 149)


    def ask(self, *words):
        """`fusedbun <words>` on rank 0's host."""
        with OnHost(self.hosts[0], BINARY, *words, "--run-dir", self.run_dir) as command:
            result = command.result(30)
        self.assertEqual(result.code, 0, result)
        return result

    def test_a_pause_a_dump_and_a_forced_stop_reach_the_ranks_of_the_other_host(self):
        jobs = [self.static(number, *self.train(1_000_000)) for number in (0, 1)]
        self.wait_for_steps(3)
        self.ask("pause", "--wait", "--timeout", "20")
        done = steps_done(self.run_dir)
        texts = [Path(line).read_text() for line in self.ask("dump").out.splitlines()]
        self.assertEqual(len(texts), 4)
        for rank, text in enumerate(texts):
            self.assertRegex(text, rf"\Arank {rank} of 4, pid \d+ on node-{rank // 2}, ")
            self.assertIn("\nin paused, job step ", text)
        self.assertEqual(steps_done(self.run_dir), done)
        self.ask("resume")
        self.wait_for_steps(done + 3)
        self.ask("stop", "--force")
        for job in jobs:
            self.assertEqual(job.result(20).code, 0)


class LittleSharedMemory(ClusterTestCase):
    shm_mebibytes = 64  # of /dev/shm, as containers have it

    def test_ranks_of_one_host_need_none(self):
        words = self.train(2, "--width", "512", "--layers", "6", "--batch", "2")
        for launcher in ([BINARY, "launch", "-n", "2", "--"], [os.environ["FUSEDBUN_MPIRUN"], "-np", "2", "--oversubscribe", BINARY]):
            if launcher[0]:
                with OnHost(self.hosts[0], *launcher, *words, "--overwrite", environment=MPI_ENVIRONMENT) as job:
                    result = job.result(60)
                self.assertEqual(result.code, 0, result)
        self.assertGreater((self.run_dir / "model.safetensors").stat().st_size, 64 << 20)


class NameOnLoopback(ClusterTestCase):
    subnet = "192.168.77"  # above 127: Gloo lets the rank with the lower address listen

    def test_a_host_whose_name_is_its_own_loopback(self):
        self.hosts[0].write_file("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 node-0\n{self.hosts[1].address} node-1\n")  # as Debian
        for result in self.on_both(*self.train(3, "--timeout", "10"), ranks=1):
            self.assertEqual(result.code, 0, result)


class Refusals(ClusterTestCase):
    def test_hosts_with_other_numbers_of_ranks(self):
        jobs = [self.static(number, *self.train(3), ranks=ranks) for number, ranks in ((0, 1), (1, 2))]
        codes = []
        for job in jobs:
            result = job.result(60)
            codes.append(result.code)
            self.assertIn("ranks", result.err)
        self.assertEqual(codes, [78, 78])

    def test_the_same_node_rank_twice(self):
        first = self.static(0, *self.train(3), ranks=1)
        second = self.start(1, "launch", "--nnodes", "2", "--node-rank", "0", "--master-addr", "node-0", "-n", "1", "--",
                            *self.train(3))
        for job in (first, second):
            self.assert_fails(job.result(60), 78, "rank 0 of 2 is there already")

    def test_a_name_that_is_known_later(self):
        self.hosts[1].write_file("/etc/hosts", "127.0.0.1 localhost\n")
        jobs = [self.static(number, *self.train(3), ranks=1) for number in (0, 1)]
        time.sleep(2)
        self.hosts[1].write_file("/etc/hosts", f"127.0.0.1 localhost\n{self.hosts[0].address} node-0\n{self.hosts[1].address} node-1\n")
        for job in jobs:
            self.assertEqual(job.result(60).code, 0)

    def test_an_address_that_is_none(self):
        result = self.static(1, *self.train(3), address="nowhere", flags=()).result(60)
        self.assert_fails(result, 69, "'nowhere' does not resolve")

    def test_a_firewall_before_the_store(self):
        if self.hosts[0].run("nft", "list", "ruleset", check=False).returncode != 0:
            self.skipTest("no nft (Debian: nftables)")
        self.hosts[0].drop("input", "tcp dport 29500 ip saddr 10.77.0.2")
        jobs = [self.static(number, *self.train(3, "--timeout", "5"), ranks=1) for number in (0, 1)]
        first, second = (job.result(60) for job in jobs)
        self.assert_fails(second, 69, "cannot reach the store at node-0:29500")
        self.assert_fails(first, 124, "missing: 1")

    def test_a_firewall_between_the_ranks(self):
        if self.hosts[0].run("nft", "list", "ruleset", check=False).returncode != 0:
            self.skipTest("no nft (Debian: nftables)")
        self.hosts[1].drop("input", "tcp dport != 22 ct state new")  # who starts a connection to node-1 waits
        jobs = [self.static(number, *self.train(3, "--timeout", "8"), ranks=1) for number in (0, 1)]
        started = time.monotonic()
        results = [job.result(60) for job in jobs]
        self.assertLess(time.monotonic() - started, 30)
        for result in results:
            self.assertIn(result.code, (0, 76), result)

    def test_a_host_without_the_data(self):
        (self.folder / "data").mkdir()
        (self.folder / "data" / "text.txt").write_text(self.text.read_text())
        self.hosts[1].hide(self.folder / "data")
        words = self.train(3, "--timeout", "5", "--data", self.folder / "data" / "text.txt")
        jobs = [self.static(number, *words, ranks=1) for number in (0, 1)]
        started = time.monotonic()
        for job in jobs:
            self.assert_fails(job.result(60), 65, "on node-1: ", "text.txt")
        self.assertLess(time.monotonic() - started, 30)

    def test_another_build_on_one_host(self):
        data = Path(BINARY + "-torch").read_bytes()
        library = re.search(rb"library [0-9]+\.[0-9]+\.[0-9]+ with LibTorch ", data).group()
        other = self.folder / "fusedbun"
        shutil.copy(BINARY, other)
        changed = self.folder / "fusedbun-torch"
        changed.write_bytes(data.replace(library, library.replace(b".", b"9", 1)))
        changed.chmod(0o755)
        first = self.static(0, *self.train(3), ranks=1)
        second = OnHost(self.hosts[1], other, "launch", "--nnodes", "2", "--node-rank", "1", "--master-addr", "node-0", "-n", "1", "--",
                        *self.train(3))
        self.addCleanup(second.__exit__)
        for job in (first, second):
            self.assert_fails(job.result(60), 78, "rank 1 on node-1 runs another build than rank 0: ", "install the same build on all hosts")

    def test_words_that_cannot_be_right(self):
        for words, code, part in (
                (["--nnodes", "2"], 64, "--node-rank"),
                (["--nnodes", "2", "--node-rank", "2", "--master-addr", "node-0"], 78, "--node-rank"),
                (["--node-rank", "1"], 78, "below --nnodes"),
                (["--nnodes", "1:2", "--node-rank", "0", "--master-addr", "node-0"], 78, "--nnodes 1:2")):
            result = self.start(0, "launch", *words, "--", "version").result(30)
            self.assert_fails(result, code, part)
        variables = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "2", "PET_MASTER_ADDR": "node-0",
                     "PET_MASTER_PORT": "29400"}
        result = self.start(1, "launch", "--dry-run", "--", "train", environment=variables).result(30)
        for part in ("RANK=3", "WORLD_SIZE=4", "MASTER_ADDR=node-0", "MASTER_PORT=29400"):
            self.assertIn(part, result.out)


if __name__ == "__main__":
    unittest.main()
