"""A file system of a few MiB of its own, to fill."""

import contextlib
import os
import subprocess


class CannotMount(Exception):
    """Mounting needs root."""


@contextlib.contextmanager
def small_disk(folder, mebibytes):
    """A tmpfs at `folder` (a Path) while the context lasts. Raises CannotMount."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        raise CannotMount(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder):
    """To the last byte, by the file `filler`; empty() makes room again."""
    with open(folder / "filler", "ab", buffering=0) as filler:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while filler.write(b"x" * size) == size:
                    pass
    assert os.statvfs(folder).f_bavail == 0


def empty(folder):
    (folder / "filler").unlink()
