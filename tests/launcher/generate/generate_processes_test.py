"""fusedbun generate beside transformers' generate: the likeliest tokens are the same; texts, chats, bytes; what is refused."""

import json
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "model"))
import hf_oracle  # noqa: E402
import job_process  # noqa: E402
from job_process import run  # noqa: E402

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
CHARACTERS = [" ", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,"]
logging.set_verbosity_error()
logging.disable_progress_bar()


def write_tokenizer(folder):
    """96 tokens: <s>, which begins every text, <a>, </s>; some characters, and é as its two bytes."""
    vocabulary = ["<s>", "<a>", "</s>", *("Ġ" if each == " " else each for each in CHARACTERS), "Ã", "©"]
    vocabulary += [f"<unused{number}>" for number in range(96 - len(vocabulary))]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.add_special_tokens(["<s>", "<a>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
                                                              "chat_template": TEMPLATE}))


class Generate(job_process.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="fusedbun-test-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        hf_oracle.make(cls.folder)
        for name in ("gpt2", "llama3", "mistral", "qwen2_windows", "qwen3"):
            write_tokenizer(cls.folder / name)
        torch.manual_seed(3)
        config = GPT2Config(vocab_size=256, n_embd=32, n_layer=1, n_head=2, n_positions=32, initializer_range=0.3)
        AutoModelForCausalLM.from_config(config).save_pretrained(cls.folder / "bytes")

    def generate(self, name, prompt, *more):
        return run("generate", "--model", self.folder / name, "--prompt", prompt, "--threads", 1, "--temperature", 0, *more)

    def report(self, *words):
        result = self.generate(*words, "--output", "json")
        self.assertEqual(result.code, 0, result)
        return json.loads(result.out)

    def oracle(self, name, ids, count):
        model = AutoModelForCausalLM.from_pretrained(self.folder / name)
        with torch.no_grad():
            whole = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=count)
        return whole[0, len(ids):].tolist()

    def test_the_likeliest_tokens_are_those_of_transformers(self):
        for name in ("gpt2", "llama3", "mistral", "qwen2_windows", "qwen3"):
            with self.subTest(model=name):
                tokenizer = AutoTokenizer.from_pretrained(self.folder / name)
                found = self.report(name, "some words. é", "--max-tokens", 40)
                self.assertEqual(found["prompt_tokens"], tokenizer("some words. é")["input_ids"])
                self.assertEqual(found["tokens"], self.oracle(name, found["prompt_tokens"], 40))
                whole = tokenizer.decode(found["prompt_tokens"] + found["tokens"], skip_special_tokens=True)
                self.assertEqual("some words. é" + found["text"], whole)
                self.assertEqual(found["stopped"], "max_tokens")
                self.assertGreater(found["tokens_per_second"], 0)

    def test_a_chat_is_asked_for_by_the_template(self):
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "qwen3")
        asked = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False)
        self.assertEqual(self.report("qwen3", "Hi", "--chat", "--max-tokens", 3)["prompt_tokens"], asked)

    def test_it_stops_at_the_end_of_text_and_of_the_context(self):
        tokens = self.report("llama3", "abc", "--max-tokens", 60)
        self.assertEqual((tokens["stopped"], len(tokens["tokens"])), ("max_tokens", 60))
        found = self.report("llama3", "abc", "--max-tokens", 100)
        self.assertEqual((found["stopped"], len(found["tokens"])), ("context", 64 - 4 + 1))
        ending = self.folder / "ending"
        shutil.copytree(self.folder / "llama3", ending)
        end = tokens["tokens"][5]
        (ending / "generation_config.json").write_text(json.dumps({"eos_token_id": [95, end]}))
        found = self.report("ending", "abc")
        self.assertEqual((found["stopped"], found["tokens"]), ("end_of_text", tokens["tokens"][:tokens["tokens"].index(end)]))

    def test_text_is_written_as_it_is_and_ends_a_line(self):
        found = self.report("gpt2", "abc", "--max-tokens", 20)
        result = self.generate("gpt2", "abc", "--max-tokens", 20)
        self.assertEqual((result.code, result.out, result.err), (0, found["text"].removesuffix("\n") + "\n", ""))

    def test_the_weights_name_the_folder_as_well(self):
        found = run("generate", "--model", "model.safetensors", "--prompt", "abc", "--temperature", 0, folder=self.folder / "qwen3")
        self.assertEqual((found.code, found.out), (0, self.generate("qwen3", "abc").out), found)

    def test_the_seed_decides_what_is_drawn(self):
        def text(seed):
            return run("generate", "--model", self.folder / "gpt2", "--prompt", "abc", "--max-tokens", 30, "--seed", seed).out
        self.assertEqual(text(1), text(1))
        self.assertNotEqual(text(1), text(2))

    def test_bf16_computes_in_bf16(self):
        model = AutoModelForCausalLM.from_pretrained(self.folder / "qwen3", dtype=torch.bfloat16)
        found = self.report("qwen3", "abc", "--max-tokens", 1, "--precision", "bf16")
        with torch.no_grad():
            logits = model(torch.tensor([found["prompt_tokens"]])).logits[0, -1].float()
        self.assertGreaterEqual(logits[found["tokens"][0]], logits.max() - 0.05)

    def test_a_model_of_bytes_needs_no_tokenizer(self):
        found = self.report("bytes", "é", "--max-tokens", 12)
        self.assertEqual(found["prompt_tokens"], [0xC3, 0xA9])
        self.assertEqual(found["tokens"], self.oracle("bytes", [0xC3, 0xA9], 12))
        self.assertEqual(found["text"], bytes(found["tokens"]).decode("utf-8", "replace"))
        self.assert_fails(self.generate("bytes", "a", "--chat"), 78, "--chat needs a tokenizer", "there is no")

    def test_what_cannot_be_is_refused_in_one_sentence(self):
        bare = self.folder / "bare"
        shutil.copytree(self.folder / "qwen3", bare)
        (bare / "tokenizer.json").unlink()
        self.assert_fails(self.generate("bare", "a"), 65, "there is no", "tokenizer.json", "96 token ids are no bytes")
        self.assert_fails(self.generate("nowhere", "a"), 65, "nowhere")
        (self.folder / "empty").mkdir()
        self.assert_fails(self.generate("empty", "a"), 65, "is a folder without a model.safetensors")
        self.assert_fails(self.generate("qwen3", "a" * 64), 78, "--prompt has 65 tokens, and the model knows 64 positions")
        self.assert_fails(self.generate("qwen3", b"\xff".decode("utf-8", "surrogateescape")), 78, "--prompt is no UTF-8 (byte 0xff")
        self.assert_fails(self.generate("qwen3", "a", "--top-p", 0), 78, "--top-p")
        self.assert_fails(self.generate("qwen3", "a", "--max-tokens", 0), 64, "--max-tokens")
        self.assert_fails(run("generate", "--prompt", "a"), 64, "--model")
        self.assert_fails(self.generate("bytes", ""), 78, "--prompt is empty")
        (bare / "tokenizer.json").write_text("{}")
        self.assert_fails(self.generate("bare", "a"), 65, "tokenizer.json is no tokenizer")
        write_tokenizer(bare)
        (bare / "tokenizer_config.json").write_text("{}")
        self.assert_fails(self.generate("bare", "a", "--chat"), 65, "--chat", "chat template")


if __name__ == "__main__":
    unittest.main()
