"""Documents and loss on parts of them, in whole jobs: the number of ranks changes nothing, a run that goes on is the one that was not stopped."""

import sys
import unittest
from pathlib import Path

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from job_process import run  # noqa: E402
from training import TrainingTestCase, metrics  # noqa: E402

SEPARATOR = 255


class Documents(TrainingTestCase):
    def texts(self, count=60):
        """Text with a byte between documents, which is a token; each document is one letter, and how often it comes is no secret."""
        random = numpy.random.default_rng(3)
        parts = []
        for _ in range(count):
            parts += [numpy.full(random.integers(5, 90), random.integers(97, 123)), [SEPARATOR]]
        path = self.folder / "parted.bin"
        numpy.concatenate(parts).astype(numpy.uint16).tofile(path)
        return path

    def job(self, name, ranks, *more, steps=12):
        run_dir = self.folder / name
        result = run("launch", "-n", ranks, "--", "train", "--layers", 2, "--heads", 2, "--width", 32, "--context", 48, "--batch", 12,
                     "--steps", steps, "--warmup", 2, "--threads", 1, "--eval-every", 0, "--preset", "elementwise", "--no-control",
                     "--run-dir", run_dir, *more)
        return run_dir, result

    def losses(self, run_dir):
        return [line.get("loss", line.get("validation_loss")) for line in metrics(run_dir)]

    def test_ranks_and_passes_change_nothing(self):
        chats = self.folder / "chats.jsonl"
        chats.write_text("".join(f'{{"prompt": "{letter * length}", "completion": "{letter * 7}"}}\n'
                                 for length in range(3, 30) for letter in "abcde"))
        made = run("data", "tokenize", chats, "--tokenizer", "bytes", "--out", self.folder / "chats.bin")
        self.assertEqual(made.code, 0, made)
        for data in (self.folder / "chats.bin", self.texts()):
            flags = "--data", data, "--document-token", SEPARATOR
            found = {}
            for ranks, passes in ((1, 1), (2, 1), (3, 2)):
                run_dir, result = self.job(f"{data.stem}{ranks}", ranks, *flags, "--accumulate", passes)
                self.assertEqual(result.code, 0, result)
                found[ranks] = self.losses(run_dir)
            for ranks in (2, 3):
                for one, other in zip(found[1], found[ranks], strict=True):
                    self.assertAlmostEqual(one, other, delta=2e-4, msg=f"{data.name}, {ranks} ranks")  # sums in another order
            self.assertLess(found[1][-1], found[1][0])

    def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(self):
        data = self.texts()
        whole, result = self.job("whole", 2, "--data", data, "--document-token", SEPARATOR, "--checkpoint-every", 5)
        self.assertEqual(result.code, 0, result)
        self.assertTrue(Path(f"{data}.documents").exists())
        self.assertIn("looking for the documents", result.err)
        begun, result = self.job("begun", 2, "--data", data, "--document-token", SEPARATOR, "--resume", whole / "checkpoints" / "step-5")
        self.assertEqual(result.code, 0, result)
        self.assertNotIn("looking for the documents", result.err, "they were found at the first start")
        self.assertEqual((begun / "model.safetensors").read_bytes(), (whole / "model.safetensors").read_bytes())

    def test_files_of_their_own_validate(self):
        data, held_back = self.texts(), self.folder / "held_back.bin"
        numpy.full(200, 97).astype(numpy.uint16).tofile(held_back)
        run_dir, result = self.job("own", 2, "--data", data, "--eval-data", held_back, "--document-token", SEPARATOR)
        self.assertEqual(result.code, 0, result)
        self.assertIn(f"200 to validate in {held_back}", result.err)
        judged = run("eval", "--model", run_dir, "--data", held_back, "--context", 48)
        self.assertEqual(judged.code, 0, judged)
        self.assertAlmostEqual(float(judged.out.splitlines()[1].split()[1]), self.losses(run_dir)[-1], delta=1e-4)

    def test_what_cannot_be_is_refused_and_nothing_is_written(self):
        prompts = self.folder / "prompts.jsonl"
        prompts.write_text('{"prompt": "%s", "completion": "y"}\n' % ("x" * 60) + '{"prompt": "a", "completion": "b"}\n' * 40)
        made = run("data", "tokenize", prompts, "--tokenizer", "bytes", "--out", self.folder / "prompts.bin")
        self.assertEqual(made.code, 0, made)
        long = "document 0 has 61 tokens, and the context is 48"
        for flags, code, words in (((), 65, long), (("--packing", "tight"), 78, "--packing = tight"),
                                   (("--long-documents", "hide"), 78, "--long-documents = hide"),
                                   (("--document-token", -1), 78, "--document-token"),
                                   (("--eval-data", self.folder / "none.bin"), 65, "none.bin")):
            run_dir, result = self.job("refused", 2, "--data", self.folder / "prompts.bin", *flags)
            self.assertEqual(result.code, code, result)
            self.assertIn(words, result.err)
            self.assertFalse((run_dir / "model.safetensors").exists())
        for policy in ("cut", "skip"):
            _, result = self.job(policy, 2, "--data", self.folder / "prompts.bin", "--long-documents", policy, steps=2)
            self.assertEqual(result.code, 0, result)
            self.assertIn(f"1 document is longer than the context ({policy})", result.err)
        (self.folder / "prompts.bin.documents").unlink()
        _, result = self.job("alone", 2, "--data", self.folder / "prompts.bin")
        self.assertEqual(result.code, 65, result)
        self.assertIn("prompts.bin.documents is missing", result.err)


if __name__ == "__main__":
    unittest.main()
