"""A rank of four that is killed or stopped in a given phase of the step is named by all others, who exit with 76 (P1, P2).

Each phase has one victim, by turns; FUSEDBUN_EVERY_VICTIM=1 takes every victim in every phase.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from bare_ranks import bare_ranks  # noqa: E402
from job_process import TestCase  # noqa: E402

RANKS = 4
PHASES = ["forward_backward", "reduce_scatter", "agreement", "update", "all_gather", "step_message"]


def cases():
    every = os.environ.get("FUSEDBUN_EVERY_VICTIM")
    for number, phase in enumerate(PHASES):
        for victim in range(RANKS) if every else [number % RANKS]:
            yield phase, victim


class Phases(TestCase):
    def strike(self, phase, victim, number):
        with tempfile.TemporaryDirectory(prefix="fusedbun-test-") as folder, \
                bare_ranks(RANKS, [folder, str(victim), phase, str(int(number))]) as ranks:
            line = ranks[victim].popen.stdout.readline()
            struck = time.monotonic()
            self.assertIn(f"struck in {phase}", line)
            pid = ranks[victim].pid
            for rank, process in enumerate(ranks):
                if rank != victim:
                    self.assert_fails(process.result(30), 76,
                                      f"rank {victim} (pid {pid} on {socket.gethostname()}) is lost")
            seconds = time.monotonic() - struck
            error = json.loads((Path(folder) / "error.json").read_text())
            print(f"  {line.strip()}, victim {victim}: last seen in {error['phase']}, all left after {seconds:.2f} s", flush=True)
            self.assertEqual((error["rank"], error["pid"], error["host"]), (victim, pid, socket.gethostname()))
            self.assertLess(seconds, 10)
            if number == signal.SIGSTOP:
                self.assertEqual(error["cause"], "silent")
                ranks[victim].signal(signal.SIGCONT)
                self.assert_fails(ranks[victim].result(10), 76, f"the other ranks gave this one up: rank {victim} ")
            else:
                self.assertEqual(error["cause"], "gone")

    def test_killed(self):
        for phase, victim in cases():
            with self.subTest(phase=phase, victim=victim):
                self.strike(phase, victim, signal.SIGKILL)

    def test_stopped(self):
        for phase, victim in cases():
            with self.subTest(phase=phase, victim=victim):
                self.strike(phase, victim, signal.SIGSTOP)


if __name__ == "__main__":
    unittest.main()
