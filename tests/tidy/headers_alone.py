#!/usr/bin/env python3
"""Every header stands alone: a source that includes it needs nothing before it.

    headers_alone.py BUILD_FOLDER [HEADER...]          all headers, or those named (core/options.h)

A header that the source of its name includes before all else was compiled alone when that source was built. The others are
compiled here.
Flags come from BUILD_FOLDER/compile_commands.json: those of the source of the same name, else of a source of the same folder,
else of one that includes the header; so a header of a part that does not see LibTorch is compiled without it. The folder must
be built, for generated headers. Two compilers run at a time; ccache answers what did not change.
"""
import json
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from source_files import PRODUCT, SOURCE_ROOT, sources

COMPILERS = 2
CCACHE = [path] if (path := shutil.which("ccache")) else []  # compile_commands.json leaves launchers out


def joined_sources(source):
    """The sources that CMake has joined in `source` (UNITY_BUILD), or `source` itself."""
    if not source.name.startswith("unity_"):
        return [source]
    return [Path(name).resolve() for name in re.findall(r'^#include "(.+)"', source.read_text(), re.MULTILINE)]


def flags_by_source(build, root):
    """{source relative to root: (its compile command without the source, output and dependency files, the folder, whether it is
    compiled by itself)}."""
    flags = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        compiled = Path(entry["directory"], entry["file"]).resolve()
        named = [source for source in joined_sources(compiled) if source.suffix == ".cpp" and source.is_relative_to(root)]
        words, kept = iter(shlex.split(entry["command"])), []
        by_itself = len(named) == 1
        for word in words:
            if word in ("-o", "-c", "-MF", "-MT", "-MQ"):
                next(words)
            elif word == "-include":  # precompiled headers, which a header has to do without
                next(words)
                by_itself = False
            elif word not in ("-MD", "-MMD", "-Winvalid-pch"):
                kept.append(word)
        for source in named:
            flags[source.relative_to(root)] = (kept, entry["directory"], by_itself)
    return flags


def built_first(header, flags, root):
    """True if the build has compiled `header` with nothing before it."""
    source = header.with_suffix(".cpp")
    if source not in flags or not flags[source][2]:
        return False
    first = re.search(r"^\s*#\s*include\s*(\S+)", (root / source).read_text(), re.MULTILINE)
    return first is not None and first[1] == f'"fusedbun/{header.as_posix()}"'


def candidates(header, flags, root):
    """Sources whose flags may suit `header`, best first; of those of a folder the one with the fewest flags."""
    same_name = [header.with_suffix(".cpp")] if header.with_suffix(".cpp") in flags else []
    same_folder = sorted((source for source in flags if source.parent == header.parent),
                         key=lambda source: len(flags[source][0]))
    include = re.compile(rf'#include "fusedbun/{re.escape(header.as_posix())}"')
    users = [source for source in flags if include.search((root / source).read_text())]
    return same_name or same_folder or users


def compile_alone(header, build, flags, root):
    """The compiler's words if `header` does not compile alone, else an empty string."""
    stub = build / "headers_alone" / (header.as_posix().replace("/", "__") + ".cpp")
    stub.parent.mkdir(exist_ok=True)
    text = f'#include "fusedbun/{header.as_posix()}"\n'
    if not stub.exists() or stub.read_text() != text:
        stub.write_text(text)
    words, tried = "no source tells how to compile it: configure a build with its part", set()
    for source in candidates(header, flags, root):
        command, directory, _ = flags[source]
        if tuple(command) in tried:
            continue
        tried.add(tuple(command))
        # Not -fsyntax-only: ccache keeps objects.
        result = subprocess.run([*CCACHE, *command, "-O0", "-c", stub, "-o", stub.with_suffix(".o")], cwd=directory,
                                capture_output=True, text=True)
        if result.returncode == 0:
            return ""
        words = result.stderr
    return words


def main(build, *names, root=SOURCE_ROOT):
    build, root = Path(build).resolve(), Path(root).resolve()
    headers = [Path(name) for name in names] or sources(root, PRODUCT + ("tests",), (".h",))
    flags = flags_by_source(build, root)
    left = [header for header in headers if not built_first(header, flags, root)]
    with ThreadPoolExecutor(COMPILERS) as pool:
        complaints = list(pool.map(lambda header: compile_alone(header, build, flags, root), left))
    failed = [(header, words) for header, words in zip(left, complaints) if words]
    for header, words in failed:
        print(f"{header} does not compile alone:\n{words}")
    print(f"headers alone: {len(headers)} headers, {len(left)} compiled here, {len(failed)} failed")
    return 1 if failed or not headers else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
