"""`fusedbun train --model-config`: a model that a file describes begins with random weights, and transformers opens what the run leaves."""

import json
import re
import sys
import unittest
from pathlib import Path

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "model"))
import hf_oracle as oracle  # noqa: E402
from job_process import BINARY, run  # noqa: E402
from training import TrainingTestCase, metrics  # noqa: E402

TESTS = Path(__file__).resolve().parents[1]
COURSE = TESTS.parents[1] / "launcher" / "train" / "COURSE.md"
VOCABULARY = 96
LLAMA = """
model_type = "llama"
vocab_size = 96
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 64
eos_token_id = 0
[rope_parameters]
rope_theta = 500.0
"""
GPT2 = """
model_type = "gpt2"
vocab_size = 96
n_embd = 32
n_layer = 2
n_head = 4
n_positions = 64
resid_pdrop = 0.0
"""


class FromScratch(TrainingTestCase):
    def file(self, text, name="model.toml"):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def tokens(self, count=20_000):
        """A sequence that can be learned: each token tells the next, except for one in twenty, which begins anew anywhere."""
        path = self.folder / "tokens.bin"
        random = numpy.random.default_rng(1)
        tokens = numpy.ones(count, numpy.uint16)
        for i in range(1, count):
            tokens[i] = random.integers(1, VOCABULARY) if random.random() < 0.05 else 1 + (tokens[i - 1] + 6) % (VOCABULARY - 1)
        tokens.tofile(path)
        return path

    def from_config(self, config, *more, steps=3, name="run", ranks=2, context=32):
        words = ["train", "--model-config", config, "--data", self.tokens(), "--context", context, "--batch", 8, "--steps", steps, "--warmup", 2,
                 "--lr", "1e-2", "--threads", 1, "--run-dir", self.folder / name, *more]
        return run(*(("launch", "-n", ranks, "--", *words) if ranks > 1 else words))

    def assert_refused(self, config, code, *parts, more=(), context=32):
        self.assert_fails(self.from_config(config, *more, name="refused", ranks=1, context=context), code, *parts)
        self.assertFalse((self.folder / "refused").exists())

    def test_it_learns_and_transformers_opens_the_run_folder(self):
        for name, text, said in (("llama", LLAMA, "model: Llama, 21,664 parameters (2 layers, 4 heads, width 32, context 64), as "),
                                 ("gpt2", GPT2, "model: GPT-2, 30,592 parameters (2 layers, 4 heads, width 32, context 64), as ")):
            with self.subTest(model=name):
                config = self.file(text, f"{name}.toml")
                result = self.from_config(config, name=name, steps=60)
                self.assertEqual(result.code, 0, result)
                self.assertIn(f"{said}{config} says, from seed 1", result.err)
                self.assertEqual("dropout in training: embeddings 0.1, attention 0.1, as " in result.err, name == "gpt2")
                run_dir = self.folder / name
                losses = [line["validation_loss"] for line in metrics(run_dir) if "validation_loss" in line]
                self.assertAlmostEqual(losses[0], numpy.log(VOCABULARY), delta=0.3)
                self.assertLess(losses[-1], 0.6 * losses[0])
                held_back = self.folder / "held_back.bin"
                numpy.fromfile(self.folder / "tokens.bin", numpy.uint16)[-2000:].tofile(held_back)
                self.assertAlmostEqual(oracle.loss(run_dir, held_back, 32), losses[-1], delta=1e-4)
        self.assertEqual(json.loads((self.folder / "llama" / "config.json").read_text())["eos_token_id"], 0)
        self.assertEqual(json.loads((self.folder / "gpt2" / "config.json").read_text())["embd_pdrop"], 0.1)

    def test_a_config_json_or_its_folder_with_a_tokenizer_and_what_others_write(self):
        text = json.dumps({"model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "strange": 7})
        config = self.file(text, "published/config.json")
        self.file("{}", "published/tokenizer.json")
        results = {}
        for name, given in (("file", config), ("folder", config.parent)):
            result = self.from_config(given, name=name)
            self.assertEqual(result.code, 0, result)
            self.assertEqual((self.folder / name / "tokenizer.json").read_text(), "{}")
            self.assertEqual(json.loads((self.folder / name / "config.json").read_text())["strange"], 7)
            results[name] = (self.folder / name / "model.safetensors").read_bytes()
        self.assertEqual(results["file"], results["folder"])

    def test_the_example_of_the_documentation(self):
        example = re.search(r"```toml\n(.*?)```", COURSE.read_text(), re.DOTALL)[1]
        config = self.file(example, "small.toml")
        command = re.search(r"^    fusedbun (launch .*--model-config small\.toml.*)$", COURSE.read_text(), re.MULTILINE)[1]
        words = [{"small.toml": config, "my_texts/": self.text, "runs/small": self.run_dir}.get(word, word) for word in command.split()]
        at = words.index("--epochs")
        words[at:at + 2] = ["--steps", 2]
        result = run(*words)
        self.assertEqual(result.code, 0, result)
        self.assertIn("model: Llama, 1,091,200 parameters (6 layers, 8 heads, width 128, context 512), as", result.err)
        self.assertIn("dropout in training: attention 0.1", result.err)

    def test_what_cannot_be_is_refused_before_anything_is_written(self):
        config = self.file(LLAMA)
        self.assert_refused(config, 78, "give one of them", more=("--init", self.folder))
        self.assert_refused(config, 78, "--layers = 3: ", "has 2", more=("--layers", 3))
        self.assert_refused(config, 78, "--context = 65: ", "knows 64 positions", context=65)
        self.assert_refused(self.file(LLAMA.replace("hidden_size", "hiden_size")), 78, "does not say hidden_size")
        self.assert_refused(self.file("rms_norm_epz = 1e-5\n" + LLAMA), 78, "says rms_norm_epz", "did you mean rms_norm_eps?")
        self.assert_refused(self.file(LLAMA + "="), 64, "model.toml:13: ")
        self.assert_refused(self.folder / "gone.toml", 65, "gone.toml")
        self.assert_refused(self.folder, 65, "config.json")

    def test_a_run_goes_on_and_another_model_is_another_run(self):
        config = self.file(LLAMA)
        whole = self.from_config(config, "--schedule", "constant", steps=12, name="whole")
        self.assertEqual(whole.code, 0, whole)
        first = self.from_config(config, "--schedule", "constant", "--checkpoint-every", 10, steps=11, name="first")
        self.assertEqual(first.code, 0, first)
        # A run that is over is not gone on with in its own folder.
        record = self.folder / "first" / "run.json"
        record.write_text(record.read_text().replace("SUCCEEDED", "DRAINED"))
        # The shapes are the same.
        other = self.file(LLAMA.replace("500.0", "1000.0"), "other.toml")
        self.assert_fails(self.from_config(other, "--schedule", "constant", steps=12, name="first"), 78, "the model (config.json, --model-config or its sizes) (")
        second = self.from_config(config, "--schedule", "constant", steps=12, name="first")
        self.assertEqual(second.code, 0, second)
        self.assertIn("goes on after step 10", second.err)
        self.assertEqual((self.folder / "first" / "model.safetensors").read_bytes(),
                         (self.folder / "whole" / "model.safetensors").read_bytes())

    def test_ranks_whose_files_differ_are_refused(self):
        config = self.file(LLAMA, "model0.toml")
        self.file(LLAMA.replace("500.0", "1000.0"), "model1.toml")
        words = ["train", "--model-config", f"{config.parent}/model$RANK.toml", "--data", self.tokens(), "--context", 32, "--batch", 8, "--steps", 2,
                 "--threads", 1, "--run-dir", self.folder / "run"]
        result = run("launch", "-n", 2, "--", "sh", "-c", " ".join(map(str, [BINARY, *words])))
        self.assertEqual(result.code, 78, result)
        self.assertIn("the model (config.json, --model-config or its sizes) is not the same on rank 1 as on rank 0", result.err)


if __name__ == "__main__":
    unittest.main()
