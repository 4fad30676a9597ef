"""Ranks that are started by hand, in any order, seconds apart, and jobs that want the same port or folder: a job starts, or leaves soon
with a reason (P10 of the reliability list, thinned).

FUSEDBUN_CASES=50 draws so many of each; the seed is printed, FUSEDBUN_TEST_SEED repeats it.
"""

import contextlib
import json
import os
import socket
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from bare_ranks import free_port, seeded  # noqa: E402
from job_process import start  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402

CASES = int(os.environ.get("FUSEDBUN_CASES", 1))
SKEW = 3  # seconds
PATIENCE = 7  # --timeout
SOON = PATIENCE + 5
REFUSED = (64, 69, 78)


class Races(TrainingTestCase):
    def setUp(self):
        super().setUp()
        self.random = seeded(os.environ)

    def rank(self, rank, world_size, port, run_dir, *more, count=3):
        self.run_dir = self.folder / run_dir
        return start(*self.train(count, "--batch", 6, "--timeout", PATIENCE, *more), environment={
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})

    def race(self, starts):
        """Calls these in a random order, at random times; gives the processes in the order of the arguments, and their results."""
        moments = [self.random.uniform(0, SKEW) * self.random.choice((0, 0.1, 1)) for _ in starts]
        print(f"  at {', '.join(f'{moment:.2f}' for moment in moments)} s", flush=True)
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            jobs = {}
            for each in sorted(range(len(starts)), key=lambda each: moments[each]):
                time.sleep(max(0, began + moments[each] - time.monotonic()))
                jobs[each] = stack.enter_context(starts[each]())
            return [jobs[each].result(SOON + SKEW) for each in range(len(starts))]

    def assert_refused(self, result, *codes):
        self.assertIn(result.code, codes or REFUSED, result)
        self.assert_fails(result, result.code, " ")

    def test_ranks_that_start_seconds_apart_meet(self):
        for case in range(CASES):
            with self.subTest(case=case):
                port = free_port()
                for result in self.race([lambda rank=rank: self.rank(rank, 3, port, f"run-{case}") for rank in range(3)]):
                    self.assertEqual(result.code, 0, result)
                self.assertEqual([line["step"] for line in steps(self.run_dir)], [0, 1, 2])

    def test_ranks_that_want_different_world_sizes_are_refused(self):
        for case in range(CASES):
            with self.subTest(case=case):
                port, sizes = free_port(), self.random.sample((2, 3), 2)
                for result in self.race([lambda rank=rank: self.rank(rank, sizes[rank], port, f"run-{case}") for rank in (0, 1)]):
                    self.assert_refused(result, 78)
                    self.assertIn("start all ranks with one size", result.err)

    def test_a_taken_port_is_refused_on_all_ranks(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            results = self.race([lambda rank=rank: self.rank(rank, 2, port, "run") for rank in (0, 1)])
        for result in results:
            self.assert_refused(result, 69)
            self.assertIn(str(port), result.err)

    def test_of_two_jobs_in_one_folder_one_runs(self):
        for case in range(CASES):
            with self.subTest(case=case):
                ports = (free_port(), free_port())
                results = self.race([lambda job=job, rank=rank: self.rank(rank, 2, ports[job], f"run-{case}", count=300)
                                     for job in (0, 1) for rank in (0, 1)])
                first, second = sorted((results[:2], results[2:]), key=lambda job: job[0].code)
                self.assertEqual([result.code for result in first], [0, 0], results)
                for result in second:
                    # Where the other has ended already, rank 0 refuses the finished run before it meets rank 1.
                    self.assert_refused(result, 69, 78)
                attempts = json.loads((self.run_dir / "run.json").read_text())["attempts"]
                self.assertEqual([attempt["state"] for attempt in attempts], ["SUCCEEDED"])
                self.assertEqual([line["step"] for line in steps(self.run_dir)], list(range(300)))

    def test_two_jobs_on_one_port_do_not_mix(self):
        for case in range(CASES):
            with self.subTest(case=case):
                port = free_port()
                results = self.race([lambda job=job, rank=rank: self.rank(rank, 2, port, f"run-{case}-{job}", "--seed", job)
                                     for job in (0, 1) for rank in (0, 1)])
                for job in (results[:2], results[2:]):
                    codes = [result.code for result in job]
                    self.assertIn(codes.count(0), (0, 2), results)  # what its ranks trained they trained together
                    for result in job:
                        # 124: its other ranks had gone to the other job, and been refused there.
                        self.assertTrue(result.code == 0 or self.assert_refused(result, *REFUSED, 124) is None)


if __name__ == "__main__":
    unittest.main()
