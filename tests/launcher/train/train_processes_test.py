"""`fusedbun train` as a process: what a run learns, writes and refuses. Launchers and failures are tests/scenarios'."""

import json
import os
import signal
import sys
import unittest
from pathlib import Path

from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from job_process import run, start  # noqa: E402
from training import TrainingTestCase, metrics, steps  # noqa: E402


def validation_losses(run_dir):
    return [line["validation_loss"] for line in metrics(run_dir) if "validation_loss" in line]


class TrainTestCase(TrainingTestCase):
    def losses(self, name, count, *more, ranks=1):
        """The losses of a run into a folder of its own."""
        run_dir = self.folder / name
        words = self.train(count, "--run-dir", run_dir, *more)
        result = run(*words) if ranks == 1 else run("launch", "-n", ranks, "--", *words)
        self.assertEqual(result.code, 0, result)
        return [line["loss"] for line in steps(run_dir)]

    def assert_close(self, found, expected, relative):
        self.assertEqual(len(found), len(expected))
        for ours, theirs in zip(found, expected):
            self.assertLess(abs(ours / theirs - 1), relative, f"{found} against {expected}")


class Learning(TrainTestCase):
    def test_thirty_steps_lower_the_loss(self):
        for optimizer in ("fusedbun", "adamw"):
            with self.subTest(optimizer=optimizer):
                losses = self.losses(optimizer, 30, "--optimizer", optimizer, "--lr", "1e-2")
                self.assertLess(losses[-1], 0.8 * losses[0])
                first, last = validation_losses(self.folder / optimizer)
                self.assertLess(last, 0.8 * first)

    def test_every_preset_learns(self):
        for preset in ("sm3", "compact", "lean", "elementwise", "fusedbun", "fusion"):
            with self.subTest(preset=preset):
                losses = self.losses(preset, 15, "--preset", preset)
                self.assertLess(losses[-1], losses[0])

    def test_switches_of_the_original_descriptions_reach_the_optimizer(self):
        losses = self.losses("fusion", 15, "--preset", "fusion", "--centralize", "", "--prepare-hessian", "",
                             "--mask", "off")
        self.assertLess(losses[-1], losses[0])
        said = (self.folder / "fusion" / "train.log").read_text()
        for option in ("centralize=true", "prepare_hessian=true", "mask=off", "momentum=heavy_ball"):
            self.assertIn(option, said)
        # What is not named stays the preset's.
        self.losses("elementwise", 1, "--preset", "elementwise", "--no-centralize", "")
        said = (self.folder / "elementwise" / "train.log").read_text()
        self.assertNotIn("centralize=true", said)
        self.assertIn("use_rms=true", said)

    def test_a_mask_that_does_not_exist_is_refused(self):
        result = run(*self.train(1, "--mask", "on"))
        self.assertEqual(result.code, 78, result)
        self.assertIn("mask = 'on': must be one of zero, hold, off", result.err)

    def test_ranks_and_accumulation_do_not_change_what_is_learned(self):
        for optimizer in ("fusedbun", "adamw"):
            with self.subTest(optimizer=optimizer):
                flags = ("--optimizer", optimizer, "--lr", "3e-3")
                one = self.losses(f"{optimizer}-one", 8, *flags)
                self.assert_close(self.losses(f"{optimizer}-two", 8, *flags, ranks=2), one, 1e-3)
                self.assert_close(self.losses(f"{optimizer}-both", 8, *flags, "--accumulate", "2", ranks=2), one, 1e-3)

    def test_the_same_seed_gives_the_same_bits(self):
        self.assertEqual(self.losses("once", 5), self.losses("again", 5))
        self.assertNotEqual(self.losses("once-more", 5), self.losses("other", 5, "--seed", "2"))


