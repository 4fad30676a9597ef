"""One turn of a contestant: starts its processes, waits with a deadline, reads the rows that it printed.

A turn never fails: what went wrong is the `refused` of its row.
"""

import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from peer.contest import EXCHANGE, OPTIMIZER_THREADS, SIZES, TRAIN, WORLD_SIZE, Task
from peer.environment import ROOT, variables

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PRESETS = ("recommended", "sm3", "compact", "lean", "elementwise")
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Turn:
    part: str  # train, step or exchange
    model: str
    name: str  # for progress; rows carry their own
    run: Callable  # () -> rows


def outcome(commands, environment, timeout_s):
    """Runs commands side by side in process groups of their own. Returns (stdout of the first, "") or (None, why); the
    first that fails ends the others."""
    clean = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES} | environment
    processes, end = [], time.monotonic() + timeout_s
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            for words in commands:
                processes.append(subprocess.Popen(
                    words, cwd=ROOT, env=clean, stdin=subprocess.DEVNULL, stderr=err, start_new_session=True,
                    stdout=subprocess.DEVNULL if processes else out))
            while None in (codes := [process.poll() for process in processes]):
                if any(codes) or time.monotonic() > end:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for file in (out, err):
            file.seek(0)
        if all(code == 0 for code in codes):
            return out.read(), ""
        said = [line.strip() for line in err.read().splitlines() if line.strip()]
        how = f"left with {next(filter(None, codes))}" if any(codes) else f"took more than {timeout_s:.0f} s"
        return None, f"{how}: {said[-1][:200]}" if said else how


def rows_of(name, text, why):
    """The rows of a contestant that printed `text`: one object, or an object with `rows`."""
    if text is None:
        return [{"name": name, "refused": why}]
    try:
        result = json.loads(text)
    except json.JSONDecodeError:
        return [{"name": name, "refused": f"printed no JSON: {text[:80]!r}"}]
    return result["rows"] if "rows" in result else [{"name": name, **result}]


class Peers:
    """Makes the turns of the peers."""

    def __init__(self, python, timeout_s):
        self.python, self.timeout_s = python, timeout_s

    def turn(self, model, name, task):
        def run():
            world_size = 1 if task.part == "step" else WORLD_SIZE
            with tempfile.TemporaryDirectory(prefix="fusedbun-peers-") as folder:
                words = [self.python, Path(__file__).with_name("rank.py"), json.dumps(task.to_json())]
                commands = [[*map(str, words), str(rank), f"{folder}/store"] for rank in range(world_size)]
                return rows_of(name, *outcome(commands, variables(task.threads), self.timeout_s))

        return Turn(task.part, model, name, run)

    def turns(self, model, parts, steps, wanted):
        size = SIZES[model]
        if "train" in parts:
            for peer in filter(lambda peer: wanted(peer.name), TRAIN):
                yield self.turn(model, peer.name, Task("train", size, steps or size.train_steps, peer=peer))
        if "exchange" in parts:
            for peer in filter(lambda peer: wanted(peer.name), EXCHANGE):
                yield self.turn(model, peer.name, Task("exchange", size, steps or size.exchange_steps, peer=peer))
        if "step" in parts:
            for threads in OPTIMIZER_THREADS:
                yield self.turn(model, f"optimizers on {threads} threads",
                                Task("step", size, steps or size.optimizer_steps, threads))


class Ours:
    """Makes the turns of `fusedbun bench`, which brings all its rows in one."""

    def __init__(self, binary, timeout_s):
        self.binary, self.timeout_s = Path(binary), timeout_s

    def absence(self):
        """Why there is nothing to measure, or an empty string."""
        if not self.binary.exists():
            return f"{self.binary} does not exist (deploy/build.sh release builds it): the peers are measured alone"
        if outcome([[str(self.binary), "bench", "--help"]], {}, 60)[0] is None:
            return f"{self.binary} has no command `bench`: the peers are measured alone"
        return ""

    def turn(self, part, model, flags):
        def run():
            words = [str(self.binary), "bench", part, "--model", model, "--json", *flags]
            rows = rows_of(part, *outcome([words], {}, self.timeout_s))
            return [own_row(row) for row in rows]

        return Turn(part, model, f"fusedbun bench {part}", run)

    def turns(self, model, parts, steps):
        size = SIZES[model]
        for part, usual in (("train", size.train_steps), ("exchange", size.exchange_steps)):
            if part in parts:
                yield self.turn(part, model, ["--rounds", "1", "--steps", str(steps or usual)])
        if "step" in parts:
            yield self.turn("step", model, [])


def own_row(row):
    """A row of `fusedbun bench` with the names that the peers' rows have. The limits of memory and LibTorch's AdamW, which
    `bench step` times beside the presets, are not ours."""
    if "preset" not in row:
        return {**row, "name": f"fusedbun: {row['name']}", "ours": True}
    if row["preset"] in PRESETS:
        return {**row, "name": f"fusedbun: {row['preset']}, {row['dtype']}", "ours": True}
    return {**row, "name": f"{row['preset']}, by `fusedbun bench`"}
