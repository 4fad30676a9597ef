"""Which files the checks of the source text look at, and what their lines are without comments and literals."""
import re
from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("core", "dist", "launcher")
_BLANKED = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<end>[^(\s]*)\(.*?\)(?P=end)"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)


def sources(root, folders=PRODUCT, endings=(".h", ".cpp", ".cu", ".cuh", ".inc")):
    """Paths relative to `root`, sorted."""
    return sorted(path.relative_to(root) for folder in folders for path in (root / folder).rglob("*")
                  if path.suffix in endings and "__pycache__" not in path.parts)


def code_lines(text):
    """The lines of `text`; comments and literals are gone, line numbers stay."""
    # A quote between digits (1'000) separates them and opens no literal.
    text = re.sub(r"(?<=[0-9a-fA-F])'(?=[0-9a-fA-F])", "", text)
    return _BLANKED.sub(lambda match: "\n" * match.group().count("\n"), text).split("\n")
