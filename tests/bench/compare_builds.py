#!/usr/bin/env python3
"""Two builds of the `fusedbun` command side by side: the same rows of `fusedbun bench` in turns, and their ratio.

    tests/bench/compare_builds.py --before ../before/build/release --after build/release [--turns 7] -- exchange --model 25m

What follows `--` goes to `fusedbun bench`, one round each time. The builds take turns (A B, B A, ...), so a slow minute hits
both; a row's ratio is the median over the pairs of after/before, with the smallest and the largest in brackets, and beside it
the ratio of the fastest step of all turns, which other programs on the machine disturb least. A row with both above 1.03 is
marked. Markdown goes to stdout, progress to stderr. Leaves with 1 if a row is marked.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

LIMIT = 1.03  # a change may cost a row this much


def name_of(row):
    if "operation" in row:
        return f"{row['operation']}, {row['backend']}, {row['ranks']} ranks"
    if "preset" in row:
        return f"{row['preset']}, {row['dtype']}, {row['threads']} threads"
    return row["name"]


def value_of(row):
    """(median, smallest) ms, or ns per parameter."""
    for field in ("step_ms", "ns_per_param", "ms"):
        if field in row:
            return row[field], row[field + "_low"]
    sys.exit(f"compare_builds.py: no figure in the row {row}")


def run(build, words):
    command = [str(Path(build) / "launcher" / "fusedbun"), "bench", *words, "--rounds", "1", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode != 0:
        sys.exit(f"compare_builds.py: {' '.join(command)} left with {done.returncode}")
    report = json.loads(done.stdout)
    return report, {name_of(row): value_of(row) for row in report["rows"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="build folder")
    parser.add_argument("--after", required=True, help="build folder")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("words", nargs="+", metavar="WORD", help="for `fusedbun bench`")
    arguments = parser.parse_args()
    for build in (arguments.before, arguments.after):
        if not os.access(Path(build) / "launcher" / "fusedbun", os.X_OK):
            sys.exit(f"compare_builds.py: {build} holds no launcher/fusedbun: build it by deploy/build.sh release")
    pairs = []
    for turn in range(arguments.turns):
        figures = {}
        for side in ("before", "after") if turn % 2 == 0 else ("after", "before"):
            report, figures[side] = run(getattr(arguments, side), arguments.words)
        pairs.append(figures)
        print(f"turn {turn + 1} of {arguments.turns}", file=sys.stderr, flush=True)

    machine = report["machine"]
    print(f"\n{date.today()}, `bench {' '.join(arguments.words)}`, {arguments.turns} turns, {machine['cores']} cores "
          f"{machine['processor']}, torch {report['torch']}.\n")
    print("| row | before | after | after / before | of the fastest |\n| --- | --- | --- | --- | --- |")
    slower = False
    for name in pairs[0]["after"]:
        both = [pair for pair in pairs if name in pair["before"] and name in pair["after"]]
        after = statistics.median(pair["after"][name][0] for pair in both or pairs)
        if not both:
            print(f"| {name} | - | {after:.3g} | new | |")
            continue
        before = statistics.median(pair["before"][name][0] for pair in both)
        ratios = sorted(pair["after"][name][0] / pair["before"][name][0] for pair in both)
        ratio = statistics.median(ratios)
        fastest = min(pair["after"][name][1] for pair in both) / min(pair["before"][name][1] for pair in both)
        is_slower = min(ratio, fastest) > LIMIT
        slower = slower or is_slower
        print(f"| {name} | {before:.3g} | {after:.3g} | **{ratio:.2f}** ({ratios[0]:.2f}..{ratios[-1]:.2f}) | {fastest:.2f}"
              f"{' slower' if is_slower else ''} |", flush=True)
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()