class Precision(TrainTestCase):
    """On the default text, at a learning rate at which float32 itself does not depend on how sums are rounded: at 3e-3 losses of runs
    that differ in the last bit of a gradient are 1 % apart after 80 steps."""

    def losses_in(self, precision, count, *more, ranks=1):
        flags = ("--data", "/usr/share/common-licenses", "--layers", "2", "--batch", "8", "--warmup", "20", "--lr", "1e-3",
                 "--precision", precision)
        return self.losses("-".join(map(str, (precision, ranks, *more))).replace("--", ""), count, *flags, *more, ranks=ranks)

    def smooth(self, losses, width=10):
        """Means of `width` steps: the loss of one batch says as much about the batch as about the model."""
        return [sum(losses[at:at + width]) / width for at in range(0, len(losses), width)]

    def test_the_loss_of_150_steps_follows_float32(self):
        expected = self.smooth(self.losses_in("float32", 150))
        self.assertLess(expected[-1], 0.75 * expected[0], "it learns")
        # Found: at most 1e-4 apart.
        for precision in ("bf16", "bf16-autocast"):
            with self.subTest(precision=precision):
                found = self.smooth(self.losses_in(precision, 150))
                self.assert_close(found, expected, 1e-3)
                self.assertNotEqual(found, expected, "it is another arithmetic")

    def test_bf16_without_masters_learns_as_well(self):
        expected = self.smooth(self.losses_in("bf16", 150))
        # Found: 0.6 % apart. Remainders take the masters' steps, except for parameters half way between two values, a few in each step.
        for kept in ("remainder", "stochastic"):
            with self.subTest(low_precision=kept):
                found = self.smooth(self.losses_in("bf16", 150, "--low-precision", kept))
                self.assert_close(found, expected, 0.02)
                self.assertNotEqual(found, expected)

    def test_float16_with_a_loss_scale_follows_float32(self):
        # Found: equal to 1e-5 until a gradient overflows at 65536 in step 65, and 0.6 % apart after that step was skipped.
        expected = self.smooth(self.losses_in("float32", 100))
        found = self.smooth(self.losses_in("fp16-autocast", 100, ranks=2))
        self.assert_close(found, expected, 0.02)
        lines = steps(self.folder / "fp16-autocast-2")
        self.assertEqual((lines[0]["loss_scale"], lines[0]["good_steps"]), (65536, 1))
        self.assertGreaterEqual(lines[-1]["loss_scale"], 1024)
        self.assertLess(lines[-1]["skipped"], 7)
        self.assertIn("  scale 65536  ", (self.folder / "fp16-autocast-2" / "train.log").read_text())

    def test_bf16_parameters_are_saved_as_a_model_like_any_other(self):
        self.losses_in("bf16", 3, ranks=2)
        with safe_open(self.folder / "bf16-2" / "model.safetensors", "numpy") as file:
            self.assertEqual(file.get_slice("wte.weight").get_dtype(), "BF16")

    def test_an_overflow_halves_the_scale_and_good_steps_double_it(self):
        flags = ("--precision", "fp16-autocast", "--loss-scale", 2.0**30, "--loss-scale-growth-every", "4")
        self.losses("run", 40, *flags, ranks=2)
        lines = steps(self.folder / "run")
        self.assertGreaterEqual(lines[-1]["skipped"], 3)
        scale, good, skipped = 2.0**30, 0, 0
        for line in lines:
            self.assertEqual(line["loss_scale"], scale, line)
            if line["skipped"] > skipped:
                scale, good = scale / 2, 0
            elif good + 1 == 4:
                scale, good = scale * 2, 0
            else:
                good += 1
            self.assertEqual(line["good_steps"], good, line)
            skipped = line["skipped"]
        self.assertLess(lines[-1]["loss"], lines[0]["loss"])

    def test_steps_that_overflow_again_and_again_end_the_run(self):
        result = run(*self.train(100, "--precision", "fp16-autocast", "--loss-scale", 2.0**120), "-q")
        self.assert_fails(result, 78, "the gradients overflowed in 20 steps in a row, the last of them job step 19 ", "no model is saved")
        self.assertEqual([line["loss_scale"] for line in steps(self.run_dir)], [2.0**(120 - step) for step in range(20)])
        self.assertFalse((self.run_dir / "model.safetensors").exists())

    def test_a_scale_at_its_minimum_is_told_once(self):
        # A learning rate that throws the weights out of float16's range: then no scale helps.
        result = run(*self.train(100, "--precision", "fp16-autocast", "--loss-scale", "4", "--lr", "1e4", "--warmup", "0", "--clip", "0"))
        self.assert_fails(result, 78, "the loss became")
        self.assertEqual(result.err.count("the loss scale is at its minimum, 1, after job step "), 1)
        self.assertEqual(steps(self.run_dir)[-1]["loss_scale"], 1)

    def test_names_and_combinations_that_cannot_be_are_refused_before_anything_is_written(self):
        self.assert_fails(run(*self.train(1, "--precision", "fp8")), 78, "--precision = 'fp8'", "bf16-autocast")
        self.assert_fails(run(*self.train(1, "--precision", "fp16-autocast", "--optimizer", "adamw")), 78, "bf16-autocast")
        self.assertFalse(self.run_dir.exists())
        result = run("train", "--help")
        self.assertIn("--precision", result.out)
        self.assertIn("--activation-checkpointing", result.out)


