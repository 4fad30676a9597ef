#!/usr/bin/env python3
"""Each folder says on at most a page what lives in it.

    readmes.py [ROOT]
"""
import sys
from pathlib import Path

from source_files import SOURCE_ROOT

FOLDERS = ("core", "dist/*", "proto", "launcher", "tests", "deploy")
PAGE_LINES = 80
PAGE_COLUMNS = 140  # rows of a table may be wider: Markdown cannot wrap them
LINES_MIN = 3       # a title and something said


def complaint(readme):
    """What is wrong with one README, or an empty string."""
    if not readme.exists():
        return "is missing: say what lives here and what it may include"
    lines = readme.read_text().rstrip().split("\n")
    if not LINES_MIN <= len(lines) <= PAGE_LINES:
        return f"has {len(lines)} lines: {LINES_MIN} to {PAGE_LINES} make a page"
    for number, line in enumerate(lines, 1):
        if len(line) > PAGE_COLUMNS and not line.startswith("|"):
            return f"line {number} has {len(line)} columns: at most {PAGE_COLUMNS}"
    return ""


def main(root=SOURCE_ROOT):
    root = Path(root)
    folders = sorted(folder for pattern in FOLDERS for folder in root.glob(pattern) if folder.is_dir())
    failed = 0
    for folder in folders:
        words = complaint(folder / "README.md")
        if words:
            failed += 1
            print(f"{(folder / 'README.md').relative_to(root)} {words}")
    print(f"readmes: {len(folders)} folders, {failed} failed")
    return 1 if failed or not folders else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
