"""What goes wrong in a job ends in one clear sentence and the right exit code, on the real binary."""

import json
import os
import signal
import socket
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from bare_ranks import bare_ranks, free_port  # noqa: E402
from job_process import BINARY, Process, run, start  # noqa: E402
from training import TrainingTestCase  # noqa: E402


def launch(*words, **options):
    return run("launch", "-n", "2", "--", *words, **options)


def shared_memory():
    """Without the folders of tests that run at the same time."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("test-of-fusedbun-")}


class Rendezvous(TrainingTestCase):
    def rank(self, number, port, *more, address="127.0.0.1", **environment):
        words = self.train(3, "--rank", number, "--world-size", 2, "--master-addr", address, "--master-port", port, *more)
        return start(*words, environment=environment)

    def test_a_foreign_service_on_the_port_is_named_in_time(self):
        # It accepts and waits for more, as a web server does.
        with socket.create_server(("127.0.0.1", 0)) as stranger:
            port = stranger.getsockname()[1]
            with self.rank(1, port, "--timeout", "5") as rank:
                self.assert_fails(rank.result(90), 69, f"found no store behind 127.0.0.1:{port}")

    def test_ranks_meet_over_ipv6(self):
        if not Path("/proc/net/if_inet6").exists():
            self.skipTest("no IPv6")
        port = free_port()
        with self.rank(0, port, address="::1") as first, self.rank(1, port, address="::1") as second:
            self.assertEqual(first.result(120).code, 0)
            self.assertEqual(second.result(120).code, 0)

    def test_an_interface_that_is_none_is_named(self):
        port = free_port()
        address = socket.gethostbyname(socket.gethostname())
        if address.startswith("127."):
            address = "0.0.0.0"  # off loopback, as far as Gloo is concerned
        wrong = {"GLOO_SOCKET_IFNAME": "^lo,docker"}
        with self.rank(0, port, address=address, **wrong) as first, self.rank(1, port, address=address, **wrong) as second:
            for rank in (first, second):
                self.assert_fails(rank.result(120), 78, "GLOO_SOCKET_IFNAME='^lo,docker'")


class BadInput(TrainingTestCase):
    def assert_nothing_written(self):
        left = [path for path in self.run_dir.rglob("*") if path.suffix == ".safetensors"]
        self.assertEqual(left, [])

    def test_missing_or_empty_data(self):
        missing = self.folder / "no-such-text"
        self.assert_fails(launch(*self.train(5, "--data", missing)), 65, str(missing))
        empty = self.folder / "empty.txt"
        empty.touch()
        self.assert_fails(launch(*self.train(5, "--data", empty)), 65, str(empty))
        self.assert_nothing_written()

    def test_bad_values(self):
        table = [("--lr", "nan", "lr"), ("--lr", "-1", "lr"), ("--steps", "0", "--steps"),
                 ("--world-size", "3", "world-size"), ("--world-size", "0", "world-size"),
                 ("--preset", "recomended", "recommended"), ("--backend", "glue", "gloo")]
        for flag, value, part in table:
            with self.subTest(flag=flag, value=value):
                self.assert_fails(launch(*self.train(5, flag, value)), 78, part)
        self.assert_nothing_written()

    def test_the_reason_is_where_torchruns_agent_looks(self):
        reason = self.folder / "error.json"
        environment = {"TORCHELASTIC_ERROR_FILE": str(reason)}
        self.assert_fails(run(*self.train(5, "--lr", "nan"), environment=environment), 78, "lr")
        self.assertIn("lr", json.loads(reason.read_text())["message"]["message"])

    def test_unknown_flag(self):
        result = run(*self.train(5), "--stpes", "3")
        self.assert_fails(result, 64, "--stpes", "did you mean --steps?")
        self.assertEqual(len(result.err.splitlines()), 1, result)


class RanksThatDisagree(TrainingTestCase):
    def by_rank(self, before, *flags):
        """Runs two ranks under a shell, which puts $RANK into `before` and the flags' values."""
        words = " ".join([BINARY, *self.train(5, "--timeout", "10", *flags)])
        return run("launch", "-n", "2", "--", "sh", "-c", f"{before} exec {words}", seconds=90)

    def test_models_that_differ(self):
        self.assert_fails(self.by_rank("", "--width", "$((32+32*RANK))"), 78,
                          "the model (config.json, --model-config or its sizes) is not the same on rank 1 as on rank 0")

    def test_seeds_that_differ(self):
        self.assert_fails(self.by_rank("", "--seed", "$RANK"), 78, "--seed", "rank 1")

    def test_flags_that_decide_how_gradients_are_exchanged_and_scaled(self):
        only_rank_1 = "$([ $RANK = 1 ] && echo %s)"
        for flag, value in (("--clip", "0.$((RANK+1))"), ("--bucket-mib", "$((RANK+1))"),
                            ("--no-host-window", only_rank_1), ("--bf16-wire", only_rank_1),
                            ("--step-in-backward", only_rank_1)):
            with self.subTest(flag=flag):
                words = [only_rank_1 % flag, ""] if value == only_rank_1 else [flag, value]
                if flag == "--step-in-backward":
                    words += ["--clip", "0", "--propagate-nonfinite", ""]
                self.assert_fails(self.by_rank("", *words), 78, flag, "rank 1")

    def test_world_sizes_that_differ(self):
        self.assert_fails(self.by_rank("export WORLD_SIZE=$((2+RANK));", "--batch", "6"), 78,
                          "start all ranks with one size")


