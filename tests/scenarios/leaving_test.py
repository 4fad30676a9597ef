"""Told to leave at any time, under any launcher, a run loses no step, and the same command goes on as if nothing had been (P7, P8 of
the reliability list, thinned).

FUSEDBUN_CASES=50 draws so many random moments; the seed is printed, FUSEDBUN_TEST_SEED repeats it.
"""

import json
import os
import signal
import socket
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from bare_ranks import free_port, seeded  # noqa: E402
from job_process import BINARY, MPI_ENVIRONMENT, Process, lives, run, start, tree, wait_until  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402

RANKS = 3
STEPS = 200
CASES = int(os.environ.get("FUSEDBUN_CASES", 5))
LAUNCHERS = {
    "launch": [BINARY, "launch", "-n", RANKS, "--", BINARY],
    "mpirun": [os.environ["FUSEDBUN_MPIRUN"], "-np", RANKS, "--oversubscribe", "--mca", "odls_base_sigkill_timeout", "2", BINARY],
    "torchrun": [os.environ["FUSEDBUN_TORCHRUN"], "--standalone", "--no-python", "--nproc-per-node", RANKS, BINARY],
}
SIGNALS = {"launch": (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1),
           "mpirun": (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1),
           "torchrun": (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}  # it dies of SIGUSR1 itself
if not os.environ["FUSEDBUN_MPIRUN"]:
    del LAUNCHERS["mpirun"]
TURNS = [launcher for launcher in ("launch", "mpirun", "torchrun", "launch", "mpirun") if launcher in LAUNCHERS]


def environment(fsync_seconds=0.02):
    """A disk so slow that a save is under way most of the time."""
    return {**MPI_ENVIRONMENT, "LD_PRELOAD": os.environ["FUSEDBUN_SLOW_WORLD"], "FUSEDBUN_TEST_FSYNC_SECONDS": str(fsync_seconds)}


class LeavingTestCase(TrainingTestCase):
    def setUp(self):
        super().setUp()
        self.random = seeded(os.environ)

    def words(self, launcher, name, *more):
        self.run_dir = self.folder / name
        return LAUNCHERS[launcher] + self.train(STEPS, "--batch", 6, "--eval-every", 20, "--validation-batches", 4,
                                                "--checkpoint-every", 15, *more)

    def start(self, words, **slow):
        return Process(words, environment(**slow))

    models = {}

    def whole(self, launcher):
        """The model of the run that nothing happens to."""
        way = "mpirun" if launcher == "mpirun" else "launch"  # torchrun's ranks do what launch's do
        if way not in self.models:
            with self.start(self.words(way, f"whole-{way}"), fsync_seconds=0) as job:
                result = job.result(120)
            self.assertEqual(result.code, 0, result)
            self.models[way] = (self.run_dir / "model.safetensors").read_bytes()
        return self.models[way]

    def newest_checkpoint(self):
        found = [int(path.name[5:]) for path in (self.run_dir / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
        return max(found, default=None)

    def attempts(self):
        path = self.run_dir / "run.json"
        return json.loads(path.read_text())["attempts"] if path.exists() else []

    def assert_none_lives(self, pids, seconds):
        wait_until(lambda: not any(lives(pid) for pid in pids), seconds, "all processes to end")

    def assert_goes_on(self, words, whole):
        with self.start(words, fsync_seconds=0) as job:
            result = job.result(120)
        self.assertEqual(result.code, 0, result)
        self.assertEqual((self.run_dir / "model.safetensors").read_bytes(), whole)
        self.assertEqual(self.attempts()[-1]["state"], "SUCCEEDED")


class RandomSignals(LeavingTestCase):
    def test_no_step_is_lost(self):
        for case in range(CASES):
            launcher = TURNS[case % len(TURNS)]
            whole = self.whole(launcher)
            number = self.random.choice(SIGNALS[launcher])
            # mpirun alone would pass most of them on when this run is over: after two seconds.
            whole_tree = self.random.random() < 0.3 or (launcher == "mpirun" and number != signal.SIGUSR1)
            step = self.random.choice([0, *range(1, STEPS * 3 // 4, 7)])  # steps that are seen before the signal
            moment = self.random.uniform(0, 0.1 if step else 2)  # and seconds after that
            with self.subTest(case=case, launcher=launcher, number=number.name, whole_tree=whole_tree, step=step, moment=moment):
                words = self.words(launcher, f"case-{case}")
                with self.start(words) as job:
                    self.wait_for_steps(step)
                    time.sleep(moment)
                    pids = tree(job.pid)
                    for pid in pids if whole_tree else [job.pid]:
                        if lives(pid):
                            os.kill(pid, number)
                    result = job.result(60)
                self.assert_none_lives(pids, 5)
                self.assert_left(launcher, number, result)
                self.assert_goes_on(words, whole)

    def assert_left(self, launcher, number, result):
        """With the code of who left early, the last step in a checkpoint; or before there was a step, or after the last."""
        attempts = self.attempts()
        state = attempts[-1]["state"] if attempts else "none"
        print(f"  {launcher}, {number.name}: {state} after {len(steps(self.run_dir))} steps, code {result.code}", flush=True)
        if state == "SUCCEEDED":
            return self.assertIn(result.code, (0, 1, 128 + number), result)  # launchers that were told to stop say so
        if state == "DRAINED":
            self.assertEqual(self.newest_checkpoint(), attempts[-1]["steps"])
            if launcher == "launch":
                self.assertEqual(result.code, 75, result)
                self.assertIn("no step is lost", result.err.splitlines()[-2])
                self.assertIn("to go on: ", result.err.splitlines()[-1])
            elif launcher == "torchrun":
                self.assertEqual(result.code, 1, result)
            return self.assertNotEqual(result.code, 0, result)
        self.assertEqual(steps(self.run_dir), [], result)  # it was starting
        self.assertNotEqual(result.code, 0, result)
        if launcher == "launch":
            self.assertIn(result.code, (75, 128 + number), result)


class WhileItStarts(LeavingTestCase):
    def test_a_run_that_waits_for_its_ranks_leaves_at_once(self):
        # The other rank never comes.
        for number in SIGNALS["launch"]:
            with self.subTest(number=number.name):
                self.run_dir = self.folder / number.name
                words = self.train(3, "--rank", 0, "--world-size", 2, "--master-addr", "127.0.0.1", "--master-port", free_port(),
                                   "--timeout", 100)
                with start(*words) as job:
                    wait_until(lambda: self.listens(job.pid), 30, "the rank to wait")
                    job.signal(number)
                    result = job.result(5)
                self.assertEqual(result.code, 75, result)
                self.assertEqual(result.err, "fusedbun: told to leave while it was starting: no step is lost\n")

    def listens(self, pid):
        ours = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
        table = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
        return any(fields[3] == "0A" and f"socket:[{fields[9]}]" in ours for fields in table)

    def test_a_rank_that_leaves_alone_is_no_failure_to_launch(self):
        # The text of rank 1 never comes, so both still start.
        endless = self.folder / "endless-text"
        os.mkfifo(endless)
        words = " ".join([BINARY, *self.train(3, "--data", f"$([ $RANK = 1 ] && echo {endless} || echo {self.text})")])
        with start("launch", "-n", "2", "--max-restarts", "3", "--", "sh", "-c", f"exec {words}") as job:
            ranks = job.ranks(2)
            wait_until(lambda: (self.run_dir / "run.lock").exists(), 30, "the job to be connected")
            time.sleep(self.random.uniform(0, 0.3))
            os.kill(self.random.choice(ranks), signal.SIGUSR1)
            result = job.result(30)
        self.assertEqual(result.code, 75, result)
        self.assertNotIn("restart", result.err)


    def test_once_it_is_on_record_the_record_says_how_it_ended(self):
        # The record is written, and synced, before the first step.
        with self.start(self.words("launch", "recorded"), fsync_seconds=0.2) as job:
            wait_until(lambda: (self.run_dir / "run.json").exists(), 30, "the record")
            for pid in tree(job.pid):
                os.kill(pid, signal.SIGUSR1)
            result = job.result(60)
        self.assertEqual(result.code, 75, result)
        self.assertEqual(self.attempts()[-1]["state"], "DRAINED", result)


class Twice(LeavingTestCase):
    def test_the_second_signal_ends_it_soon_and_the_same_command_goes_on(self):
        for launcher in ("launch", "mpirun"):  # torchrun passes one on
            if launcher not in LAUNCHERS:
                continue
            with self.subTest(launcher=launcher):
                whole = self.whole(launcher)
                words = self.words(launcher, f"twice-{launcher}")
                with self.start(words, fsync_seconds=0.5) as job:  # saving takes longer than the test has patience
                    self.wait_for_steps(40)
                    pids = tree(job.pid)
                    # mpirun alone would pass the first one on when this run is over.
                    told = [job.pid] if launcher == "launch" else pids
                    for pid in told:
                        os.kill(pid, signal.SIGTERM)
                    time.sleep(1.2)
                    self.assertTrue(all(lives(pid) for pid in pids), "it has saved too fast for this test")
                    for pid in told:
                        os.kill(pid, signal.SIGTERM)
                    began = time.monotonic()
                    self.assertNotIn(job.result(20).code, (0, 75))
                    self.assertLess(time.monotonic() - began, 5)
                self.assert_none_lives(pids, 5)
                self.assertEqual(self.attempts()[-1]["state"], "RUNNING")  # nobody could say more
                self.assert_goes_on(words, whole)


class KilledLauncher(LeavingTestCase):
    def is_free(self, port):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen()
            except OSError:
                return False
        return True

    def test_it_leaves_no_orphan_and_no_port_and_the_next_start_goes_on(self):
        whole = self.whole("launch")
        port = free_port()
        words = self.words("launch", "killed")
        words[2:2] = ["--master-port", port]
        with self.start(words) as job:
            wait_until(self.newest_checkpoint, 60, "a checkpoint")
            time.sleep(self.random.uniform(0, 0.2))
            pids = tree(job.pid)
            self.assertEqual(len(pids), RANKS + 1)
            job.signal(signal.SIGKILL)
            self.assert_none_lives(pids, 5)
        wait_until(lambda: self.is_free(port), 5, "the port to be free")
        newest = self.newest_checkpoint()
        self.assert_goes_on(words, whole)
        self.assertIn(f"this one goes on after step {newest}, from ", (self.run_dir / "train.log").read_text())


if __name__ == "__main__":
    unittest.main()
