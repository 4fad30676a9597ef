#!/usr/bin/env python3
"""Holds the order of the parts: who may include whom, which library is seen where, and names that say nothing.

    include_direction.py [ROOT]

Prints `file:line: text` and the rule for each violation and exits with 1. The tables below are the rules; DESIGN-level words
for them stand in the README of each folder.
"""
import re
import sys
from pathlib import Path

from source_files import SOURCE_ROOT, code_lines, sources

INCLUDE = re.compile(r'^\s*#\s*include\s*(?P<open>[<"])(?P<path>[^>"]+)[>"]')

# Libraries by the headers they are recognised by. What matches none is the standard library or the operating system.
LIBRARIES = {
    "torch": r"(torch|ATen|c10|caffe2)/",
    "gloo": r"gloo/",
    "mpi": r"mpi\.h$",
    "nccl": r"nccl",
    "cuda": r"(cuda|cublas|cudnn|nvtx|cooperative_groups|cub/|thrust/)",
    "grpc": r"(grpc|grpcpp|google/protobuf)/.*(?<!\.pb\.h)$",
    "proto": r".*\.pb\.h$",
    "log": r"(spdlog|fmt)/",
    "json": r"nlohmann/",
    "toml": r"toml\+\+/",
    "flags": r"CLI/",
    "prometheus": r"(prometheus/.*|httplib\.h$)",
    "hash": r"xxhash\.h$",
    "crypto": r"openssl/",
    "threads": r"(thread|mutex|shared_mutex|condition_variable|future|atomic|semaphore|latch|barrier|stop_token|pthread\.h)$",
    "clock": r"(chrono|ctime|time\.h|sys/time\.h)$",
    "files": r"(fstream|filesystem|iostream|cstdio|stdio\.h|unistd\.h|fcntl\.h|sys/.*|dirent\.h)$",
}
SYSTEM = {"threads", "clock", "files"}

# What core gives to parts that touch no tensors.
CORE_VALUES = r"core/(element_type|error|host_name|options|option_fields|row_range|step_scalars)\.h"

# (files, project headers they may include, libraries they may see). The first row that matches a file holds for it.
PARTS = [
    (r"core/(fusedbun|low_precision|segment_step|step_reference|tensor_snapshot)\.", r"core/", {"torch", "hash"} | SYSTEM),
    (r"core/gpu/.*\.cuh?$", r"core/", {"cuda"} | SYSTEM),
    (r"core/gpu/cuda_device\.", r"core/", {"torch", "cuda"} | SYSTEM),
    (r"core/gpu/(step_table|gradient_table|step_cuda|gradient_cuda|cuda_\w+|step_table_layout)\.",
     r"core/(?!fusedbun\.h|low_precision\.h|segment_step\.h|step_reference\.h|tensor_snapshot\.h)", SYSTEM),
    (r"core/gpu/", r"core/", {"torch"} | SYSTEM),
    (r"core/", r"core/(?!fusedbun\.h|low_precision\.h|segment_step\.h|step_reference\.h|tensor_snapshot\.h)", SYSTEM),
    (r"dist/plan/", CORE_VALUES + r"|dist/plan/", {"hash"}),
    (r"dist/comm/gloo\w*\.", r"core/(descriptor_limit|error)\.h|dist/comm/(?!mpi|nccl)", {"torch", "gloo"} | SYSTEM),
    (r"dist/comm/mpi\w*\.", r"core/error\.h|dist/comm/(?!gloo|nccl)", {"mpi"} | SYSTEM),
    (r"dist/comm/nccl\w*\.", r"core/error\.h|dist/comm/(?!gloo|mpi)", {"nccl", "cuda"} | SYSTEM),
    (r"dist/comm/", r"core/(element_type|error|gradient_kernels)\.h|dist/comm/(?!gloo|mpi|nccl)", SYSTEM),
    (r"dist/run_folder/", CORE_VALUES + r"|dist/plan/rank_watch\.h|dist/run_folder/", {"json"} | SYSTEM),
    (r"dist/changes/(change|change_request|change_ledger\w*|change_batch|change_schedule|control_port)\.",
     CORE_VALUES + r"|dist/plan/|dist/changes/(change|change_request|change_ledger|change_batch|change_schedule|control_port)\.h", {"hash"}),
    (r"dist/changes/", CORE_VALUES + r"|dist/(plan|changes|run_folder)/", {"json", "toml", "hash"} | SYSTEM),
    (r"dist/step/", r"core/|dist/(plan|changes|step)/|dist/comm/(?!gloo|mpi|nccl)", {"torch", "hash"} | SYSTEM),
    (r"dist/control/", CORE_VALUES + r"|dist/(plan|changes|control|run_folder)/", {"crypto", "grpc", "proto", "json", "hash", "log"} | SYSTEM),
    (r"dist/health/", CORE_VALUES + r"|dist/(plan|health)/", {"crypto"} | SYSTEM),
    (r"dist/checkpoint/", r"core/|dist/(plan|run_folder|checkpoint)/|dist/changes/change\.h", {"json", "hash"} | SYSTEM),
    (r"dist/snapshot/", r"core/|dist/(plan|changes|comm|run_folder|checkpoint|step|snapshot)/(?!gloo|mpi|nccl)", {"torch"} | SYSTEM),
    (r"dist/job/", r"core/|dist/", {"torch", "json", "hash"} | SYSTEM),
    (r"launcher/model/config_file\.", r"core/error\.h|dist/run_folder/|launcher/model/(hf_config|config_file)\.h",
     {"json", "toml"} | SYSTEM),
    (r"launcher/train/run_config\.", r"core/error\.h|dist/run_folder/|launcher/cli/settings\.h|launcher/train/run_config\.h",
     {"json", "toml"} | SYSTEM),
    (r"launcher/monitoring/metric", r"core/(error|host_name)\.h|dist/(plan|run_folder)/|launcher/monitoring/", {"prometheus"} | SYSTEM),
    (r"launcher/monitoring/", r"core/(error|host_name)\.h|dist/(plan|run_folder)/|launcher/monitoring/", SYSTEM),
    (r"launcher/", r"core/|dist/|launcher/", {"torch", "grpc", "proto", "json", "flags", "hash", "log"} | SYSTEM),
]

