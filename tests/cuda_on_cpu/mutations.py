#!/usr/bin/env python3
"""Takes the waits, barriers and guards of the GPU path away, one at a time: some test of this folder must notice each.

    mutations.py [--list] [--only TEXT] [--skip N] [--json FILE]

Works on a copy of the tree in build/mutations, which it builds once (some minutes); a mutation then takes the better part of one. A line
that stands in UNSEEN may go unnoticed, for the reason given there. Prints a line per mutation; exits with 1 if one was not noticed, or a
line of UNSEEN is noticed or gone.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build" / "mutations"
TESTS = ["step_cuda_test", "fusedbun_device_test", "sharded_device_test"]

# Where the order of a GPU's work is decided: streams, events, barriers of a block, what is kept alive, what counts and what does not.
FILES = ["core/gpu/*.cu", "core/gpu/*.cuh", "core/gpu/device_*.cpp", "core/gpu/fusedbun_device.cpp", "core/gpu/steps_under_way.cpp",
         "dist/step/device_*.cpp", "dist/step/engine*.cpp", "dist/step/shard_update.cpp", "dist/step/step_epilogue.cpp", "dist/comm/nccl*.cpp"]
# A whole statement on one line, and what it must hold to be one of them.
STATEMENT = re.compile(r"^(\s*)((?:if \([^;]*\) |return )?)([^;{}]*;)(\s*//.*)?$")
ORDER = re.compile(r"\bwait_on\(|cuda_stream_wait_event\(|\bwait_for\(|->wait\(\)|__syncthreads\(\)|free_slot_of\(|join_streams\(|let_go\(|forget_gradients\(|"
                   r"\bhear\(/\*all|take_back_skips\(|(?:wait_columns|settle_squares)\(\);|[^_]settle\(\);|stream_waits_for\(|add_squares\(|test_gradients\(\);")
# An argument that says after what an operation comes.
STREAM = re.compile(r",\s*(?:comm::Stream\(stream\.handle\(\)\)|current_stream\((?:model_\.)?device_?\))(?=\);|\)\.wait)")
# Guards: the branch is never taken.
GUARD = re.compile(r"^(\s*)(if \()(.*skip.*|.*is_new.*|.*nonfinite.*|.*is_alone.*|.*changed.*)(\).*(?:return|continue).*;)$")

# (file, text of the line): why no double can notice.
UNSEEN = {}


class Mutation:
    """`text` of a file with `instead` from `begin` to `end`."""

    def __init__(self, path, text, begin, end, instead):
        self.path, self.text = path.relative_to(ROOT), text[:begin] + instead + text[end:]
        self.number = text.count("\n", 0, begin) + 1
        self.line = " ".join(text[begin:end].split()).lstrip(", ")

    def __str__(self):
        return f"{self.path}:{self.number}: {self.line}"


def mutations():
    found = []
    for path in sorted(path for pattern in FILES for path in ROOT.glob(pattern)):
        text = path.read_text()
        found += [Mutation(path, text, at.start(), at.end(), "") for at in STREAM.finditer(text)]
        begin = 0
        for line in text.splitlines(keepends=True):
            code = line.split("//")[0].rstrip()
            end = begin + len(code)
            is_order = ORDER.search(code) and STATEMENT.match(code) and not re.match(r"\s*(const|auto|std::|return|void)\b", code)
            if is_order and not re.search(r"\w = ", code):
                found.append(Mutation(path, text, begin, end, ";"))
            elif guard := GUARD.match(code):
                found.append(Mutation(path, text, begin, end, f"{guard[1]}if (false && ({guard[3]}){guard[4]}"))
            begin += len(line)
    return found


def shell(words, **more):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, **more)


def copy_tree():
    """The tracked files as they are now; what is built there stays."""
    listed = shell(["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).stdout.split("\0")
    for name in filter(None, listed):
        source, target = ROOT / name, COPY / "tree" / name
        if not source.is_file():
            continue
        if target.exists() and target.read_bytes() == source.read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def build():
    return shell(["cmake", "--build", COPY / "build", "--parallel", os.cpu_count(), "--target", *TESTS])


def configure():
    done = shell(["cmake", "-S", COPY / "tree", "-B", COPY / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DFUSEDBUN_BUILD_TESTS=ON",
                  "-DFUSEDBUN_JOIN_SOURCES=ON", "-DFUSEDBUN_WARNINGS_ARE_ERRORS=OFF", "-DFUSEDBUN_BUILD_LAUNCHER=OFF",
                  "-DFUSEDBUN_WITH_MPI=OFF", "-DFUSEDBUN_WITH_CONTROL=OFF", "-DFUSEDBUN_WITH_CUDA=OFF",
                  f"-DFUSEDBUN_PYTHON_ENV={ROOT / '.venv'}"])
    if done.returncode != 0:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])


def who_notices():
    """The first test that fails, or None; each stops at its first failure, in two orders of what is late."""
    for seed in ("1", "2"):
        for test in TESTS:
            program = next((COPY / "build").rglob(f"tests/**/{test}"))
            try:
                done = shell([program, "--gtest_fail_fast", "--gtest_brief=1"], timeout=300, env={**os.environ, "FUSEDBUN_TEST_SEED": seed})
            except subprocess.TimeoutExpired:
                return f"{test} hangs"
            if done.returncode != 0:
                failed = re.search(r"\[  FAILED  \] (\S+)", done.stdout)
                return failed[1] if failed else f"{test} ends with {done.returncode}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the mutations and leave")
    parser.add_argument("--only", default="", help="those whose file or line has this text")
    parser.add_argument("--skip", type=int, default=0, help="not the first N of them")
    parser.add_argument("--json", help="write what was found to this file")
    options = parser.parse_args()
    chosen = [mutation for mutation in mutations() if options.only in str(mutation)][options.skip:]
    if options.list:
        print("\n".join(map(str, chosen)))
        return 0
    copy_tree()
    configure()
    done = build()
    if done.returncode != 0:
        sys.exit(done.stdout[-3000:])
    if noticed := who_notices():
        sys.exit(f"a test fails without any mutation: {noticed}")
    results, wrong = [], 0
    for mutation in chosen:
        target = COPY / "tree" / mutation.path
        whole = target.read_text()
        target.write_text(mutation.text)
        began = time.monotonic()
        done = build()
        noticed = "does not compile" if done.returncode != 0 else who_notices()
        target.write_text(whole)
        reason = UNSEEN.get((str(mutation.path), mutation.line))
        is_right = (noticed is None) == (reason is not None)
        wrong += not is_right
        text = noticed or (f"unseen: {reason}" if reason else "NOT NOTICED")
        print(f"{'ok   ' if is_right else 'WRONG'} {mutation}  ->  {text} ({time.monotonic() - began:.0f} s)", flush=True)
        results.append({"file": str(mutation.path), "line": mutation.line, "noticed_by": noticed, "unseen_because": reason})
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(results)} mutations, {sum(r['noticed_by'] is not None for r in results)} noticed, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
