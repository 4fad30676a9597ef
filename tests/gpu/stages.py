"""The stages of run.sh: builds, checks and measures the GPU path, and leaves one JSON file per stage.

A stage that fails is recorded and the next one still runs. The build runs in the background, and a stage begins
as soon as its own program is linked; what is worth most per second comes first. Python's own library alone.
"""

import datetime
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu" / "build"
HEADERS = ROOT / "build" / "gpu" / "headers"
OUT = Path(os.environ.get("OUT") or ROOT / "build" / "gpu" / "results")
REHEARSE = "--rehearse" in sys.argv
LIMIT_S = 3600 if REHEARSE else 290
STARTED = time.monotonic()


class Failed(Exception):
    """A stage did not hold; the text says why. `result` is what it found anyway."""

    def __init__(self, text, result=None):
        super().__init__(text)
        self.result = result


def output_of(*words):
    """What a command prints, or None where it fails or does not exist."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None


def torch_folder():
    return Path(importlib.util.find_spec("torch").submodule_search_locations[0])


def environment():
    """Card, driver, versions and date, which every result file names."""
    card = output_of("nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader")
    first = [field.strip() for field in card.splitlines()[0].split(",")] if card else [None] * 4
    nvcc = output_of(nvcc_program() or "nvcc", "--version") or ""
    release = re.search(r"release [\d.]+, (V[\d.]+)", nvcc)
    version = re.search(r"__version__ = '(.*)'", (torch_folder() / "version.py").read_text())
    compiler = output_of("c++", "--version")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "card": first[0],
        "driver": first[1],
        "memory": first[2],
        "compute_capability": first[3],
        "torch": version and version.group(1),
        "nvcc": release and release.group(1),
        "compiler": compiler and compiler.splitlines()[0],
        "cores": os.cpu_count(),
        "commit": output_of("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "system": platform.platform(),
        "rehearsal_on_the_cpu": REHEARSE,
    }


def nvcc_program():
    """As the build finds it: beside torch's wheels, else on the PATH, else where CUDA is usually installed."""
    wheel = torch_folder().parent / "nvidia" / "cu13" / "bin" / "nvcc"
    usual = "/usr/local/cuda/bin/nvcc"
    return str(wheel) if wheel.exists() else shutil.which("nvcc") or (usual if os.path.exists(usual) else None)


def seconds_left(wanted):
    left = LIMIT_S - (time.monotonic() - STARTED)
    if left < 5:
        raise Failed(f"not run: the {LIMIT_S} seconds are used up")
    return min(left, wanted * (12 if REHEARSE else 1))


class Build:
    """The build in the background: configured at once, then what the stages run, in their order."""

    def __init__(self, env):
        self.log = OUT / "build.log"
        shutil.rmtree(BUILD, ignore_errors=True)  # what an older run linked would count as linked
        with tarfile.open(ROOT / "tests" / "gpu" / "headers.tar.gz") as archive:
            archive.extractall(HEADERS)
        capability = (env["compute_capability"] or "9.0").replace(".", "")
        nvcc = nvcc_program()
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            "-DFUSEDBUN_BUILD_TESTS=OFF", "-DFUSEDBUN_BUILD_GPU_CHECKS=ON", "-DFUSEDBUN_BUILD_LAUNCHER=ON",
            "-DFUSEDBUN_WITH_CUDA=ON", "-DFUSEDBUN_WITH_NCCL=ON",
            "-DFUSEDBUN_WITH_MPI=OFF", "-DFUSEDBUN_WITH_CONTROL=OFF",
            "-DFUSEDBUN_WARNINGS_ARE_ERRORS=OFF",
            f"-DCMAKE_CUDA_ARCHITECTURES={capability}-real",
            f"-DFUSEDBUN_TORCH_DIR={torch_folder()}",
            f"-DCMAKE_PREFIX_PATH={HEADERS}", f"-DCMAKE_CXX_FLAGS=-isystem {HEADERS}/include",
        ] + ([f"-DFUSEDBUN_NVCC={nvcc}"] if nvcc else [])
        self.process = None
        with self.log.open("w") as log:
            done = subprocess.run(configure, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        if done.returncode != 0:
            raise Failed(f"cmake could not configure: {self.last_error()}")
        # The first program alone at first: it is small, and what it checks is worth most.
        self.process = subprocess.Popen(
            ["sh", "-c", f"cmake --build '{BUILD}' --target gpu_step_check -- -k 0; "
             f"cmake --build '{BUILD}' --target gpu_job_check fusedbun -- -k 0"],
            stdout=self.log.open("a"), stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)

    def last_error(self):
        lines = self.log.read_text(errors="replace").splitlines()
        wrong = [line for line in lines if re.search(r"error|Error|FAILED", line)]
        return (wrong or lines or ["no output"])[0][:300] + f" (all of it: {self.log.name})"

    def is_linked(self, target):
        """Ninja's log names an output once it is complete."""
        log = BUILD / ".ninja_log"
        return log.exists() and re.search(rf"\t{re.escape(target)}\t", log.read_text()) is not None

    def wait_for(self, target, seconds):
        """The program `target`, once it is linked."""
        until = time.monotonic() + seconds_left(seconds)
        while not self.is_linked(target):
            if self.process.poll() is not None:
                if self.is_linked(target):
                    break
                raise Failed(f"{target} was not built: {self.last_error()}")
            if time.monotonic() > until:
                raise Failed(f"{target} was not built in time")
            time.sleep(0.2)
        return BUILD / target

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)  # its own session: the shell, ninja and the compilers
            self.process.wait()


