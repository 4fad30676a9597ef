"""The stages without a build: what is recorded of those that hold, fail, hang and break, in which order they run, what figures mean."""

import json
import os
import sys
import tempfile
import unittest
from pathlib import Path

FOLDER = tempfile.TemporaryDirectory(prefix="fusedbun-stages-")
os.environ["OUT"] = FOLDER.name
sys.path.insert(0, str(Path(__file__).resolve().parent))
import checks  # noqa: E402
import figures  # noqa: E402
import programs  # noqa: E402
import sizes  # noqa: E402
import stages  # noqa: E402


ENV = {"card": "NVIDIA H100 80GB HBM3", "memory": "81559 MiB"}


class Stages(unittest.TestCase):
    def setUp(self):
        self.results = stages.Results(ENV)

    def record(self, stage):
        """What the file of results says of one stage."""
        self.results.record("one", stage)
        return json.loads((Path(FOLDER.name) / "gpu-h100-80gb-hbm3.json").read_text())

    def test_a_stage_that_holds_leaves_its_result(self):
        file = self.record(lambda: {"compared": 3})
        self.assertEqual((file["environment"], file["held"]), (ENV, True))
        self.assertEqual((file["stages"]["one"]["state"], file["stages"]["one"]["result"]), ("held", {"compared": 3}))

    def test_a_stage_that_fails_leaves_why_and_what_it_found(self):
        def stage():
            raise programs.Failed("two are wrong", {"wrong": 2})
        file = self.record(stage)
        self.assertFalse(file["held"])
        self.assertEqual((file["stages"]["one"]["why"], file["stages"]["one"]["result"]), ("two are wrong", {"wrong": 2}))

    def test_any_other_error_is_recorded_too(self):
        one = self.record(lambda: [][0])["stages"]["one"]
        self.assertEqual(one["state"], "failed")
        self.assertIn("IndexError", one["why"])

    def test_a_stage_that_cannot_run_here_neither_holds_nor_fails(self):
        def stage():
            raise programs.NotRun("no such tool")
        file = self.record(stage)
        self.assertTrue(file["held"])
        self.assertEqual((file["stages"]["one"]["state"], file["stages"]["one"]["why"]), ("not run", "no such tool"))

    def test_the_last_words_and_the_result_of_a_program_that_fails_are_kept(self):
        with self.assertRaisesRegex(programs.Failed, "exit code 71: no GPU here") as caught:
            programs.run(["sh", "-c", "echo '{\"held\": false}'; echo no GPU here >&2; exit 71"], 10)
        self.assertEqual(caught.exception.result, {"held": False})

    def test_a_program_that_hangs_is_ended_and_what_it_has_printed_is_kept(self):
        with self.assertRaisesRegex(programs.Failed, "not done after") as caught:
            programs.run(["sh", "-c", "echo first; exec sleep 60"], 0.5)
        self.assertEqual(caught.exception.printed, "first\n")

    def test_nothing_begins_when_the_time_is_used_up(self):
        started, programs.STARTED = programs.STARTED, programs.STARTED - programs.LIMIT_S
        self.addCleanup(setattr, programs, "STARTED", started)
        with self.assertRaisesRegex(programs.Failed, "are used up"):
            programs.run(["true"], 10)

    def test_a_program_counts_as_linked_once_ninja_says_so(self):
        build = programs.Build.__new__(programs.Build)
        build.linked_after_s = {}
        folder, programs.BUILD = programs.BUILD, Path(FOLDER.name)
        self.addCleanup(setattr, programs, "BUILD", folder)
        self.assertFalse(build.is_linked("tests/gpu/gpu_step_check"))
        (Path(FOLDER.name) / ".ninja_log").write_text("# ninja log v5\n1\t2\t3\ttests/gpu/gpu_step_check\tabc\n")
        self.assertTrue(build.is_linked("tests/gpu/gpu_step_check"))
        self.assertFalse(build.is_linked("gpu/gpu_step_check"))
        self.assertEqual(list(build.linked_after_s), ["tests/gpu/gpu_step_check"])

    def test_what_is_linked_runs_while_the_rest_is_built_and_measurements_wait_for_the_end(self):
        class Build:
            linked, over = set(), False

            def is_linked(self, program):
                return program in self.linked

            def is_over(self):
                return self.over
        build, pending = Build(), list(stages.STAGES)
        self.assertEqual(stages.next_stage(pending, build), "golden")
        build.linked = {stages.STEP, stages.LOOP}
        self.assertEqual([stages.next_stage(pending[skip:], build) for skip in (0, 1, 2)], ["golden", "segments", "sanitizer"])
        self.assertEqual(stages.next_stage(["job", "whole_steps"], build), "job")
        build.over = True
        self.assertEqual(stages.next_stage(["job", "whole_steps"], build), "whole_steps")

    def test_quartiles(self):
        self.assertEqual(figures.spread("ms", [4, 1, 3, 2, 5]), {"ms": 3, "ms_low": 2, "ms_high": 4})
        self.assertEqual(figures.spread("ms", [7]), {"ms": 7, "ms_low": 7, "ms_high": 7})

    def test_a_row_that_takes_twice_the_copys_time_reaches_half_of_its_bandwidth(self):
        row = {"preset": "limit of AdamW", "bytes_per_param_at_limit": 28, "ns_per_param": 0.01,
               "ratio_to_limit": 2, "ratio_to_limit_low": 1.6, "ratio_to_limit_high": 2.5}
        more = figures.beside_the_copy(row)
        self.assertEqual([more[key] for key in ("fraction_of_copy", "fraction_of_copy_low", "fraction_of_copy_high")], [0.5, 0.4, 0.625])
        self.assertEqual(more["gigabytes_per_second"], 2800)

    def test_runs_that_were_done_before_a_loop_fails_are_kept(self):
        run = '{"optimizer": "AdamW", "step_seconds": [1, 1], "forward_backward_seconds": [1], "tokens_per_step": 5}'
        self.assertEqual([one["tokens_per_second"] for one in figures.runs_of(f'{run}\n{{"held": false}}\n{{"opti')], [5])

    def test_what_the_optimizer_takes_is_what_a_step_takes_beyond_forward_and_backward(self):
        one = figures.timed({"step_seconds": [0.5, 0.25, 0.5], "forward_backward_seconds": [0.2, 0.2, 0.3], "tokens_per_step": 100})
        self.assertEqual((one["tokens_per_second"], one["step_ms"], one["optimizer_ms"]), (200, 500, 300))

    def test_all_stages_are_those_of_the_readme(self):
        readme = (Path(__file__).resolve().parent / "README.md").read_text()
        for name in ["configure", *stages.STAGES]:
            self.assertIn(f"| `{name}` |", readme)