class ActivationCheckpointing(TrainTestCase):
    """Not a bit differs, whatever else a run does."""

    def model(self, name, ranks, *more):
        self.losses(name, 6, "--layers", "3", *more, ranks=ranks)
        return (self.folder / name / "model.safetensors").read_bytes()

    def test_the_model_is_the_same_to_the_bit(self):
        ways = {"plain": (), "accumulate": ("--accumulate", "2"), "messages": ("--no-host-window", ""),
                "in-backward": ("--step-in-backward", "", "--propagate-nonfinite", "", "--clip", "0"),
                "clip-in-backward": ("--step-in-backward", "", "--propagate-nonfinite", "", "--clip-by-previous-norm", "", "--clip", "0.5"),
                "accumulate-in-backward": ("--accumulate", "2", "--step-in-backward", "", "--propagate-nonfinite", "", "--clip", "0"),
                "bf16": ("--precision", "bf16", "--accumulate", "2"), "autocast": ("--precision", "bf16-autocast"),
                "thrice": ("--accumulate", "3", "--batch", "6"), "adamw": ("--optimizer", "adamw", "--accumulate", "2")}
        for ranks in (1, 2):
            for name, more in ways.items():
                with self.subTest(way=name, ranks=ranks):
                    expected = self.model(f"{name}-{ranks}", ranks, *more)
                    found = self.model(f"{name}-{ranks}-again", ranks, *more, "--activation-checkpointing", "")
                    self.assertEqual(found, expected)


class Memory(TrainTestCase):
    def test_the_start_forecasts_and_the_end_compares(self):
        run_dir = self.folder / "run"
        result = run("launch", "-n", "2", "--", *self.train(3, "--run-dir", run_dir))
        self.assertEqual(result.code, 0, result)
        told = (run_dir / "train.log").read_text()
        self.assertRegex(told, r"memory by forecast: [\d.]+ [MG]iB per rank: parameters [\d.]+ MiB, optimizer state [\d.]+ MiB, "
                               r"gradient buckets [\d.]+ MiB, gradients [\d.]+ MiB or activations [\d.]+ MiB \(whichever is more\), libraries 40.0 MiB")
        self.assertRegex(result.out, r"memory             [\d.]+ [MG]iB at the peak \(rank [01]\); the forecast was [\d.]+ [MG]iB")


STEPS = 6


