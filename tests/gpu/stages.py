"""The stages of run.sh: builds, checks and measures the GPU path, and leaves one file of results, written anew after each stage.

A stage that fails is recorded and the next one still runs. The build runs in the background, and a stage begins as soon as its own
program is linked; what is worth most per second comes first. Python's own library alone.
"""

import dataclasses
import json
import re
import sys
import time
from collections.abc import Callable

from checks import check, graph_stage, sanitizer_stage, train_stage, two_ranks_stage
from figures import bench_stage, whole_steps_stage
from machine import REHEARSE, environment
from programs import OUT, STARTED, Build, Failed, NotRun
from sizes import headline_stage
from table import tables


@dataclasses.dataclass
class Stage:
    program: str
    run: Callable
    is_measured: bool = False  # it waits until nothing compiles any more


STEP, GRAPH, JOB = "tests/gpu/gpu_step_check", "tests/gpu/gpu_graph_check", "tests/gpu/gpu_job_check"
LAUNCHER, LOOP = "launcher/fusedbun", "tests/gpu/gpu_train_loop"
STAGES = {
    "golden": Stage(STEP, lambda build, env: check(build, "gpu_step_check", "golden")),
    "segments": Stage(STEP, lambda build, env: check(build, "gpu_step_check", "segments")),
    "job": Stage(JOB, lambda build, env: check(build, "gpu_job_check")),
    "graph": Stage(GRAPH, lambda build, env: graph_stage(build)),
    "two_ranks": Stage(LAUNCHER, lambda build, env: two_ranks_stage(build)),
    "bench_step": Stage(LAUNCHER, lambda build, env: bench_stage(build), is_measured=True),
    "train": Stage(LAUNCHER, lambda build, env: train_stage(build), is_measured=True),
    "whole_steps": Stage(LOOP, lambda build, env: whole_steps_stage(build), is_measured=True),
    "headline": Stage(LOOP, headline_stage, is_measured=True),
    "sanitizer": Stage(STEP, lambda build, env: sanitizer_stage(build)),
}


def next_stage(pending, build):
    """The first whose program is there, so that the GPU does not stand idle while the build goes on; else the first, which waits."""
    ready = [name for name in pending
             if build.is_linked(STAGES[name].program) and (build.is_over() or not STAGES[name].is_measured)]
    return (ready or pending)[0]


def slug(env):
    """NVIDIA H100 80GB HBM3 -> h100-80gb-hbm3."""
    card = "rehearsal" if REHEARSE else (env["card"] or "none")
    return re.sub(r"[^a-z0-9]+", "-", card.lower().removeprefix("nvidia ")).strip("-")


class Results:
    """What the run has found so far, in one file."""

    def __init__(self, env):
        self.path = OUT / f"gpu-{slug(env)}.json"
        self.content = {"environment": env, "held": False, "seconds": 0, "linked_after_s": {}, "stages": {}}

    def record(self, name, stage):
        """Runs one stage and writes the file."""
        began = time.monotonic()
        entry = {"state": "held", "why": None, "seconds": 0, "result": None}
        try:
            entry["result"] = stage()
        except NotRun as reason:
            entry |= {"state": "not run", "why": str(reason)}
        except Failed as failed:
            entry |= {"state": "failed", "why": str(failed), "result": failed.result}
        except Exception as error:  # noqa: BLE001: whatever it is, the other stages run
            entry |= {"state": "failed", "why": f"{type(error).__name__}: {error}"}
        entry["seconds"] = round(time.monotonic() - began, 1)
        self.content["stages"][name] = entry
        self.write()
        print(f"{entry['state']:7} {name} ({entry['seconds']} s) {entry['why'] or ''}", flush=True)

    def write(self):
        """As a whole or not at all, so that a run which is ended leaves what it had."""
        self.content["seconds"] = round(time.monotonic() - STARTED)
        self.content["held"] = not any(entry["state"] == "failed" for entry in self.content["stages"].values())
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n")
        temporary.replace(self.path)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in [*OUT.glob("*.json"), *OUT.glob("*.log")]:
        old.unlink()
    env = environment()
    results = Results(env)
    print(f"card: {env['card'] or 'none: nvidia-smi lists no GPU'}; driver {env['driver']}, torch {env['torch']}, "
          f"nvcc {env['nvcc']}; results in {results.path}", flush=True)
    build = None

    def configure():
        nonlocal build
        build = Build(env)

    results.record("configure", configure)
    results.content["linked_after_s"] = build.linked_after_s if build else {}
    pending = list(STAGES) if build is not None else []
    while pending:
        name = next_stage(pending, build)
        pending.remove(name)
        results.record(name, lambda name=name: STAGES[name].run(build, env))
    if build is not None:
        build.stop()
    print(tables(results.content))
    states = [entry["state"] for entry in results.content["stages"].values()]
    print(f"{states.count('held')} stages held, {states.count('failed')} failed, {states.count('not run')} not run, "
          f"{time.monotonic() - STARTED:.0f} s", flush=True)
    return 0 if results.content["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
