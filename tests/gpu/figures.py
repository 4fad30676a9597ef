"""The stages that measure, except for the largest model: times, and what they are beside others of the same run."""

import json
import statistics

from machine import REHEARSE
from programs import Failed, json_or_none, rehearsing, run


def spread(name, values):
    """{name: median, name_low and name_high: the quartiles}, as the benchmarks print them."""
    if len(values) < 2:
        low = high = values[0]
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {name: statistics.median(values), f"{name}_low": low, f"{name}_high": high}


def beside_the_copy(row):
    """The row with what it reaches of the bandwidth of a copy that moves as many bytes, in the same run."""
    more = {"fraction_of_copy": 1 / row["ratio_to_limit"], "fraction_of_copy_low": 1 / row["ratio_to_limit_high"],
            "fraction_of_copy_high": 1 / row["ratio_to_limit_low"]}
    if row["preset"] == "limit of AdamW":  # the largest of the copies; bytes per nanosecond are gigabytes per second
        more |= {"gigabytes_per_second": row["bytes_per_param_at_limit"] / row["ns_per_param"]}
    return row | more


def bench_stage(build):
    fusedbun = build.wait_for("launcher/fusedbun")
    where = ["--device", "cpu", "--model", "3m", "--rounds", "1"] if REHEARSE else ["--device", "cuda", "--rounds", "20"]
    report = json.loads(run([fusedbun, "bench", "step", "--json", *where], 90))
    return report | {"rows": [beside_the_copy(row) for row in report["rows"]]}


def train_loop(build, model, optimizers, seconds, settings=None, **numbers):
    """Runs of gpu_train_loop, one after the other in one process. Where it fails, `result` has those that were done."""
    words = [build.wait_for("tests/gpu/gpu_train_loop"), "--model", model]
    for optimizer in optimizers:
        words += ["--optimizer", optimizer]
    for flag, number in numbers.items():
        words += [f"--{flag.replace('_', '-')}", number]
    try:
        return runs_of(run([*words, *rehearsing()], seconds, settings))
    except Failed as failed:
        failed.result = runs_of(failed.printed)
        raise


def runs_of(printed):
    """The runs among the lines that gpu_train_loop has printed."""
    lines = [json_or_none(line) for line in printed.splitlines()]
    return [timed(line) for line in lines if isinstance(line, dict) and "optimizer" in line]


def timed(one):
    """A run with its figures: the optimizer is what a step takes beyond forward and backward alone."""
    steps, bare = one["step_seconds"], one["forward_backward_seconds"]
    return (one | spread("tokens_per_second", [one["tokens_per_step"] / s for s in steps]) | spread("step_ms", [s * 1e3 for s in steps])
            | spread("forward_backward_ms", [s * 1e3 for s in bare])
            | spread("optimizer_ms", [(s - statistics.median(bare)) * 1e3 for s in steps]))


def whole_steps_stage(build):
    """A training loop with ShardedFusedbun over NCCL beside the same loop with LibTorch's fused AdamW."""
    ways = ["AdamW, autocast", "recommended, autocast", "compact, autocast",
            "AdamW, bf16", "recommended, bf16", "compact, bf16", "compact, bf16, in backward"]
    sizes = [("tiny", 2, 2)] if REHEARSE else [("124m", 8, 15), ("1.5b", 4, 9)]
    runs = []
    for model, sequences, rounds in sizes:
        try:
            runs += train_loop(build, model, ways, 60, sequences=sequences, rounds=rounds)
        except Failed as failed:
            raise Failed(f"{model}: {failed}", {"runs": runs + failed.result}) from failed
    return {"runs": runs}