class LostRank(TrainingTestCase):
    def test_a_killed_rank_is_named_and_the_other_leaves_with_76(self):
        # Rank 0 runs under a shell that reports its code; it must outlive the SIGTERM that ends the others.
        script = ('[ $RANK = 1 ] && exec "$0" "$@"\n'
                  'trap "" TERM; "$0" "$@"; code=$?; echo rank 0 left with $code; exit $code')
        with start("launch", "-n", "2", "--", "sh", "-c", script, BINARY, *self.train(100_000)) as job:
            victim = job.ranks(2)[1]
            self.wait_for_steps(3)
            os.kill(victim, signal.SIGKILL)
            result = job.result()
        self.assertEqual(result.code, 137, result)
        self.assertIn("rank 0 left with 76", result.out)
        who, lost, how = result.err.splitlines()[-3:]
        self.assertRegex(who, rf"^fusedbun: rank 1 \(pid {victim} .* failed first: it was ended by SIGKILL")
        self.assertRegex(lost, r"^fusedbun: in job step \d+: all \d+ steps are lost, for there is no checkpoint$")
        self.assertRegex(how, r"^fusedbun: to go on: .*fusedbun launch -n 2 ")
        self.assertFalse((self.run_dir / "model.safetensors").exists())

    def test_nothing_stays_in_shared_memory_when_all_ranks_are_killed(self):
        before = shared_memory()
        with bare_ranks(2, self.train(100_000)) as ranks:
            self.wait_for_steps(2)
            maps = [Path(f"/proc/{process.pid}/maps").read_text() for process in ranks]
            for process in ranks:
                process.signal(signal.SIGKILL)
            for process in ranks:
                self.assertEqual(process.result().code, 137)
        for text in maps:
            self.assertIn("fusedbun-host-window", text)  # memory without a name: it goes with its last process
        self.assertLessEqual(shared_memory(), before)

    def test_a_rank_that_aborts_is_our_bug(self):
        with start("launch", "-n", "2", "--", *self.train(100_000)) as job:
            victim = job.ranks(2)[0]
            self.wait_for_steps(2)
            os.kill(victim, signal.SIGABRT)  # as a broken assertion does
            self.assert_fails(job.result(), 70, f"rank 0 (pid {victim} ")

    def test_it_leaves_a_core_where_cores_are_wanted(self):
        pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
        if not pattern or pattern[0] in "|/":
            self.skipTest(f"cores go to '{pattern}' here")
        words = ["sh", "-c", 'cd "$0" && ulimit -c unlimited && exec "$@"', str(self.folder), BINARY, *self.train(100_000)]
        with Process(words) as process:
            self.wait_for_steps(2)
            process.signal(signal.SIGABRT)
            self.assertEqual(process.result().code, 70)
        self.assertTrue([path.name for path in self.folder.glob("*core*")], "no core")


class SharedRunFolder(TrainingTestCase):
    def test_a_second_job_in_the_same_folder_is_refused_and_the_first_goes_on(self):
        with start("launch", "-n", "2", "--", *self.train(100_000)) as first:
            self.wait_for_steps(2)
            self.assert_fails(launch(*self.train(5)), 69, str(self.run_dir))
            self.wait_for_steps(20)
            first.signal(signal.SIGTERM)
            self.assertEqual(first.result().code, 75)


if __name__ == "__main__":
    unittest.main()