class Overlap(TrainTestCase):
    """What a trace shows; its times decide nothing, only which came first."""

    def trace(self, *more):
        path = self.folder / "trace.json"
        words = self.train(STEPS, "--layers", "4", "--width", "128", "--bucket-mib", "0.3", "--trace", path, *more)
        result = run("launch", "-n", "2", "--", *words)
        self.assertEqual(result.code, 0, result)
        events = json.loads(path.read_text())["traceEvents"]
        self.assertEqual({event["args"]["name"] for event in events if event["name"] == "process_name"}, {"rank 0", "rank 1"})
        return [event for event in events if event["ph"] == "X"]

    @staticmethod
    def backward_ends(events):
        """(rank, step) -> when the caller's own work, forward and backward, was over."""
        ends = {}
        for event in events:
            if event["name"] == "forward_backward" and event["args"]["step"] < STEPS:  # after the last one nothing follows
                key = event["pid"], event["args"]["step"]
                ends[key] = max(ends.get(key, 0), event["ts"] + event["dur"])
        return ends

    def test_buckets_travel_while_backward_runs(self):
        events = self.trace("--no-host-window", "")
        ends = self.backward_ends(events)
        left, arrived = set(), set()
        for event in events:
            key = event["pid"], event["args"]["step"]
            if event["cat"] == "reduce_scatter" and event["tid"] == 1 and key in ends:
                if event["ts"] < ends[key]:
                    left.add(key)
                if event["ts"] + event["dur"] < ends[key]:
                    arrived.add(key)
        self.assertEqual(left, set(ends), "buckets leave before backward ends, in every step on every rank")
        # Whether they also arrive before then is up to the machine, but where nothing else ran it would be every step.
        self.assertTrue(arrived)

    def test_a_step_in_backward_updates_before_it_ends(self):
        events = self.trace("--step-in-backward", "", "--propagate-nonfinite", "", "--clip", "0")
        ends = self.backward_ends(events)
        early = {(event["pid"], event["args"]["step"]) for event in events if event["cat"] == "update"
                 and event["ts"] < ends.get((event["pid"], event["args"]["step"]), 0)}
        self.assertEqual(len(early), len(ends), "in every step on every rank")


