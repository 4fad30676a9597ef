"""The real `transformers` package as the oracle of our models.

hf_oracle.py make FOLDER           tiny models of each family: FOLDER/NAME has what save_pretrained writes, and beside it
                                   expected.safetensors: tokens, targets, logits, loss, and the gradient of every parameter
hf_oracle.py loss FOLDER TOKENS C  opens FOLDER, and prints its mean loss on a file of 16-bit tokens, in sequences of C tokens
hf_oracle.py same FOLDER OTHER     as equal, of one model
hf_oracle.py equal FOLDER OTHER    opens each model of both with AutoModelForCausalLM; fails unless it misses nothing, knows everything it
                                   finds, and has the same weights and logits, to the bit
"""
import logging
import sys
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file
from transformers import (AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)
from transformers.utils import logging as transformers_logging

SIZES = dict(vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6, max_position_embeddings=64,
             initializer_range=0.1, bos_token_id=None, eos_token_id=None)
GROUPED = SIZES | dict(num_key_value_heads=2)


def rope(kind, **more):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=500.0, **more))


MODELS = {
    "gpt2": GPT2Config(vocab_size=96, n_embd=48, n_layer=3, n_head=4, n_positions=64, initializer_range=0.1, resid_pdrop=0.05,
                       bos_token_id=None, eos_token_id=None),
    "llama2": LlamaConfig(**SIZES, attention_dropout=0.2),
    "llama3": LlamaConfig(**GROUPED, tie_word_embeddings=True, head_dim=16,
                          **rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)),
    "llama_biases": LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True, **rope("linear", factor=2.0)),
    "llama_yarn": LlamaConfig(**SIZES, **rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama_dynamic": LlamaConfig(**SIZES, **rope("dynamic", factor=4.0)),
    "mistral": MistralConfig(**GROUPED, head_dim=8, sliding_window=7),
    "mistral_unwindowed": MistralConfig(**GROUPED, sliding_window=None),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen2_windows": Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": Qwen3Config(**GROUPED, head_dim=12, tie_word_embeddings=True),
    "qwen3_biases": Qwen3Config(**GROUPED, head_dim=12, attention_bias=True),
}


def make(folder):
    for number, (name, config) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():  # biases begin at 0, norms at 1
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        # Several files where there is room for it.
        model.save_pretrained(folder / name, max_shard_size="60KB" if name in ("llama2", "gpt2") else "5GB")
        tokens = torch.randint(0, 96, (3, 41))
        targets = torch.randint(0, 96, (3, 41))
        targets[1, 5:9] = -100
        logits = model(tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        expected = {"tokens": tokens, "targets": targets, "logits": logits.detach().contiguous(), "loss": loss.detach()}
        expected |= {"gradient." + name: parameter.grad.contiguous() for name, parameter in model.named_parameters()}
        save_file(expected, folder / name / "expected.safetensors")


def opened(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    strange = {key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(key)}
    if strange:
        sys.exit(f"{folder}: {strange}")
    return model


def loss(folder, path, context):
    tokens = torch.from_numpy(numpy.fromfile(path, numpy.uint16).astype(numpy.int64))
    model, total, context = opened(folder), 0.0, int(str(context))
    with torch.no_grad():
        for begin in range(0, len(tokens) - 1, context):
            targets = tokens[begin + 1:begin + 1 + context]
            logits = model(tokens[begin:begin + len(targets)][None]).logits[0]
            total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return total / (len(tokens) - 1)


def same(folder, other):
    first, second = opened(folder), opened(other)
    weights, others = first.state_dict(), second.state_dict()
    different = [name for name in weights if name not in others or weights[name].dtype != others[name].dtype
                 or not torch.equal(weights[name], others[name])]
    if different or weights.keys() != others.keys():
        sys.exit(f"{other}: different: {different or weights.keys() ^ others.keys()}")
    tokens = torch.arange(3 * 41).view(3, 41) * 7 % 96
    with torch.no_grad():
        if not torch.equal(first(tokens).logits, second(tokens).logits):
            sys.exit(f"{other}: other logits, so config.json says another model")


def equal(folder, other):
    for name in MODELS:
        same(folder / name, other / name)


def print_loss(*words):
    print(loss(*words))


transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
logging.disable(logging.WARNING)
if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"make": make, "loss": print_loss, "same": same, "equal": equal}[command](*map(Path, paths))