def run(words, seconds):
    """Runs a program; returns what it printed. Failed with its last words if it does not leave with 0."""
    limit = seconds_left(seconds)
    try:
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=limit, cwd=ROOT)
    except subprocess.TimeoutExpired as late:
        raise Failed(f"not done after {limit:.0f} s: {Path(words[0]).name} {words[1]}") from late
    if done.returncode != 0:
        sentence = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Failed(f"exit code {done.returncode}: {sentence}", json_or_none(done.stdout))
    return done.stdout


def json_or_none(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def check(build, program, *words):
    path = build.wait_for(f"tests/gpu/{program}", 240)
    return json.loads(run([path, *words, *(["--rehearse"] if REHEARSE else [])], 60))


def train(build, device, steps, seconds, ranks=1):
    """One training run, all ranks on one card; (steps' losses, validation losses, tokens per second)."""
    fusedbun = build.wait_for("launcher/fusedbun", 240)
    folder = BUILD / "runs" / f"{device}-{steps}-{ranks}"
    shutil.rmtree(folder, ignore_errors=True)
    together = ["launch", "-n", ranks, "--"] if ranks > 1 else []
    shared = ["--share-gpu"] if ranks > 1 and device == "cuda" else []
    run([fusedbun, *together, "train", *shared, "--steps", steps, "--warmup", 5, "--eval-every", 0, "--device", device, "--no-control",
         "--run-dir", folder, "--data", ROOT / "core", ROOT / "dist"], seconds)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return ([line["loss"] for line in lines if "loss" in line],
            [line["validation_loss"] for line in lines if "validation_loss" in line],
            [line["tokens_per_second"] for line in lines if "tokens_per_second" in line])


def train_stage(build):
    """The first steps give the CPU's losses; a longer run learns."""
    device, few, many = ("cpu", 3, 10) if REHEARSE else ("cuda", 20, 300)
    here, _, _ = train(build, device, few, 60)
    on_cpu, _, _ = train(build, "cpu", few, 60)
    apart = max(abs(a - b) for a, b in zip(here, on_cpu, strict=True))
    _, validation, speeds = train(build, device, many, 90)
    result = {"device": device, "steps_compared": few, "losses": here, "losses_on_cpu": on_cpu,
              "largest_difference": apart, "steps": many, "validation_loss": validation,
              "tokens_per_second": sorted(speeds)[len(speeds) // 2]}
    if apart > 2e-3:
        raise Failed(f"the first {few} losses are up to {apart:.2g} from the CPU's", result)
    if not validation[-1] < 0.9 * validation[0]:
        raise Failed(f"validation loss went from {validation[0]:.3f} to {validation[-1]:.3f}", result)
    return result


def two_ranks_stage(build):
    """Two ranks on one card, over NCCL: the first steps give the losses of one rank on the CPU."""
    device, few = ("cpu", 3) if REHEARSE else ("cuda", 20)
    together, _, _ = train(build, device, few, 90, ranks=2)
    alone, _, _ = train(build, "cpu", few, 60)
    apart = max(abs(a - b) for a, b in zip(together, alone, strict=True))
    result = {"device": device, "steps_compared": few, "losses": together, "losses_of_one_on_cpu": alone, "largest_difference": apart}
    if apart > 2e-3:
        raise Failed(f"the first {few} losses of two ranks are up to {apart:.2g} from those of one on the CPU", result)
    return result


def bench_stage(build):
    fusedbun = build.wait_for("launcher/fusedbun", 240)
    where = ["--device", "cpu", "--model", "3m", "--rounds", "1"] if REHEARSE else ["--device", "cuda", "--rounds", "20"]
    return json.loads(run([fusedbun, "bench", "step", "--json", *where], 90))


STAGES = {
    "golden": lambda build: check(build, "gpu_step_check", "golden"),
    "segments": lambda build: check(build, "gpu_step_check", "segments"),
    "job": lambda build: check(build, "gpu_job_check"),
    "train": train_stage,
    "bench_step": bench_stage,
    "two_ranks": two_ranks_stage,
}


def write(name, content):
    """As a whole or not at all, so that a run which is ended leaves what it had."""
    temporary = OUT / f".{name}.tmp"
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(OUT / f"{name}.json")


def record(name, env, stage):
    """Runs one stage and writes its file; returns its line of the summary."""
    began = time.monotonic()
    line = {"stage": name, "held": True}
    result = None
    try:
        result = stage()
    except Failed as failed:
        line |= {"held": False, "why": str(failed)}
        result = failed.result
    except Exception as error:  # noqa: BLE001: whatever it is, the other stages run
        line |= {"held": False, "why": f"{type(error).__name__}: {error}"}
    line["seconds"] = round(time.monotonic() - began, 1)
    write(name, line | {"environment": env, "result": result})
    print(f"{'held  ' if line['held'] else 'FAILED'} {name} ({line['seconds']} s) {line.get('why', '')}", flush=True)
    return line


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in [*OUT.glob("*.json"), *OUT.glob("*.log")]:
        old.unlink()
    env = environment()
    print(f"card: {env['card'] or 'none: nvidia-smi lists no GPU'}; driver {env['driver']}, torch {env['torch']}, "
          f"nvcc {env['nvcc']}; results in {OUT}", flush=True)
    lines = []
    build = None

    def configure():
        nonlocal build
        build = Build(env)

    lines.append(record("configure", env, configure))
    for name, stage in STAGES.items():
        if build is None:
            break
        lines.append(record(name, env, lambda stage=stage: stage(build)))
        write("summary", {"environment": env, "stages": lines, "seconds": round(time.monotonic() - STARTED)})
    if build is not None:
        build.stop()
    held = all(line["held"] for line in lines)
    write("summary", {"environment": env, "held": held, "stages": lines, "seconds": round(time.monotonic() - STARTED)})
    print(f"{'all stages held' if held else 'not all stages held'}, {time.monotonic() - STARTED:.0f} s", flush=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