class Files(TrainTestCase):
    def test_metrics_have_their_fields(self):
        self.losses("run", 3)
        first = steps(self.folder / "run")[0]
        self.assertEqual(list(first), ["attempt", "step", "loss", "lr", "tokens_per_second", "grad_norm", "revision", "skipped"])
        self.assertGreater(first["grad_norm"], 0)
        self.assertTrue((self.folder / "run" / "train.log").read_text().startswith("model: GPT-2"))
        self.assertIn("h.0.attn.c_attn.weight", (self.folder / "run" / "plan.txt").read_text())

    def test_a_run_folder_of_its_own_by_default(self):
        words = self.train(1)
        at = words.index("--run-dir")
        result = run(*words[:at], *words[at + 2:], folder=self.folder)
        self.assertEqual(result.code, 0, result)
        (folder,) = (self.folder / "runs").iterdir()
        self.assertTrue((folder / "metrics.jsonl").exists())

    def test_a_saved_model_goes_on_where_it_was(self):
        model = self.folder / "model.safetensors"
        self.losses("first", 20, "--save", model)
        self.assertFalse((self.folder / "first" / "model.safetensors").exists())
        with safe_open(model, "numpy") as file:
            self.assertEqual(file.metadata(), {"format": "pt", "n_head": "2"})
            self.assertEqual(file.get_slice("h.0.attn.c_attn.weight").get_shape(), [32, 96])
        link = self.folder / "link"
        link.symlink_to(model)
        run_dir = self.folder / "second"
        words = ["train", "--data", str(self.text), "--init", str(link), "--steps", "1", "--batch", "4", "--eval-every",
                 "0", "--validation-batches", "1", "--run-dir", str(run_dir)]
        self.assertEqual(run(*words).code, 0)
        self.assertAlmostEqual(validation_losses(run_dir)[0], validation_losses(self.folder / "first")[-1], places=5)

    def test_without_a_gpu_training_on_one_is_refused_before_anything_is_written(self):
        result = run(*self.train(1, "--device", "cuda"))
        if result.code == 0:
            self.skipTest("this machine has a GPU: tests/gpu/run.sh trains on it")
        self.assert_fails(result, 71, "rank 0 (on ", ") has no GPU to use: ", "--device cpu trains without")
        self.assertFalse(self.run_dir.exists())

    def test_without_a_gpu_a_rank_says_so_and_the_launcher_passes_the_code_on(self):
        result = run("launch", "-n", "2", "--", *self.train(1, "--device", "cuda", "--share-gpu", ""))
        if result.code == 0:
            self.skipTest("this machine has a GPU")
        self.assert_fails(result, 71, "has no GPU to use: ")
        # Of the rank that came first: the launcher ends the others as soon as one failed.
        self.assertRegex(result.err, r"rank [01] \(on .*has no GPU to use: ")
        self.assertFalse(self.run_dir.exists())

    def test_ranks_share_gpus_only_where_they_are_on_gpus(self):
        self.assert_fails(run(*self.train(1, "--share-gpu", "")), 78, "--share-gpu: the ranks are on CPUs: add --device cuda")

    def test_a_model_that_does_not_fit_is_refused(self):
        model = self.folder / "model.safetensors"
        self.losses("first", 1, "--save", model)
        self.assert_fails(run(*self.train(1, "--init", model, "--width", "64")), 78, "--width = 64", "has 32")
        self.assert_fails(run(*self.train(1, "--init", model, "--context", "33")), 78, "knows 32 positions")
        model.write_bytes(model.read_bytes()[:-1])
        self.assert_fails(run(*self.train(1, "--init", model)), 65, str(model))
        self.assert_fails(run(*self.train(1, "--init", self.folder / "absent")), 65, "absent")
        self.assertFalse(self.run_dir.exists(), "refused before anything is written")

    def test_where_a_model_cannot_be_saved_nothing_is_trained(self):
        self.assert_fails(run(*self.train(1, "--save", self.folder / "absent" / "model.safetensors")), 74, "absent/model")
        self.text.with_suffix("").write_text("")  # a file, where a folder is asked for
        self.assert_fails(run(*self.train(1, "--save", self.text.with_suffix(""))), 74, "is no folder: a model is saved in one")
        self.assertFalse(self.run_dir.exists())

    def test_a_batch_that_does_not_divide_says_what_would(self):
        self.assert_fails(run("launch", "-n", "2", "--", *self.train(1, "--batch", "5")), 78, "4 or 6 would fit")
        self.assertFalse(self.run_dir.exists())


