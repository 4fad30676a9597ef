"""The machine of a run: where its programs are, and what its results depend on."""

import datetime
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REHEARSE = "--rehearse" in sys.argv


def output_of(*words):
    """What a command prints, or None where it fails or does not exist."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None


def torch_folder():
    return Path(importlib.util.find_spec("torch").submodule_search_locations[0])


def nvcc_program():
    """As the build finds it: beside torch's wheels, else on the PATH, else where CUDA is usually installed."""
    wheel = torch_folder().parent / "nvidia" / "cu13" / "bin" / "nvcc"
    usual = "/usr/local/cuda/bin/nvcc"
    return str(wheel) if wheel.exists() else shutil.which("nvcc") or (usual if os.path.exists(usual) else None)


def sanitizer_program():
    """Beside nvcc, in one of the two places where CUDA's packages have it, or on the PATH."""
    nvcc = nvcc_program()
    beside = Path(nvcc).resolve().parent if nvcc else Path("/nowhere")
    places = [beside / "compute-sanitizer", beside.parent / "compute-sanitizer" / "compute-sanitizer"]
    return next((str(place) for place in places if place.is_file()), shutil.which("compute-sanitizer"))


def environment():
    """Card, driver, versions and date, without which no result means anything."""
    card = output_of("nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader")
    first = [field.strip() for field in card.splitlines()[0].split(",")] if card else [None] * 4
    nvcc = output_of(nvcc_program() or "nvcc", "--version") or ""
    release = re.search(r"release [\d.]+, (V[\d.]+)", nvcc)
    version = re.search(r"__version__ = '(.*)'", (torch_folder() / "version.py").read_text())
    compiler = output_of("c++", "--version")
    nccl = next(torch_folder().parent.glob("nvidia_nccl_cu13-*.dist-info"), None)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "card": first[0],
        "driver": first[1],
        "memory": first[2],
        "compute_capability": first[3],
        "torch": version and version.group(1),
        "nvcc": release and release.group(1),
        "nccl": nccl and nccl.name.split("-")[1].removesuffix(".dist"),
        "compiler": compiler and compiler.splitlines()[0],
        "cores": os.cpu_count(),
        # A copy of the working tree has no history; who copies it says what it was.
        "commit": os.environ.get("FUSEDBUN_COMMIT")
                  or output_of("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"),
        "system": platform.platform(),
        "rehearsal_on_the_cpu": REHEARSE,
    }