class Sanitizer(unittest.TestCase):
    """With a tool that is made up: it writes its log, prints what the program would, and leaves as it is told to."""

    def stage(self, racecheck_leaves_with):
        folder = Path(FOLDER.name)
        tool = folder / "compute-sanitizer"
        tool.write_text('''#!/bin/sh
[ "$1" = --version ] && { echo version; exit 0; }
while [ "$1" != --log-file ]; do tools="$tools $1"; shift; done
printf '========= COMPUTE-SANITIZER\\n========= SUMMARY: so many\\n' > "$2"
echo '{"held": true}'
case "$tools" in *racecheck*) exit ''' + str(racecheck_leaves_with) + "; esac\n")
        tool.chmod(0o755)
        for name, value in (("BUILD", folder), ("sanitizer_program", lambda: tool)):
            self.addCleanup(setattr, checks, name, getattr(checks, name))
            setattr(checks, name, value)
        return checks.sanitizer_stage(type("Build", (), {"wait_for": lambda self, target: target})())

    def test_what_both_tools_say_is_kept(self):
        result = self.stage(racecheck_leaves_with=0)
        self.assertEqual(result["memcheck"], {"held": True, "said": ["COMPUTE-SANITIZER", "SUMMARY: so many"]})
        self.assertTrue(result["racecheck"]["held"])

    def test_a_tool_that_found_something_fails_the_stage(self):
        with self.assertRaisesRegex(programs.Failed, "racecheck: exit code 9") as caught:
            self.stage(racecheck_leaves_with=9)
        self.assertEqual(sorted(caught.exception.result), ["memcheck", "racecheck", "tool"])

    def test_without_the_tool_it_does_not_run(self):
        self.addCleanup(setattr, checks, "sanitizer_program", checks.sanitizer_program)
        checks.sanitizer_program = lambda: None
        with self.assertRaisesRegex(programs.NotRun, "neither beside nvcc nor on the PATH"):
            checks.sanitizer_stage(type("Build", (), {"wait_for": lambda self, target: target})())


class Sizes(unittest.TestCase):
    """The search for the largest model, on a card that is made up."""

    def search(self, largest, fails=None, knows_settings=True):
        tried = []

        def train_loop(_build, _model, _optimizers, _seconds, settings=None, **numbers):
            tried.append((numbers["layers"], bool(settings)))
            if settings and not knows_settings:
                raise programs.Failed("exit code 1: unknown setting")
            if fails:
                raise programs.Failed(fails)
            if numbers["layers"] > largest:
                raise programs.Failed("exit code 71: llama: the GPU's memory is full: ...", {"held": False})
            return [{"layers": numbers["layers"], "parameter_bytes": 10**9 * numbers["layers"], "state_bytes": 0, "gradient_bytes": 5,
                     "activation_bytes": None, "free_bytes": 10**9 * (largest - numbers["layers"]) + 10**8}]
        self.addCleanup(setattr, sizes, "train_loop", sizes.train_loop)
        sizes.train_loop = train_loop
        return sizes.largest_model(None, sizes.WAYS[0], ENV), tried

    def test_full_memory_is_a_size_that_does_not_fit(self):
        result, tried = self.search(81)
        self.assertEqual((result["largest"]["layers"], result["is_the_largest"]), (81, True))
        self.assertEqual(result["largest"]["predicted_bytes"], 81 * 10**9 + 5)
        self.assertEqual([trial["fits"] for trial in result["trials"]], [layers <= 81 for layers, _ in tried])

    def test_a_peak_that_is_not_the_laws_fails_the_stage(self):
        one = {"layers": 2, "predicted_bytes": 1000, "peak_bytes": 1020}
        self.addCleanup(setattr, sizes, "largest_model", sizes.largest_model)
        sizes.largest_model = lambda *_: {"largest": one}
        self.assertEqual(len(sizes.headline_stage(None, ENV)["ways"]), len(sizes.WAYS))
        one["peak_bytes"] = 1050
        with self.assertRaisesRegex(programs.Failed, "its peak is .5.0% from the law's"):
            sizes.headline_stage(None, ENV)

    def test_any_other_failure_ends_the_search_and_is_told(self):
        result, tried = self.search(81, fails="exit code 70: an assertion")
        self.assertEqual((result["largest"], result["why"], len(tried)), (None, "exit code 70: an assertion", 2))

    def test_a_library_that_does_not_know_the_setting_goes_without(self):
        result, tried = self.search(81, knows_settings=False)
        self.assertEqual((result["largest"]["layers"], result["why_not_expandable"]), (81, "exit code 1: unknown setting"))
        self.assertEqual([with_setting for _, with_setting in tried][:2], [True, False])


if __name__ == "__main__":
    unittest.main()
