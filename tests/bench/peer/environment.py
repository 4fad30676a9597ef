"""The Python environment of the peers: .venv-peers, which sees the torch of .venv and adds what is missing there.

Everything that the peers compile (Inductor's and DeepSpeed's kernels) is kept in it too.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = ROOT / "tests/bench/requirements-peers.txt"
PROJECT, PEERS = ROOT / ".venv", ROOT / ".venv-peers"
FROM_PROJECT = ("torch", "numpy")  # requirements that .venv brings
NAMED = ("torch", "pytorch_optimizer", "deepspeed", "Python")  # whose versions are told
CODE_UNAVAILABLE = 69


class Missing(Exception):
    """What is missing, and the one command that mends it."""


def required():
    """{package: version} of the requirements file."""
    lines = [line.split("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def installed():
    """{package: version} of what .venv-peers sees, Python included."""
    if not (PEERS / "bin/python").exists():
        return {}
    program = ("import importlib.metadata, platform\n"
               "print('Python==' + platform.python_version())\n"
               "for package in importlib.metadata.distributions(): print(package.name + '==' + package.version)")
    listed = subprocess.run([PEERS / "bin/python", "-c", program], capture_output=True, text=True, check=True).stdout
    return dict(line.split("==") for line in reversed(listed.split()))  # of two versions the first is imported


def missing_packages(wanted, found):
    """The requirements that are not met, as pip writes them. Names are compared as PyPI does."""
    def canonical(name):
        return name.lower().replace("_", "-").replace(".", "-")

    found = {canonical(name): version.split("+")[0] for name, version in found.items()}
    return [f"{name}=={version}" for name, version in wanted.items() if found.get(canonical(name)) != version]


def create():
    """An empty .venv-peers that sees the packages of .venv."""
    subprocess.run([PROJECT / "bin/python", "-m", "venv", PEERS], check=True)
    (packages,) = PEERS.glob("lib/python*/site-packages")
    (packages / "project.pth").write_text(str(PROJECT / packages.relative_to(PEERS)) + "\n")


def prepare(say):
    """Installs what is missing. Returns the environment's python and the versions to tell; throws Missing."""
    if not (PROJECT / "bin/python").exists():
        raise Missing(".venv, which holds torch, is missing; run: deploy/install.sh test")
    if not (PEERS / "bin/python").exists():
        say("creating .venv-peers")
        create()
    lacking = missing_packages(required(), installed())
    if any(line.split("==")[0] in FROM_PROJECT for line in lacking):
        raise Missing(f".venv lacks {' and '.join(lacking)}; run: deploy/install.sh test")
    if lacking:
        command = [str(PEERS.relative_to(ROOT) / "bin/python"), "-m", "pip", "install", "--no-deps", *lacking]
        say("installing into .venv-peers: " + " ".join(lacking))
        quiet = ["--quiet", "--disable-pip-version-check", "--progress-bar", "off"]
        if subprocess.run(command + quiet, cwd=ROOT, stdout=sys.stderr).returncode != 0:
            raise Missing(".venv-peers lacks packages; run: " + " ".join(command))
    found = installed()
    return PEERS / "bin/python", {name: found[name] for name in NAMED}


def variables(threads):
    """Environment variables for a contestant's processes. MALLOC_*: what `fusedbun bench` asks of glibc for itself."""
    return {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_MAX_": "0",
            "OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu",
            "TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(PEERS / f"inductor-{threads}"),
            "TORCH_EXTENSIONS_DIR": str(PEERS / "torch_extensions")}
