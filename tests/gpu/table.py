#!/usr/bin/env python3
"""The README's tables of a GPU, in Markdown, from a file of results that run.sh has left.

    table.py FILE
"""

import json
import math
import sys


def shown(number):
    """Three significant digits: a step is not known better."""
    if number is None:
        return ""
    digits = 0 if number == 0 else max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:.{digits}f}"


def with_quartiles(row, key, scale=1):
    """0.153 (0.151 to 0.156), or as much of it as the row has."""
    median, low, high = (row.get(key + end) for end in ("", "_low", "_high"))
    if median is None:
        return ""
    text = shown(median * scale)
    return text if low is None else f"{text} ({shown(low * scale)} to {shown(high * scale)})"


def gigabytes(count):
    return "" if count is None else shown(count / 1e9)


def markdown(head, rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def result_of(results, stage):
    return results["stages"].get(stage, {}).get("result") or {}


def heading(results):
    env = results["environment"]
    where = "a rehearsal on the CPU" if env["rehearsal_on_the_cpu"] else f"{env['card']} ({env['memory']}, driver {env['driver']})"
    states = ", ".join(f"{name} {entry['state']}" for name, entry in results["stages"].items() if entry["state"] != "held")
    return (f"{env['date']}, commit {env['commit']}: {where}, torch {env['torch']}, nvcc {env['nvcc']}, NCCL {env['nccl']}; "
            f"medians (quartiles){'; ' + states if states else ''}")


def step_table(results):
    """One optimizer step alone."""
    rows = result_of(results, "bench_step").get("rows", [])
    copy = next((row["gigabytes_per_second"] for row in rows if "gigabytes_per_second" in row), None)
    steps = [[row["preset"], row["dtype"], with_quartiles(row, "ns_per_param"), with_quartiles(row, "ratio_to_adamw_fused"),
              with_quartiles(row, "fraction_of_copy")] for row in rows if not row["preset"].startswith("limit")]
    if not steps:
        return ""
    above = f"One step of {rows[0]['model']} parameters; the copy moves {shown(copy)} GB/s, read and written.\n\n"
    return above + markdown(["step", "type", "ns per parameter", "of fused AdamW's time", "of the copy's bandwidth"], steps)


def whole_steps_table(results):
    """A training loop."""
    rows = [[run["model"], run["optimizer"], with_quartiles(run, "tokens_per_second"), with_quartiles(run, "forward_backward_ms"),
             with_quartiles(run, "optimizer_ms"), gigabytes(run["peak_bytes"])] for run in result_of(results, "whole_steps").get("runs", [])]
    head = ["model", "optimizer", "tokens per second", "forward and backward alone, ms", "what the optimizer adds, ms", "peak GB"]
    return markdown(head, rows) if rows else ""


def sizes_table(results):
    """The largest model that trains."""
    rows = []
    for way in result_of(results, "headline").get("ways", []):
        best = way["largest"]
        if best is None:
            rows.append([way["optimizer"], "none found", "", "", "", ""])
            continue
        rows.append([way["optimizer"], f"{best['parameters'] / 1e9:.1f} B" + ("" if way.get("is_the_largest") else " or more"),
                     str(best["layers"]), gigabytes(best["peak_bytes"]), gigabytes(best["predicted_bytes"]),
                     with_quartiles(best, "step_ms", 1e-3)])
    head = ["optimizer", "largest model", "layers", "peak GB", "by the law", "seconds per step"]
    return markdown(head, rows) if rows else ""


def tables(results):
    parts = [heading(results), step_table(results), whole_steps_table(results), sizes_table(results)]
    return "\n\n".join(part for part in parts if part)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        print(tables(json.load(file)))


if __name__ == "__main__":
    main()
