"""GPT-2 in numpy, written from the paper and the Hugging Face layout, independent of LibTorch.

gpt2_oracle.py MODEL TOKENS LOGITS: reads a model (safetensors, Hugging Face's names) and tokens (int64 [batch, time]), and
fails unless the logits (float32 [batch, time, vocab]) are those of the model to 1e-4.
"""
import sys

import numpy
from safetensors import safe_open


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / numpy.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def softmax(x):
    raised = numpy.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + numpy.tanh(numpy.sqrt(2 / numpy.pi) * (x + 0.044715 * x**3)))


def attention(x, parameter, name, heads):
    batch, time, width = x.shape
    projected = x @ parameter[name + "c_attn.weight"] + parameter[name + "c_attn.bias"]
    query, key, value = (part.reshape(batch, time, heads, width // heads).swapaxes(1, 2)
                         for part in numpy.split(projected, 3, axis=-1))
    scores = query @ key.swapaxes(-1, -2) / numpy.sqrt(width // heads)
    scores = numpy.where(numpy.tril(numpy.ones((time, time), bool)), scores, -numpy.inf)
    mixed = (softmax(scores) @ value).swapaxes(1, 2).reshape(batch, time, width)
    return mixed @ parameter[name + "c_proj.weight"] + parameter[name + "c_proj.bias"]


def mlp(x, parameter, name):
    hidden = gelu(x @ parameter[name + "c_fc.weight"] + parameter[name + "c_fc.bias"])
    return hidden @ parameter[name + "c_proj.weight"] + parameter[name + "c_proj.bias"]


def logits_of(parameter, heads, tokens):
    x = parameter["wte.weight"][tokens] + parameter["wpe.weight"][: tokens.shape[1]]
    layer = 0
    while f"h.{layer}.ln_1.weight" in parameter:
        block = f"h.{layer}."
        normed = layer_norm(x, parameter[block + "ln_1.weight"], parameter[block + "ln_1.bias"])
        x = x + attention(normed, parameter, block + "attn.", heads)
        normed = layer_norm(x, parameter[block + "ln_2.weight"], parameter[block + "ln_2.bias"])
        x = x + mlp(normed, parameter, block + "mlp.")
        layer += 1
    return layer_norm(x, parameter["ln_f.weight"], parameter["ln_f.bias"]) @ parameter["wte.weight"].T


def main(model_path, tokens_path, logits_path):
    with safe_open(model_path, "numpy") as model:
        heads = int(model.metadata()["n_head"])
        parameter = {name: model.get_tensor(name).astype(numpy.float64) for name in model.keys()}
    with safe_open(tokens_path, "numpy") as file:
        tokens = file.get_tensor("tokens")
    with safe_open(logits_path, "numpy") as file:
        found = file.get_tensor("logits")
    expected = logits_of(parameter, heads, tokens)
    difference = numpy.abs(found - expected).max()
    print(f"largest logit {numpy.abs(expected).max():.3f}, largest difference {difference:.2e}")
    sys.exit(0 if found.shape == expected.shape and difference < 1e-4 else 1)


main(*sys.argv[1:])
