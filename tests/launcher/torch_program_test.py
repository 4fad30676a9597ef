#!/usr/bin/env python3
"""The commands that need LibTorch are a program beside `fusedbun`, which becomes it; users see one command."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from job_process import BINARY, Process, TestCase, run  # noqa: E402

COMMANDS = ("train", "generate", "eval", "bench", "env")


def libraries(program):
    """Those that the loader takes in before main, as ldd lists them."""
    return subprocess.run([program], env={**os.environ, "LD_TRACE_LOADED_OBJECTS": "1"}, check=True, capture_output=True, text=True).stdout


class TorchProgram(TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="fusedbun-torch-program-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_fusedbun_itself_loads_no_libtorch(self):
        self.assertNotIn("torch", libraries(BINARY))
        self.assertIn("libtorch_cpu", libraries(BINARY + "-torch"))

    def test_help_knows_all_commands_and_each_answers_as_one_of_fusedbun(self):
        overview = run("--help").out
        for command in COMMANDS:
            with self.subTest(command):
                result = run(command, "--help")
                self.assertEqual(result.code, 0, result.err)
                purpose = result.out.splitlines()[0].strip()
                self.assertRegex(overview, rf"(?m)^ +{command} +{re.escape(purpose[:30])}")
                self.assertIn(f"fusedbun {command} ", result.out)
                self.assertNotIn("fusedbun-torch", result.out)

    def test_misspelt(self):
        self.assert_fails(run("trian", "--steps", "3"), 64, "trian", "did you mean train?")
        self.assert_fails(run("train", "--stpes", "3"), 64, "--stpes of 'fusedbun train', did you mean --steps?")

    def test_launch_takes_them_for_programs(self):
        result = run("launch", "-n", "2", "env", "--output", "json")
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual(result.out.count('"world_size": 2'), 2)

    def test_a_link_to_fusedbun_is_enough(self):
        link = self.folder / "fb"
        link.symlink_to(BINARY)
        with Process([link, "env", "--output", "json"]) as process:
            result = process.result()
        self.assertEqual(result.code, 0, result.err)
        self.assertIn(f'"{Path(BINARY).resolve()} launch -n 2 -- train"', result.out)

    def test_a_copy_without_its_companion_says_what_is_missing(self):
        lonely = self.folder / "fusedbun"
        shutil.copy(BINARY, lonely)
        with Process([lonely, "train", "--steps", "3"]) as process:
            self.assert_fails(process.result(), 64, f"cannot run 'train': {lonely}-torch: No such file or directory")
        with Process([lonely, "version"]) as process:
            self.assertEqual(process.result().code, 0)


if __name__ == "__main__":
    unittest.main()
