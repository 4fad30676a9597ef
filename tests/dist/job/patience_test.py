"""Heartbeats alone decide that a rank is gone: one that lives is waited for far beyond the time-out, and a job whose ranks all
live but wait for one another for ever ends with 124 and the place of each. In real processes, over TCP and under mpirun.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
import unittest.mock as mock
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from bare_ranks import bare_ranks  # noqa: E402
from job_process import TestCase  # noqa: E402

SECONDS = 60


class Patience(TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="fusedbun-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def results_of(self, *scenarios):
        """What both ranks of each scenario end with; the jobs run at the same time, because they mostly sleep."""
        with contextlib.ExitStack() as stack:
            jobs = [stack.enter_context(bare_ranks(2, [self.folder / scenario, scenario])) for scenario in scenarios]
            return [[rank.result(SECONDS) for rank in ranks] for ranks in jobs]

    def error_of(self, scenario):
        return json.loads((self.folder / scenario / "error.json").read_text())

    def test_a_rank_that_lives_is_waited_for(self):
        for ranks in self.results_of("save", "load"):
            for result in ranks:
                self.assertEqual((result.code, result.err), (0, ""), result)

    def test_without_heartbeats_finish_waits_for_what_is_saved_all_the_same(self):
        with mock.patch.dict(os.environ, {"LD_PRELOAD": os.environ["FUSEDBUN_SLOW_WORLD"], "FUSEDBUN_TEST_DROP_HEARTBEATS": "1"}):
            ranks, = self.results_of("short_save")
        self.assertIn("no heartbeats: ", ranks[0].err)
        self.assertEqual([result.code for result in ranks], [0, 0], ranks)

    def test_a_job_that_does_not_move_and_a_rank_that_is_slow_to_leave(self):
        hung, failed = self.results_of("deadlock", "slow_failure")
        for result in hung:
            self.assert_fails(result, 124, "(--hang-timeout)", "rank 1 in forward_backward, job step 1")
            self.assertRegex(result.err, r"rank 0 in \w+( of bucket \d+)?, job step 1")
        self.assertIn("ended while it was busy", hung[1].err)
        error = self.error_of("deadlock")
        self.assertEqual((error["cause"], error["rank"], error["exit_code"]), ("hung", None, None))
        self.assertTrue(re.search("rank 1 in forward_backward", error["sentence"]), error)

        # Its own code and sentence, although the heartbeat's thread had to end it.
        self.assert_fails(failed[1], 78, "--data: there is no such text", "ended while it was busy")
        self.assert_fails(failed[0], 76, "rank 1 ", "failed with exit code 78", "--data: there is no such text")
        error = self.error_of("slow_failure")
        self.assertEqual((error["cause"], error["rank"], error["exit_code"]), ("failed", 1, 78))

    @unittest.skipUnless(os.environ.get("FUSEDBUN_HAS_MPI") == "ON", "no Open MPI built in")
    def test_under_mpirun(self):
        run = subprocess.run(
            ["mpirun", "-np", "2", "--oversubscribe", os.environ["FUSEDBUN_BINARY"], self.folder / "mpi", "save"],
            capture_output=True, text=True, timeout=SECONDS, check=False,
            env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"})
        self.assertEqual(run.returncode, 0, run.stderr)


if __name__ == "__main__":
    unittest.main()