class Configuration(TrainTestCase):
    def config(self, text, name="run.toml"):
        path = self.folder / name
        path.write_text(text)
        return path

    def printed(self, *words, environment=None):
        result = run("train", *words, "--print-config", environment=environment)
        self.assertEqual(result.code, 0, result)
        return result.out

    def test_each_value_is_printed_with_its_origin_and_can_be_given_back(self):
        config = self.config('lr = 3e-3\nbatch = 4\nschedule = "linear"\ndata = ["a b", "c"]\nno-centralize = true\n')
        out = self.printed("--config", config, "--batch", 8, environment={"FUSEDBUN_LR": "0.005"})
        for line in ("lr = 0.005  # the environment's FUSEDBUN_LR", "batch = 8  # typed", f'schedule = "linear"  # {config}:3',
                     f'data = ["a b", "c"]  # {config}:4', f"centralize = false  # {config}:5", "# steps: 300"):
            self.assertIn(line, out.splitlines())
        again = self.printed("--config", self.config(out, "again.toml"))
        self.assertEqual([line.split("  #")[0] for line in again.splitlines()], [line.split("  #")[0] for line in out.splitlines()])
        self.assertEqual([path.name for path in self.folder.iterdir() if path.is_dir()], [])

    def test_a_run_by_its_file_is_the_run_by_its_flags_and_run_json_repeats_it(self):
        self.losses("flags", 6, "--lr", "3e-3", "--no-centralize", "")
        words = self.train(6, "--lr", "3e-3")
        keys = dict(zip((word[2:] for word in words[1::2]), words[2::2])) | {"no-centralize": "true"}
        text = "".join(f"{key} = {value}\n" if value in ("true", "false") else f'{key} = "{value}"\n'
                       for key, value in keys.items() if key != "run-dir")
        # One process each, as `losses` has it.
        result = run("train", "--config", self.config(text), "--run-dir", self.folder / "file")
        self.assertEqual(result.code, 0, result)
        result = run("train", "--config", self.folder / "file" / "run.json", "--run-dir", self.folder / "again")
        self.assertEqual(result.code, 0, result)
        models = [(self.folder / name / "model.safetensors").read_bytes() for name in ("flags", "file", "again")]
        self.assertEqual(models[0], models[1])
        self.assertEqual(models[0], models[2])
        # What follows was not trained before: a flag on top of a record.
        other = run("train", "--config", self.folder / "file" / "run.json", "--run-dir", self.folder / "other", "--seed", 2)
        self.assertEqual(other.code, 0, other)
        self.assertNotEqual((self.folder / "other" / "model.safetensors").read_bytes(), models[0])

    def test_what_a_file_cannot_say_is_refused_before_anything_is_written(self):
        def refused(code, text, *parts, environment=None):
            words = self.train(1, "--config", self.config(text))
            self.assert_fails(run("launch", "-n", "2", "--", *words, environment=environment), code, *parts)
            self.assertFalse(self.run_dir.exists())

        refused(78, "lr = 1e-3\nsteeps = 3\n", "run.toml:2: steeps is no flag of 'train', did you mean steps?")
        refused(78, "batch = 'many'\nseed = 3\nlr = 'much'", "run.toml:3: lr = 'much': it must be FLOAT")
        refused(78, "rank = 1\n", "run.toml:1: rank is of one process or one run")
        refused(78, "[optimizer]\nlr = 3\n", "run.toml:1: optimizer must be")
        refused(64, "lr =\n", "run.toml:1: ")
        refused(78, "", "FUSEDBUN_BACTH is no flag of 'train', did you mean FUSEDBUN_BATCH?", environment={"FUSEDBUN_BACTH": "4"})
        self.assert_fails(run(*self.train(1, "--config", self.folder / "gone.toml")), 65, "gone.toml")


class Endings(TrainTestCase):
    def test_a_loss_that_is_no_number_ends_the_run_without_a_model(self):
        result = run(*self.train(50, "--optimizer", "adamw", "--lr", "1e30", "--warmup", "0"))
        self.assert_fails(result, 78, "the loss became", "no model is saved")
        self.assertEqual([path for path in self.run_dir.iterdir() if "safetensors" in path.name], [])
        for line in (self.run_dir / "metrics.jsonl").read_text().splitlines():
            json.loads(line)

    def test_a_drained_run_saves_its_model_and_leaves_with_75(self):
        for optimizer in ("fusedbun", "adamw"):
            for number in (signal.SIGTERM, signal.SIGUSR1):
                with self.subTest(optimizer=optimizer, signal=number):
                    self.run_dir = self.folder / f"{optimizer}-{number}"
                    with start(*self.train(1_000_000, "--optimizer", optimizer)) as job:
                        self.wait_for_steps(3)
                        job.signal(number)
                        result = job.result(20)
                    self.assert_fails(result, 75, "left before the last step")
                    self.assertTrue((self.run_dir / "model.safetensors").exists())

    def test_a_drain_reaches_all_ranks_of_adamw(self):
        with start("launch", "-n", "2", "--", *self.train(1_000_000, "--optimizer", "adamw")) as job:
            self.wait_for_steps(3)
            os.kill(job.ranks(2)[1], signal.SIGTERM)
            self.assertEqual(job.result(20).code, 75)


if __name__ == "__main__":
    unittest.main()
