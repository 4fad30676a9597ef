#!/usr/bin/env python3
"""The words of the project: what the field has a term for is called by it, one concept by one name. Prints each banned word with its
replacement (core/GLOSSARY.md says what the terms mean).

    words.py [ROOT]
"""
import re
import sys
from pathlib import Path

from source_files import SOURCE_ROOT

# what must not stand -> what says it
BANNED = {
    r"\bin peace\b": "cleanly",
    r"\bleaves? with (?:code )?\d": "exits with",
    r"\bbut for\b": "except for",
    r"\bat hand\b": "these, this",
    r"\b[Ww]ho(?:m)?ever\b": "what, any ... that, the one that",
    r"\bPositionBoard\b": "RankPositionCell",
    r"\bStepMessage\b": "StepEpilogue",
    r"\bRankCard\b": "RankInfo",
    r"\bread_hexadecimal\b": "from_hex",
    r"\bbroken_pipes\b": "sigpipe",
    r"\bsettle_(?:header|columns)\b": "receive_headers, wait_columns",
    r"\bsay_farewell\b": "send_goodbyes",
    r"\btake_back\b": "undo_last_append",
    r"\bkeep_freed_memory\b": "disable_malloc_trim",
}
SUFFIXES = {".h", ".cpp", ".inc", ".cu", ".md", ".py", ".sh", ".proto", ".txt", ".cmake"}
FOLDERS = ("core", "dist", "proto", "launcher", "tests", "deploy", ".ci")
THIS = "tests/tidy/words.py"


def texts(root):
    yield root / "README.md"
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and (path.suffix in SUFFIXES or path.parent.name == ".ci") and path.relative_to(root).as_posix() != THIS:
                yield path


def complaints(root):
    for path in texts(root):
        if not path.exists():
            continue
        for number, line in enumerate(path.read_text(errors="replace").split("\n"), 1):
            for pattern, better in BANNED.items():
                if found := re.search(pattern, line):
                    yield f"{path.relative_to(root)}:{number}: '{found[0]}': say {better}"


def main(root=SOURCE_ROOT):
    found = list(complaints(Path(root)))
    print("\n".join(found + [f"words: {len(found)} banned"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
