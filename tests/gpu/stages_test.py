"""stages.py without a build: what it records of stages that hold, fail, hang and break."""

import json
import os
import sys
import tempfile
import unittest
from pathlib import Path

FOLDER = tempfile.TemporaryDirectory(prefix="fusedbun-stages-")
os.environ["OUT"] = FOLDER.name
sys.path.insert(0, str(Path(__file__).resolve().parent))
import stages  # noqa: E402


def written(name):
    return json.loads((Path(FOLDER.name) / f"{name}.json").read_text())


class Stages(unittest.TestCase):
    ENV = {"card": "a card"}

    def record(self, name, stage):
        return stages.record(name, self.ENV, stage)

    def test_a_stage_that_holds_leaves_its_result(self):
        self.assertTrue(self.record("good", lambda: {"compared": 3})["held"])
        self.assertEqual(written("good")["result"], {"compared": 3})
        self.assertEqual(written("good")["environment"], self.ENV)

    def test_a_stage_that_fails_leaves_why_and_what_it_found(self):
        def stage():
            raise stages.Failed("two are wrong", {"wrong": 2})
        self.assertFalse(self.record("bad", stage)["held"])
        self.assertEqual((written("bad")["why"], written("bad")["result"]), ("two are wrong", {"wrong": 2}))

    def test_any_other_error_is_recorded_too(self):
        self.assertFalse(self.record("broken", lambda: [][0])["held"])
        self.assertIn("IndexError", written("broken")["why"])

    def test_the_last_words_and_the_result_of_a_program_that_fails_are_kept(self):
        with self.assertRaisesRegex(stages.Failed, "exit code 71: no GPU here") as caught:
            stages.run(["sh", "-c", "echo '{\"held\": false}'; echo no GPU here >&2; exit 71"], 10)
        self.assertEqual(caught.exception.result, {"held": False})

    def test_a_program_that_hangs_is_ended(self):
        with self.assertRaisesRegex(stages.Failed, "not done after"):
            stages.run(["sleep", "60"], 0.2)

    def test_nothing_begins_when_the_time_is_used_up(self):
        started, stages.STARTED = stages.STARTED, stages.STARTED - stages.LIMIT_S
        self.addCleanup(setattr, stages, "STARTED", started)
        with self.assertRaisesRegex(stages.Failed, "are used up"):
            stages.run(["true"], 10)

    def test_a_program_counts_as_linked_once_ninja_says_so(self):
        build = stages.Build.__new__(stages.Build)
        folder, stages.BUILD = stages.BUILD, Path(FOLDER.name)
        self.addCleanup(setattr, stages, "BUILD", folder)
        self.assertFalse(build.is_linked("tests/gpu/gpu_step_check"))
        (Path(FOLDER.name) / ".ninja_log").write_text("# ninja log v5\n1\t2\t3\ttests/gpu/gpu_step_check\tabc\n")
        self.assertTrue(build.is_linked("tests/gpu/gpu_step_check"))
        self.assertFalse(build.is_linked("gpu/gpu_step_check"))

    def test_all_stages_are_those_of_the_readme(self):
        readme = (Path(__file__).resolve().parent / "README.md").read_text()
        for name in ["configure", *stages.STAGES]:
            self.assertIn(f"| `{name}` |", readme)


if __name__ == "__main__":
    unittest.main()
