"""What ranks cannot do together is refused on every rank with the same sentence and exit code 78, in real processes: over
Gloo and the host window, and under mpirun.
"""

import os
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from bare_ranks import bare_ranks  # noqa: E402
from job_process import TestCase  # noqa: E402

CLIPPED = "the gradient of parameter 'group0.0' was written after backward() had sent it"
# What most ranks do is the norm, of two ranks what rank 0 does: (over two ranks, over three).
SENTENCES = {
    "uneven": ("rank 1 called finish() after 9 steps where rank 0 called step() after 9 steps",
               "rank 0 called step() after 9 steps where rank 1 called finish() after 9 steps"),
    "clip": (CLIPPED, CLIPPED),
    "passes": ("rank 1 accumulated the gradients of 1 backward pass where rank 0 accumulated the gradients of 2 backward passes",
               "rank 0 accumulated the gradients of 2 backward passes where rank 1 accumulated the gradients of 1 backward pass"),
    "late_group": ("rank 1 called step() after 2 steps where rank 0 called add_param_group() after 2 steps",
                   "rank 0 called add_param_group() after 2 steps where rank 1 called step() after 2 steps"),
}


class Refusals(TestCase):
    def test_every_rank_says_the_same(self):
        for scenario, sentences in SENTENCES.items():
            for transport in ("window", "messages"):
                for count, sentence in zip((2, 3), sentences):
                    with self.subTest(scenario=scenario, transport=transport, ranks=count), \
                            bare_ranks(count, [scenario, transport]) as ranks:
                        for result in [process.result(25) for process in ranks]:
                            self.assert_fails(result, 78, sentence)

    @unittest.skipUnless(os.environ.get("FUSEDBUN_HAS_MPI") == "ON", "no Open MPI built in")
    def test_under_mpirun(self):
        for scenario, (sentence, _) in SENTENCES.items():
            with self.subTest(scenario=scenario):
                run = subprocess.run(
                    ["mpirun", "-np", "2", "--oversubscribe", os.environ["FUSEDBUN_BINARY"], scenario, "messages"],
                    capture_output=True, text=True, timeout=60, check=False,
                    env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"})
                self.assertEqual(run.returncode, 78, run.stderr)
                self.assertIn(sentence, run.stderr)


if __name__ == "__main__":
    unittest.main()
