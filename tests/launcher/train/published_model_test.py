"""A model as transformers saves it is trained on tokens, and transformers opens what the run leaves."""

import json
import math
import sys
import tempfile
import unittest
from pathlib import Path

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "model"))
import hf_oracle as oracle  # noqa: E402
from job_process import run  # noqa: E402
from training import TrainingTestCase, metrics  # noqa: E402

VOCABULARY = 96  # of the oracle's models


class PublishedModel(TrainingTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory(prefix="fusedbun-test-")
        cls.addClassCleanup(folder.cleanup)
        cls.models = Path(folder.name)
        oracle.make(cls.models)

    def tokens(self, count=20_000):
        """A sequence that can be learned: each token tells the next, except for one in twenty, which begins anew anywhere."""
        path = self.folder / "tokens.bin"
        random = numpy.random.default_rng(1)
        tokens = numpy.zeros(count, numpy.uint16)
        for i in range(1, count):
            tokens[i] = random.integers(VOCABULARY) if random.random() < 0.05 else (tokens[i - 1] + 7) % VOCABULARY
        tokens.tofile(path)
        return path

    def fine_tune(self, name, *more):
        run_dir = self.folder / name
        result = run("launch", "-n", 2, "--", "train", "--init", self.models / name, "--data", self.tokens(), "--context", 32,
                     "--batch", 8, "--steps", 40, "--warmup", 5, "--lr", "1e-2", "--threads", 1, "--run-dir", f"{run_dir}/", *more)
        self.assertEqual(result.code, 0, result)
        return run_dir

    def test_it_learns_and_transformers_opens_the_run_folder(self):
        for name in ("gpt2", "qwen3"):  # in several files, and in one
            with self.subTest(model=name):
                (self.models / name / "tokenizer.json").write_text("{}")
                run_dir = self.fine_tune(name)
                losses = [line["validation_loss"] for line in metrics(run_dir) if "validation_loss" in line]
                self.assertLess(losses[-1], 0.5 * losses[0])
                self.assertEqual((run_dir / "tokenizer.json").read_text(), "{}")
                self.assertEqual(json.loads((run_dir / "config.json").read_text())["dtype"], "float32")
                # The last tenth of the tokens validates; saved weights are float32's.
                held_back = self.folder / "held_back.bin"
                numpy.fromfile(self.folder / "tokens.bin", numpy.uint16)[-2000:].tofile(held_back)
                expected = oracle.loss(run_dir, held_back, 32)
                self.assertAlmostEqual(expected, losses[-1], delta=1e-4)
                self.assert_evaluates(run_dir, held_back, expected)

    def assert_evaluates(self, model, file, expected):
        result = run("eval", "--model", model, "--data", file, file, "--context", 32, "--batch", 5, "--output", "json")
        self.assertEqual(result.code, 0, result)
        said = json.loads(result.out)
        for found in (*said["files"], said["all"]):
            self.assertAlmostEqual(found["loss"], expected, delta=1e-4)
            self.assertAlmostEqual(found["perplexity"], math.exp(expected), delta=1e-3)
        self.assertEqual([said["all"]["tokens"], said["files"][1]["tokens"]], [2 * 1999, 1999])

    def test_saved_folder_and_exported_checkpoint_are_the_model(self):
        (self.models / "qwen3" / "tokenizer.json").write_text('{"version": "1.0"}')
        saved, exported = self.folder / "out" / "saved", self.folder / "out" / "exported"
        run_dir = self.fine_tune("qwen3", "--save", saved, "--checkpoint-every", "20", "--eval-every", "20")
        self.assertFalse((run_dir / "model.safetensors").exists())
        result = run("checkpoint", "export", "--run-dir", run_dir, "--to", exported)
        self.assertEqual(result.code, 0, result)
        for folder in (saved, exported):
            self.assertEqual(sorted(path.name for path in folder.iterdir()),
                             ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"])
        for name in ("config.json", "generation_config.json", "tokenizer.json"):
            self.assertEqual((saved / name).read_bytes(), (exported / name).read_bytes())
        losses = {line["step"]: line["validation_loss"] for line in metrics(run_dir) if "validation_loss" in line}
        held_back = self.folder / "held_back.bin"
        numpy.fromfile(self.folder / "tokens.bin", numpy.uint16)[-2000:].tofile(held_back)
        for folder, step in ((exported, 20), (saved, 40)):
            self.assertAlmostEqual(oracle.loss(folder, held_back, 32), losses[step], delta=1e-4)
        # What it came from may be gone at the end; and a folder can be the model's own.
        again = run("train", "--init", saved, "--save", saved, "--data", self.folder / "tokens.bin", "--context", 32, "--batch", 8, "--steps", 3,
                    "--warmup", 0, "--lr", "1e-3", "--precision", "bf16", "--threads", 1, "--run-dir", self.folder / "again")
        self.assertEqual(again.code, 0, again)
        self.assertEqual(json.loads((saved / "config.json").read_text())["dtype"], "bfloat16")
        with self.assertRaisesRegex(SystemExit, "different"):
            oracle.same(saved, exported)

    def test_what_cannot_be_evaluated_is_refused(self):
        missing = run("eval", "--model", self.models / "gpt2", "--data", self.folder / "gone.bin")
        self.assertEqual(missing.code, 65, missing)
        self.assertIn("gone.bin", missing.err)
        strange = run("eval", "--model", self.folder, "--data", self.tokens(100))
        self.assertEqual(strange.code, 65, strange)
        self.assertIn("is a folder without a model.safetensors", strange.err)

    def test_a_vocabulary_that_does_not_fit_is_refused(self):
        (numpy.arange(5000) % 100).astype(numpy.uint16).tofile(self.folder / "other.bin")
        result = run("train", "--init", self.models / "qwen3", "--data", self.folder / "other.bin", "--context", 32, "--steps", 3,
                     "--run-dir", self.folder / "refused")
        self.assertEqual(result.code, 65, result)
        self.assertIn("and the model has 96 token ids", result.err)
        result = run("train", "--init", self.models / "qwen3", "--context", 32, "--steps", 3, "--run-dir", self.folder / "bytes")
        self.assertEqual(result.code, 65, result)
        self.assertIn("a model of 256 token ids, and this one has 96", result.err)


if __name__ == "__main__":
    unittest.main()
