#!/usr/bin/env python3
"""What each compiled kernel takes of a multiprocessor: registers and shared memory, for every architecture. Needs no GPU.

    kernel_resources.py CUOBJDUMP LIBRARY

Prints one line per kernel and architecture, and exits with 1 if one keeps anything on a stack (spilled registers, arrays that are indexed
by a variable: both are traffic that no byte count of the step knows), or takes more registers than the blocks need that it is meant for.
"""
import re
import subprocess
import sys

THREADS = 128  # of a block
REGISTERS = 65536  # of a multiprocessor
# Blocks that a multiprocessor is to hold at once, so that enough loads are under way; of all others 8.
BLOCKS = {"step_tiles<float>": 4, "step_tiles<double>": 2, "sum_gradients<double>": 6}


def kernels(text):
    """[(architecture, kernel, {resource: amount})] of what cuobjdump --dump-resource-usage has printed."""
    found, architecture, name = [], "", ""
    for line in text.splitlines():
        if match := re.match(r"\s*arch = (\S+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (.*):$", line):
            name = match[1]
        elif "REG:" in line:
            found.append((architecture, name, {key: int(amount) for key, amount in re.findall(r"(\w+):(\d+)", line)}))
    return found


def short(name):
    """step_tiles<float> of a demangled kernel's name."""
    match = re.search(r"(\w+(?:<\w+>)?)\(fusedbun::|(\w+)\((?:double\*|void)", name)
    return (match[1] or match[2]) if match else name


def problem(name, taken):
    if taken["STACK"] or taken["LOCAL"]:
        return f"keeps {taken['STACK'] + taken['LOCAL']} bytes per thread in memory"
    allowed = REGISTERS // (THREADS * BLOCKS.get(short(name), 8))
    return f"takes {taken['REG']} registers, and {allowed} are meant for it" if taken["REG"] > allowed else ""


def main():
    cuobjdump, library = sys.argv[1:]
    printed = subprocess.run([cuobjdump, "--dump-resource-usage", library], check=True, capture_output=True, text=True).stdout
    names = subprocess.run(["c++filt"], input=printed, check=True, capture_output=True, text=True).stdout
    wrong = 0
    for architecture, name, taken in kernels(names):
        found = problem(name, taken)
        wrong += bool(found)
        print(f"{architecture:8} {short(name):28} {taken['REG']:4} registers {taken['SHARED']:6} bytes shared  {found}")
    if not kernels(names):
        sys.exit(f"{library} has no kernels")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
