"""A person asks what the ranks of a job are doing: fusedbun dump."""

import json
import os
import signal
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import BINARY, run, start, wait_until  # noqa: E402
from training import TrainingTestCase, steps_done  # noqa: E402

SPAN = 100_000  # steps: the job is always ended before its end


class Dump(TrainingTestCase):
    def dump(self):
        return run("dump", "--run-dir", self.run_dir)

    def texts(self, result):
        """[rank] of the files that were written."""
        return [Path(line).read_text() for line in result.out.splitlines()]

    def test_every_rank_writes_stacks_phase_and_memory_and_goes_on(self):
        with start("launch", "-n", "2", "--", *self.train(SPAN)) as job:
            self.wait_for_steps(3)
            result = self.dump()
            self.assertEqual(result.code, 0, result)
            texts = self.texts(result)
            self.assertEqual(len(texts), 2)
            for rank, text in enumerate(texts):
                self.assertRegex(text, rf"\Arank {rank} of 2, pid \d+ on \S+, .*cpu")
                self.assertRegex(text, r"\nin \w+.*, job step \d+\n")
                self.assertRegex(text, r"\nmemory: \d+ MiB resident")
                self.assertRegex(text, r"\nspent in forward_backward: [\d.]+ s\n")
                self.assertRegex(text, r'\nthread \d+ "fusedbun-torch".*\n    \S', "frames of the main thread")
            self.assertEqual(Path(result.out.splitlines()[0]).stat().st_mode & 0o777, 0o600)
            done = steps_done(self.run_dir)
            self.wait_for_steps(done + 3)
            self.assertEqual(self.dump().code, 0)
            self.assertEqual(len(list((self.run_dir / "diagnostics").iterdir())), 2, "a folder each time")
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)

    def test_of_a_rank_that_hangs_in_a_collective(self):
        flags = ["--no-host-window", "", "--lost-timeout", "60"]
        with start("launch", "-n", "2", "--", *self.train(SPAN, *flags)) as job:
            stopped = job.ranks(2)[1]
            self.wait_for_steps(3)
            os.kill(stopped, signal.SIGSTOP)
            done = steps_done(self.run_dir)
            time.sleep(1)
            self.assertLessEqual(steps_done(self.run_dir), done + 2)
            result = self.dump()
            self.assert_fails(result, 124, "rank 1 did not write in time")
            (text,) = self.texts(result)
            self.assertRegex(text, r"\nunder way: gloo operation \d+ of 2 ranks, \w+\(.*called [\d.]+ s ago")
            self.assertIn("fusedbun::comm::OperationQueue::wait", text)
            os.kill(stopped, signal.SIGCONT)
            self.wait_for_steps(done + 3)
            wait_until(lambda: self.dump().code == 0, 10, "a dump of both")
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)

    def test_what_cannot_be_written_is_told(self):
        with start("launch", "-n", "2", "--", *self.train(SPAN)) as job:
            self.wait_for_steps(3)
            (self.run_dir / "diagnostics").write_text("a file where the folder would be")
            self.assert_fails(self.dump(), 124, "rank 0, 1 did not write in time, or could not")
            self.wait_for_steps(steps_done(self.run_dir) + 3)
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)

    def test_of_one_process_alone(self):
        with start(*self.train(SPAN)) as job:
            self.wait_for_steps(3)
            result = self.dump()
            self.assertEqual(result.code, 0, result)
            self.assertRegex(self.texts(result)[0], r"\Arank 0 of 1, ")
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)


if __name__ == "__main__":
    unittest.main()
