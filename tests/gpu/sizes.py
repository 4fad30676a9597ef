"""The stage that finds the largest model which takes real steps on the card, for several ways of training it."""

import dataclasses
import re
import time

from figures import train_loop
from machine import REHEARSE
from programs import Failed
from search import largest_that_fits


@dataclasses.dataclass
class Way:
    """A way of training a model of bfloat16 parameters, and the bytes per parameter that it takes by the law."""
    optimizer: str
    bytes: float
    trials: int


# What is worth most comes first; where time is short the others are left out.
WAYS = [Way("compact, bf16, in backward", 2.07, 5), Way("AdamW, bf16 with float32 masters", 16, 3), Way("AdamW, bf16", 8, 3),
        Way("compact, bf16", 4.07, 4), Way("AdamW, bf16, in backward", 6, 3)]
LAYER_PARAMETERS, OTHER_PARAMETERS = 0.4533e9, 0.426e9  # of llama.h's shape, to guess with
TINY_MEMORY = 1_000_000  # a rehearsal's card
FULL = re.compile(r"memory is full|out of memory|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)")
# Without holes where layers of different sizes came and went. What does not know it fails at once, and is tried again without.
WITHOUT_HOLES = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def first_guess(way, env):
    """Layers, by the law; activations, CUDA and NCCL get what is left. Few where the card's memory is not known."""
    if REHEARSE or not env["memory"]:
        return 3
    memory = int(env["memory"].split()[0]) * 2**20
    return round((0.94 * memory / way.bytes - OTHER_PARAMETERS) / LAYER_PARAMETERS)


def size_trial(build, way, layers, settings):
    """A trial's figures; "fits" among them."""
    try:
        one, = train_loop(build, "tiny-llama" if REHEARSE else "llama", [way.optimizer], 45, settings, layers=layers, rounds=2, warm_ups=0)
    except Failed as failed:
        if not FULL.search(f"{failed} {failed.printed}"):
            raise
        return {"layers": layers, "fits": False, "why": str(failed)}
    one["predicted_bytes"] = sum(one[part] or 0 for part in ("parameter_bytes", "state_bytes", "gradient_bytes", "activation_bytes"))
    if REHEARSE:
        one["free_bytes"] = TINY_MEMORY - one["predicted_bytes"]
    return one | {"fits": one["free_bytes"] >= 0}


def largest_model(build, way, env):
    """The search for one way; its result is whatever was found when it ended."""
    settings = [WITHOUT_HOLES, {}]
    result = {"optimizer": way.optimizer, "largest": None, "trials": []}

    def trial(layers):
        try:
            one = size_trial(build, way, layers, settings[0])
        except Failed as failed:
            if result["trials"] or len(settings) == 1:
                raise
            result["why_not_expandable"] = str(failed)
            settings.pop(0)
            one = size_trial(build, way, layers, settings[0])
        result["trials"].append(one)
        if not one["fits"]:
            return None
        if result["largest"] is None or layers > result["largest"]["layers"]:
            result["largest"] = one
        return int(one["free_bytes"] / (one["predicted_bytes"] / layers))

    try:
        result["is_the_largest"] = largest_that_fits(trial, first_guess(way, env), way.trials) + 1 in [
            one["layers"] for one in result["trials"] if not one["fits"]]
    except Failed as failed:
        result["why"] = str(failed)
    return result


def headline_stage(build, env):
    """The largest model that takes real steps on this card, by the optimizer and how it holds the model."""
    until = time.monotonic() + (600 if REHEARSE else 110)
    result = {"ways": []}
    for way in WAYS:
        if time.monotonic() < until:
            result["ways"].append(largest_model(build, way, env))
    largest = result["ways"][0]["largest"]
    if largest is None:
        raise Failed(f"no size was found: {result['ways'][0].get('why', 'none fits')}", result)
    if largest["peak_bytes"] is not None:
        off = largest["peak_bytes"] / largest["predicted_bytes"] - 1
        if abs(off) > 0.03:
            raise Failed(f"its peak is {off:+.1%} from the law's: parameters, state, two buckets, activations", result)
    return result
