"""A training run small enough for tests, and readers of what it writes."""

import json
import tempfile
from pathlib import Path

from job_process import TestCase, wait_until

SMALL = ("--layers 1 --heads 2 --width 32 --context 32 --batch 4 --warmup 2 --eval-every 0 "
         "--validation-batches 1 --threads 1 --timeout 30").split()
TEXT = "The quick brown fox jumps over the lazy dog. " * 400


def metrics(run_dir):
    """The lines of metrics.jsonl so far; a last line that is still being written is left out."""
    path = Path(run_dir) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def steps(run_dir):
    """The job steps so far, in order."""
    return [line for line in metrics(run_dir) if "loss" in line]


def steps_done(run_dir):
    """len(steps(run_dir)), for those who ask many times a second: nothing is parsed."""
    path = Path(run_dir) / "metrics.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return data.count(b'"loss":', 0, data.rfind(b"\n") + 1)


class TrainingTestCase(TestCase):
    """Each test has a folder of its own with a text in it."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="fusedbun-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.text = self.folder / "text.txt"
        self.text.write_text(TEXT)
        self.run_dir = self.folder / "run"

    def train(self, count, *more):
        """The words of a small training of `count` steps into self.run_dir; later flags win over earlier ones; a switch has the
        value ""."""
        words = ["train", "--data", self.text, "--run-dir", self.run_dir, "--steps", count, *SMALL]
        for flag, value in zip(more[::2], more[1::2]):
            if flag in words:
                words[words.index(flag) + 1] = value
            else:
                words += [flag, value] if value != "" else [flag]
        return [str(word) for word in words]

    def wait_for_steps(self, count, seconds=60):
        wait_until(lambda: steps_done(self.run_dir) >= count, seconds, f"{count} job steps")

    def assert_trained(self, result, count):
        self.assertEqual(result.code, 0, result)
        self.assertEqual([line["step"] for line in steps(self.run_dir)], list(range(count)))
        self.assertIn("validation loss", result.out)
        self.assertTrue((self.run_dir / "model.safetensors").stat().st_size > 0)
