#!/usr/bin/env python3
"""Fusedbun beside the optimizers and the sharding that Python has, in one run.

    tests/bench/peers.py --model 25m                       tables on stdout, progress on stderr
    tests/bench/peers.py --model all --write-readme        and into tests/bench/README.md
    tests/bench/peers.py --model 3m --rounds 1 --json      {"date", "machine", "versions", "rows": those of `train`, ...}

GPT-2-shaped models, float32, two ranks over Gloo on this host, one thread per rank. Three parts: `train`, whole steps and
what they take beyond forward and backward alone (measured in the same process, in turns); `exchange`, reduce + step +
gather without a model; `step`, the optimizer alone in one process. Contestants take turns, each in processes of its own;
nothing counts whose loss does not fall, or falls otherwise than that of the same optimizer under DDP. Ours comes from
`fusedbun bench`. How it is measured: tests/bench/README.md.

Needs .venv (deploy/install.sh test) and installs what tests/bench/requirements-peers.txt lists into .venv-peers, once.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections import defaultdict
from datetime import date
from pathlib import Path

from peer import environment, report
from peer.contest import SIZES, TRAIN
from peer.machine import machine
from peer.turns import Ours, Peers

PARTS = ("train", "exchange", "step")
ROWS_SHOWN = 8  # in a line of progress
README = Path(__file__).with_name("README.md")


def say(words):
    print(words, file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*SIZES, "all"], default="25m")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; repeatable")
    parser.add_argument("--only", metavar="TEXT", action="append", help="only peers whose name contains TEXT; repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="how often all take turns (default 3)")
    parser.add_argument("--steps", type=int, help="timed steps per turn (default: by model and part)")
    parser.add_argument("--timeout", type=float, default=900, metavar="SECONDS", help="for one turn (default 900)")
    parser.add_argument("--binary", default=str(environment.ROOT / "build/release/launcher/fusedbun"))
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    parser.add_argument("--write-readme", action="store_true", help=f"replace the tables in {README.name} beside this file")
    return parser.parse_args()


def all_turns(chosen, peers, ours):
    models = list(SIZES) if chosen.model == "all" else [chosen.model]
    parts = chosen.part or PARTS
    for model in models:
        if ours:
            yield from ours.turns(model, parts, chosen.steps)
        yield from peers.turns(model, parts, chosen.steps,
                               lambda name: not chosen.only or any(text in name for text in chosen.only))


def in_short(row):
    for field, unit in (("not_forward_backward_ms", "ms beside forward/backward"), ("ms", "ms"), ("ns_per_param", "ns")):
        if field in row:
            return f"{row['name']} {row[field]:.2f} {unit}"
    return f"{row['name']} refused: {row['refused']}"


def measure(turns, rounds):
    """{(part, model): {key of the row: its rows, one per round}}. Interrupted (SIGINT, SIGTERM), it keeps what there is."""
    measured, started, done, count = defaultdict(lambda: defaultdict(list)), time.monotonic(), 0, rounds * len(turns)
    try:
        for number in range(1, rounds + 1):
            for turn in turns:
                rows = turn.run()
                for row in rows:
                    measured[turn.part, turn.model][row["name"], row.get("threads")].append({**row, "model": turn.model})
                done += 1
                minutes = (time.monotonic() - started) / 60
                say(f"{done}/{count}, round {number} of {rounds}, {turn.model} {turn.part}: "
                    + ("; ".join(map(in_short, rows)) if len(rows) <= ROWS_SHOWN else f"{turn.name}, {len(rows)} rows")
                    + f"; {minutes:.1f} min gone, about {minutes / done * (count - done):.0f} min left")
    except KeyboardInterrupt:
        say("interrupted: what follows is what was measured")
    return measured


def reported(chosen, measured, machine_at_start, versions):
    of_part = {part: [report.merged(rounds) for (of, _), rows in measured.items() if of == part for rounds in rows.values()]
               for part in PARTS}
    rows = report.refuse_other_losses(of_part["train"], {peer.name: peer.optimizer for peer in TRAIN})
    words = [word for word in sys.argv[1:] if word not in ("--json", "--write-readme")]
    return {"date": str(date.today()), "machine": machine_at_start, "versions": versions,
            "command": shlex.join(["tests/bench/peers.py", *words]), "rounds": chosen.rounds, "rows": rows,
            "exchange": of_part["exchange"], "step": of_part["step"]}


def main():
    chosen, machine_at_start = arguments(), machine()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        python, versions = environment.prepare(say)
    except environment.Missing as missing:
        say(f"tests/bench/peers.py: {missing}")
        return environment.CODE_UNAVAILABLE
    ours = Ours(chosen.binary, chosen.timeout)
    if absence := ours.absence():
        say(f"tests/bench/peers.py: {absence}")
        ours = None
    if os.getloadavg()[0] > 0.5:
        say(f"tests/bench/peers.py: others use this machine (load average {os.getloadavg()[0]:.1f}): figures will not hold")
    turns = list(all_turns(chosen, Peers(python, chosen.timeout), ours))
    result = reported(chosen, measure(turns, chosen.rounds), machine_at_start, versions)
    tables = report.markdown(result)
    print(json.dumps(result, indent=1) if chosen.json else tables)
    if chosen.write_readme:
        README.write_text(report.with_tables(README.read_text(), tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