# Libraries that must never meet in one translation unit, and why.
APART = [("torch", "log", "LibTorch ships another fmt than spdlog wants")]

# Calls that only the files owning the library may make.
RAW_CALLS = [
    (r"\bMPI_[A-Z]\w*\s*\(", r"dist/comm/mpi", "calls of MPI belong to dist/comm/mpi"),
    (r"\bnccl[A-Z]\w*\s*\(", r"dist/comm/nccl", "calls of NCCL belong to dist/comm/nccl"),
    (r"\bcuda[A-Z]\w*\s*\(", r"dist/comm/nccl|core/gpu/cuda_(launch|device)", "calls of CUDA belong to dist/comm/nccl, core/gpu/cuda_launch and cuda_device"),
]

EMPTY_WORDS = {"util", "utils", "utility", "utilities", "common", "misc", "manager", "helper", "helpers", "base"}
TYPE_NAME = re.compile(r"\b(?:class|struct)\s+(?:\[\[\w+\]\]\s*)?([A-Z]\w*)")


def library_of(path):
    return next((name for name, pattern in LIBRARIES.items() if re.match(pattern, path)), None)


class Tree:
    """The files under one root, their includes, and what each reaches."""

    def __init__(self, root):
        self.root = Path(root)
        self.files = [path.as_posix() for path in sources(self.root)]
        self.text = {file: (self.root / file).read_text() for file in self.files}
        self.includes = {file: list(self._includes_of(file)) for file in self.files}
        self._libraries = {}

    def _includes_of(self, file):
        for number, line in enumerate(self.text[file].split("\n"), 1):
            match = INCLUDE.match(line)
            if match:
                yield number, match["path"], match["open"] == '"'

    def libraries(self, file):
        """The libraries whose headers `file` sees, through any chain of the project's headers."""
        if file not in self._libraries:
            seen, todo, found = {file}, [file], set()
            while todo:
                for _, path, _ in self.includes.get(todo.pop(), ()):
                    target = path.removeprefix("fusedbun/")
                    found.add(library_of(path))
                    if target in self.includes and target not in seen:
                        seen.add(target)
                        todo.append(target)
            self._libraries[file] = found - {None}
        return self._libraries[file]


def include_violations(tree, file):
    row = next((row for row in PARTS if re.match(row[0], file)), None)
    if row is None:
        yield 1, "", "no row of PARTS says what this file may include"
        return
    _, project, libraries = row
    for number, path, quoted in tree.includes[file]:
        text = f'#include {path}'
        library = library_of(path)
        if path == "torch/torch.h":
            yield number, text, "include narrow headers of LibTorch: this one takes 20 s to compile"
        elif library is not None:
            if library not in libraries:
                yield number, text, f"{row[0]} may not see {library}, only {', '.join(sorted(libraries)) or 'std'}"
        elif path.startswith("fusedbun/"):
            if not re.match(f"(?:{project})", path.removeprefix("fusedbun/")):
                yield number, text, f"{row[0]} may include only {project}"
        elif quoted:
            yield number, text, 'spell it from the root: "fusedbun/<folder>/<file>"'


def apart_violations(tree, file):
    for first, second, reason in APART:
        if {first, second} <= tree.libraries(file):
            yield 1, "", f"its headers bring {first} and {second} together: {reason}"


def call_violations(tree, file):
    for number, line in enumerate(code_lines(tree.text[file]), 1):
        for pattern, owner, rule in RAW_CALLS:
            if re.search(pattern, line) and not re.match(owner, file):
                yield number, line.strip(), rule


def name_violations(tree, file):
    for word in re.split(r"[_/.\-]", file.lower()):
        if word in EMPTY_WORDS:
            yield 1, file, f"'{word}' does not say what is inside"
    for number, line in enumerate(code_lines(tree.text[file]), 1):
        for name in TYPE_NAME.findall(line):
            words = re.findall(r"[A-Z][a-z0-9]*", name)
            for word in words:
                if word.lower() in EMPTY_WORDS:
                    yield number, name, f"'{word}' does not say what it is"


CHECKS = (include_violations, apart_violations, call_violations, name_violations)


def violations(root):
    """(file, line, text, rule) of every violation, and how many files were looked at."""
    tree = Tree(root)
    found = [(file, *violation) for file in tree.files for check in CHECKS for violation in check(tree, file)]
    return found, len(tree.files)


def main(root=SOURCE_ROOT):
    found, file_count = violations(root)
    for file, line, text, rule in found:
        print(f"{file}:{line}: {text}\n    {rule}")
    print(f"include direction: {file_count} files, {len(found)} violations")
    if file_count == 0:
        print(f"no source files under {root}: the check looked in the wrong place")
    return 1 if found or file_count == 0 else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
