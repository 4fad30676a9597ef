"""200 steps of a small GPT on real text: 2 and 3 ranks against one process at the same global batch.

Rounding of gradients differs with the number of ranks (each adds up its own part of the batch first), so parameters drift
apart; the validation loss must not. The recipe is one that does not amplify the drift: warm-up, peak learning rate 3e-3.
"""

import array
import json
import math
import struct
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import TestCase, run  # noqa: E402

RECIPE = (
    "train --steps 200 --batch 12 --layers 2 --heads 2 --width 64 --context 64 --lr 3e-3 --warmup 20 --threads 1 "
    "--validation-batches 8 --preset recommended --quiet --no-control"
).split()


def parameters_of(path):
    """All float32 values of a safetensors file, by tensor name."""
    data = Path(path).read_bytes()
    (header_bytes,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_bytes])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        tensors[name] = array.array("f", data[begin:end])
    return tensors


def distance(a, b):
    """Relative 2-norm of the difference of two sets of parameters."""
    difference = sum((x - y) ** 2 for name in a for x, y in zip(a[name], b[name]))
    size = sum(x * x for values in a.values() for x in values)
    return math.sqrt(difference / size)


class SameTraining(TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def train(self, ranks):
        folder = self.folder / f"ranks{ranks}"
        result = run("launch", "-n", str(ranks), "--", *RECIPE, "--run-dir", str(folder), seconds=250)
        self.assertEqual(result.code, 0, result)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [record["validation_loss"] for record in records if "validation_loss" in record]
        return losses[0], losses[-1], parameters_of(folder / "model.safetensors")

    def test_two_and_three_ranks_reach_the_loss_of_one_process(self):
        first, alone, parameters = self.train(1)
        self.assertLess(alone, 0.6 * first, "the model learned nothing, so the comparison says nothing")
        for ranks in (2, 3):
            _, loss, theirs = self.train(ranks)
            print(
                f"\n{ranks} ranks: validation loss {loss:.6f}, one process {alone:.6f}, "
                f"relative difference {abs(loss - alone) / alone:.1e}, parameters {distance(parameters, theirs):.1e} apart"
            )
            self.assertLess(abs(loss - alone), 1e-3 * alone)


if __name__ == "__main__":
    unittest.main()
