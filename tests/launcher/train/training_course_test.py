"""The course of a run: how long it is, what its learning rate does, when it stops, which weights it leaves, and what it trains."""

import json
import random
import signal
import sys
import unittest
from pathlib import Path

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from job_process import run, start, wait_until  # noqa: E402
from training import TrainingTestCase, metrics, steps, steps_done  # noqa: E402


def record(run_dir):
    return json.loads((run_dir / "run.json").read_text())["attempts"][-1]


def tensors(path):
    """The arrays of a safetensors file; bfloat16 as its 16 bits."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    types = {"F32": numpy.float32, "BF16": numpy.uint16}
    found = {}
    for name, entry in json.loads(content[8:begin]).items():
        if name == "__metadata__":
            continue
        first, end = entry["data_offsets"]
        found[name] = numpy.frombuffer(content[begin + first:begin + end], types[entry["dtype"]]).reshape(entry["shape"])
    return found


def as_bfloat16(values):
    """The 16 bits of each float32, rounded to the nearest, ties to even."""
    bits = values.view(numpy.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(numpy.uint16)


def validations(run_dir):
    """[(steps done, loss)] of all attempts, a validation that was done twice once."""
    return list(dict.fromkeys((line["step"], line["validation_loss"]) for line in metrics(run_dir) if "validation_loss" in line))


class Course(TrainingTestCase):
    def train_here(self, name, count, *more, ranks=1):
        """Runs a training of `count` steps (None: no --steps) into a folder of this name."""
        words = self.train(count, "--run-dir", self.folder / name, *more)
        if count is None:
            at = words.index("--steps")
            del words[at:at + 2]
        words = words if ranks == 1 else ["launch", "-n", ranks, "--", *words]
        return run(*words)

    def trained(self, name, count, *more, ranks=1):
        result = self.train_here(name, count, *more, ranks=ranks)
        self.assertEqual(result.code, 0, result)
        return self.folder / name

    def weights(self, name):
        return tensors(self.folder / name / "model.safetensors")

    def assert_same_weights(self, one, other):
        first, second = self.weights(one), self.weights(other)
        self.assertEqual(first.keys(), second.keys())
        for name, values in first.items():
            self.assertEqual(values.tobytes(), second[name].tobytes(), name)

    def text_that_misleads(self):
        """What is learned at the beginning helps with the validation text, what is learned later does not."""
        letters = random.Random(1)
        words = ["".join(letters.choices("abcdefgh", k=4)) for _ in range(60)]
        training = " ".join(letters.choices(words[:30], k=1800))
        validation = " ".join(letters.choices(words[30:], k=200))
        self.text.write_text(training + " " + validation)


class Length(Course):
    def test_epochs_and_tokens_say_how_long_a_run_is(self):
        result = self.train_here("epochs", None, "--epochs", "0.5")
        self.assertEqual(result.code, 0, result)
        # 18,000 bytes less a tenth are 505 sequences of 32; half of them are 64 batches of 4, the last of them not whole.
        self.assertIn("run: 64 steps: 0.507 epochs of 505 sequences, 8.19 k tokens", result.err)
        self.assertEqual(len(steps(self.folder / "epochs")), 64)
        self.assertEqual(record(self.folder / "epochs")["total_steps"], 64)
        self.assertEqual(len(steps(self.trained("tokens", None, "--tokens", "1.5k"))), 12)

    def test_two_lengths_are_refused(self):
        self.assert_fails(self.train_here("two", 5, "--epochs", 1), 78, "give one of them")
        self.assertFalse((self.folder / "two").exists())

    def test_another_length_is_another_schedule(self):
        self.trained("short", 12, "--checkpoint-every", 10)
        result = self.train_here("long", None, "--epochs", "0.2", "--resume", self.folder / "short")
        self.assertEqual(result.code, 0, result)
        self.assertIn("the schedule is another from here on: --steps (12, here 26)", result.err)
        self.assertEqual([line["step"] for line in steps(self.folder / "long")], list(range(10, 26)))


class Rate(Course):
    def rates(self, name, *more):
        return [line["lr"] for line in steps(self.trained(name, 10, "--warmup", "0", "--lr", "0.01", *more))]

    def test_each_schedule_has_its_shape(self):
        linear = self.rates("linear", "--schedule", "linear")
        self.assertTrue(numpy.allclose(linear, 0.01 * (1 - numpy.arange(10) / 10), rtol=1e-12), linear)
        self.assertEqual(self.rates("constant", "--schedule", "constant"), [0.01] * 10)
        wsd = self.rates("wsd", "--schedule", "wsd", "--decay", "0.4", "--min-lr", "0.5")
        self.assertEqual(wsd[:7], [0.01] * 7)
        self.assertTrue(numpy.allclose(wsd[8], 0.01 * (0.5 + 0.5 / 2)), wsd)

    def test_a_warm_up_may_be_a_part_of_the_run(self):
        self.assertEqual(self.rates("part", "--schedule", "constant", "--warmup", "20%")[1:3], [0.01 * 2 / 3, 0.01])

    def test_what_a_schedule_has_no_use_for_is_refused(self):
        self.assert_fails(self.train_here("bad", 5, "--decay", "0.1"), 78, "--decay is the part of the run")
        self.assert_fails(self.train_here("bad", 5, "--schedule", "step"), 78, "cosine, linear, constant or wsd")


class Stopping(Course):
    LONG = ("--schedule", "constant", "--eval-every", 20, "--early-stop", 3, "--lr", "0.02", "--validation-batches", 4)

    def test_it_stops_when_no_validation_is_better(self):
        result = self.train_here("run", 100, "--lr", "0", "--eval-every", 3, "--early-stop", 2, ranks=2)
        self.assertEqual(result.code, 0, result)
        self.assertEqual(len(steps(self.run_dir)), 6)
        self.assertEqual([step for step, _ in validations(self.run_dir)], [0, 3, 6])
        attempt = record(self.run_dir)
        self.assertEqual((attempt["state"], attempt["steps"], attempt["total_steps"]), ("SUCCEEDED", 6, 100))
        self.assertRegex(attempt["reason"], r"stopped early: no validation loss below \d+\.\d+ in 2 validations in a row")
        self.assertIn(attempt["reason"], result.err)

    def test_a_resumed_run_is_the_same_and_stops_at_the_same_step(self):
        self.text_that_misleads()
        whole = self.trained("whole", 3000, *self.LONG, "--keep-best", "", ranks=2)
        stopped_at = record(whole)["steps"]
        self.assertLess(stopped_at, 3000)
        losses = validations(whole)
        best = min(losses, key=lambda each: each[1])
        self.assertEqual(best[0], stopped_at - 60, losses)
        self.assertEqual(record(whole)["model_step"], best[0])

        words = ["launch", "-n", 2, "--grace", 20, "--", *self.train(3000, *self.LONG, "--keep-best", "", "--checkpoint-every", 7)]
        with start(*words) as job:
            wait_until(lambda: steps_done(self.run_dir) > best[0] + 25, 60, "a worse validation")
            job.signal(signal.SIGTERM)
            result = job.result()
        self.assertEqual(result.code, 75, result)
        self.assertTrue((self.run_dir / "best.safetensors").exists(), "the run goes on")
        result = run(*words)
        self.assertEqual(result.code, 0, result)
        self.assertEqual(validations(self.run_dir), losses)
        self.assertEqual(record(self.run_dir)["steps"], stopped_at)
        self.assert_same_weights("whole", "run")
        self.assertFalse((self.run_dir / "best.safetensors").exists())

    def test_the_best_model_is_left(self):
        self.text_that_misleads()
        run_dir = self.trained("best", 400, "--lr", "0.02", "--eval-every", 20, "--keep-best", "", "--validation-batches", 4)
        losses = validations(run_dir)
        best = min(losses, key=lambda each: each[1])
        self.assertLess(best[1], losses[-1][1] - 0.01, losses)
        self.assertEqual(record(run_dir)["model_step"], best[0])
        again = self.trained("again", 1, "--init", run_dir, "--lr", "0", "--validation-batches", 4)
        self.assertAlmostEqual(validations(again)[0][1], best[1], places=5)
        self.trained("last", 400, "--lr", "0.02", "--eval-every", 20, "--validation-batches", 4)
        again = self.trained("last_again", 1, "--init", self.folder / "last", "--lr", "0", "--validation-batches", 4)
        self.assertAlmostEqual(validations(again)[0][1], losses[-1][1], places=5)

    def test_a_best_model_that_cannot_be_written_costs_a_notice(self):
        self.run_dir.mkdir()
        (self.run_dir / "best.safetensors").mkdir()
        (self.run_dir / "best.safetensors" / "in the way").touch()
        result = self.train_here("run", 6, "--eval-every", 3, "--keep-best", "")
        self.assertEqual(result.code, 0, result)
        self.assertIn("best.safetensors", result.err)
        self.assertIn("the run goes on without the weights of validation loss", result.err)
        self.assertIsNotNone(self.weights("run"))


class Dropout(Course):
    FLAGS = ("--layers", 2, "--dropout", "0.2", "--schedule", "constant", "--accumulate", 2)

    def test_a_resumed_run_is_the_same(self):
        self.trained("whole", 14, *self.FLAGS, ranks=2)
        self.trained("first", 11, *self.FLAGS, "--checkpoint-every", 10, ranks=2)
        result = self.train_here("second", 14, *self.FLAGS, "--resume", self.folder / "first", ranks=2)
        self.assertEqual(result.code, 0, result)
        self.assertIn("goes on after step 10", result.err)
        self.assert_same_weights("whole", "second")
        self.assertEqual([line["loss"] for line in steps(self.folder / "second")],
                         [line["loss"] for line in steps(self.folder / "whole")][10:])

    def test_recomputed_blocks_draw_the_same(self):
        for ranks in (1, 2):
            for name, more in {"kept": (), "recomputed": ("--activation-checkpointing", "")}.items():
                self.trained(f"{name}{ranks}", 5, *self.FLAGS, *more, ranks=ranks)
            self.assert_same_weights(f"kept{ranks}", f"recomputed{ranks}")

    def test_it_acts_in_training_alone_and_anew_in_each_step(self):
        # Without a learning rate every step computes the same weights; the one sequence there is repeats itself.
        flags = ("--layers", 2, "--lr", "0", "--validation-batches", 4)
        plain = self.trained("plain", 6, *flags)
        dropped = self.trained("dropped", 6, *flags, "--dropout", "0.2")
        self.assertEqual(validations(dropped), validations(plain))
        without, with_it = ([line["loss"] for line in steps(folder)] for folder in (plain, dropped))
        self.assertTrue(all(one != other for one, other in zip(without, with_it)), (without, with_it))
        again = self.trained("again", 6, *flags, "--dropout", "0.2")
        self.assertEqual([line["loss"] for line in steps(again)], with_it)
        other = self.trained("other", 6, *flags, "--dropout", "0.2", "--seed", 2)
        self.assertNotEqual([line["loss"] for line in steps(other)], with_it)

    def test_it_is_the_models_and_another_is_another_run(self):
        made = self.trained("made", 2, "--dropout", "0.25")
        config = json.loads((made / "config.json").read_text())
        self.assertEqual([config[name] for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop")], [0.25] * 3)
        result = self.train_here("more", 11, "--init", made, "--checkpoint-every", 5)
        self.assertEqual(result.code, 0, result)
        self.assertIn("dropout in training: embeddings 0.25, attention 0.25, residuals 0.25, as config.json has it (--dropout 0: none)",
                      result.err)
        record_path = self.folder / "more" / "run.json"
        record_path.write_text(record_path.read_text().replace("SUCCEEDED", "DRAINED"))
        result = self.train_here("more", 12, "--init", made, "--dropout", "0")
        self.assert_fails(result, 78, "--dropout (embeddings 0.25, attention 0.25, residuals 0.25, here none)")
        none = self.train_here("none", 2, "--init", made, "--dropout", "0")
        self.assertNotIn("dropout", none.err)
        self.assertEqual(json.loads((self.folder / "none" / "config.json").read_text())["resid_pdrop"], 0)
        self.assert_fails(self.train_here("bad", 2, "--dropout", "1"), 78, "--dropout = 1", "a probability")
        self.assertFalse((self.folder / "bad").exists())


class Decay(Course):
    def one_step(self, name, *more):
        self.trained(name, 1, "--lr", "0.1", "--warmup", "0", "--seed", 3, *more)
        weights = self.weights(name)
        return ({key: each.tobytes() for key, each in weights.items() if each.ndim >= 2},
                {key: each.tobytes() for key, each in weights.items() if each.ndim < 2})

    def test_biases_and_norms_do_not_decay(self):
        for optimizer in ("fusedbun", "adamw"):
            with self.subTest(optimizer=optimizer):
                flags = ("--optimizer", optimizer, "--weight-decay")
                matrices, vectors = self.one_step(f"{optimizer}-none", *flags, "0")
                decayed_matrices, kept_vectors = self.one_step(f"{optimizer}-default", *flags, "0.5")
                all_matrices, decayed_vectors = self.one_step(f"{optimizer}-all", *flags, "0.5", "--decay-all", "")
                self.assertEqual(vectors, kept_vectors)
                self.assertNotEqual(vectors, decayed_vectors)
                self.assertEqual(decayed_matrices, all_matrices)
                self.assertTrue(all(matrices[name] != decayed_matrices[name] for name in matrices))

    def test_the_schedule_is_that_of_both_groups(self):
        """A decay that no float32 shows makes two groups, and no other bit."""
        flags = ("--schedule", "linear", "--warmup", "3", "--clip", "0", "--weight-decay")
        for optimizer in ("fusedbun", "adamw"):
            self.trained(f"{optimizer}-one", 8, "--optimizer", optimizer, *flags, "0", ranks=2)
            self.trained(f"{optimizer}-two", 8, "--optimizer", optimizer, *flags, "1e-30", ranks=2)
            self.assert_same_weights(f"{optimizer}-one", f"{optimizer}-two")
        self.assertIn("group 1", (self.folder / "fusedbun-two" / "plan.txt").read_text())
        self.assertNotIn("group 1", (self.folder / "fusedbun-one" / "plan.txt").read_text())

    def test_a_change_of_weight_decay_leaves_them_alone(self):
        with start(*self.train(1_000_000)) as job:
            self.wait_for_steps(2)
            self.assertIn(" of 1000000", run("status", "--run-dir", self.run_dir).out)
            result = run("set", "lr=1e-4", "Lambda=0.25", "--wait", "--run-dir", self.run_dir)
            self.assertEqual(result.code, 0, result)
            for group in ("default", "no_decay"):
                self.assertIn(f"{group} learning_rate: schedule -> 1e-04", result.out)
            self.assertIn("default weight_decay: 0.01 -> 0.25", result.out)
            self.assertNotIn("no_decay weight_decay", result.out)
            result = run("set", "Lambda=0.5", "--group", "no_decay", "--wait", "--run-dir", self.run_dir)
            self.assertIn("no_decay weight_decay: 0 -> 0.5", result.out)
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)
        result = run(*self.train(steps(self.run_dir)[-1]["step"] + 3))
        self.assertEqual(result.code, 0, result)

    def test_other_groups_are_another_run(self):
        self.trained("all", 8, "--decay-all", "", "--checkpoint-every", 5)
        words = self.train(8, "--run-dir", self.folder / "all", "--overwrite", "")
        words.remove("--overwrite")
        record_path = self.folder / "all" / "run.json"
        record_path.write_text(record_path.read_text().replace("SUCCEEDED", "DRAINED"))
        self.assert_fails(run(*words), 78, "--decay-all (true, here false)")


class Freezing(Course):
    FROZEN = ("wte.weight", "h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias")

    def setUp(self):
        super().setUp()
        self.trained("init", 3)

    def frozen(self, name, count, *more, ranks=2, patterns=("wte.*", "h.[0-3].attn.c_attn.*")):
        words = self.train(count, "--run-dir", self.folder / name, "--init", self.folder / "init", *more)
        return run("launch", "-n", ranks, "--", *words, "--freeze", *patterns)

    def test_what_is_frozen_stays_and_the_rest_moves(self):
        for name, more in {"window": (), "messages": ("--no-host-window", ""), "adamw": ("--optimizer", "adamw"),
                           "bf16": ("--precision", "bf16")}.items():
            with self.subTest(name):
                free = self.train_here(f"{name}-free", 5, "--init", self.folder / "init", *more, ranks=2)
                result = self.frozen(name, 5, *more)
                self.assertEqual(result.code, 0, result)
                before, after = self.weights("init"), self.weights(name)
                self.assertEqual(before.keys(), after.keys())
                for key in before:
                    begun_with = as_bfloat16(before[key]) if name == "bf16" else before[key]
                    same = begun_with.tobytes() == after[key].tobytes()
                    self.assertEqual(same, key in self.FROZEN, key)
                count = sum(before[key].size for key in self.FROZEN)
                self.assertIn(f"frozen: {count} of {sum(each.size for each in before.values())} parameters", result.err)
                self.assertLess(self.state_bytes(result), 0.7 * self.state_bytes(free))

    def state_bytes(self, result):
        line = next(line for line in result.out.splitlines() if "optimizer state " in line)
        self.assertIn("as planned", line)
        return int(line.split("optimizer state")[1].split()[0].replace(",", ""))

    def test_a_resumed_run_is_the_same_and_its_checkpoint_is_whole(self):
        self.assertEqual(self.frozen("whole", 12, "--schedule", "constant").code, 0)
        result = self.frozen("first", 11, "--schedule", "constant", "--checkpoint-every", 10)
        self.assertEqual(result.code, 0, result)
        result = self.frozen("second", 12, "--schedule", "constant", "--resume", self.folder / "first")
        self.assertEqual(result.code, 0, result)
        self.assertIn("goes on after step 10", result.err)
        self.assert_same_weights("whole", "second")
        exported = self.folder / "exported.safetensors"
        result = run("checkpoint", "export", "--run-dir", self.folder / "first", "--to", exported)
        self.assertEqual(result.code, 0, result)
        before, after = self.weights("init"), tensors(exported)
        for key in self.FROZEN:
            self.assertEqual(before[key].shape, after[key].shape, key)
            self.assertEqual(before[key].tobytes(), after[key].tobytes(), key)

    def test_recomputed_blocks_have_the_same_gradients(self):
        for name, more in {"kept": (), "recomputed": ("--activation-checkpointing", "")}.items():
            self.assertEqual(self.frozen(name, 5, *more, patterns=("wte.*", "wpe.*", "h.0.ln_1.*")).code, 0)
        self.assert_same_weights("kept", "recomputed")

    def test_what_cannot_be_is_refused(self):
        self.assert_fails(self.frozen("bad", 5, patterns=("wte.*", "h.9.*")), 78, "--freeze h.9.* matches no parameter",
                          "the nearest names are h.0.")
        self.assert_fails(self.frozen("bad", 5, patterns=("*",)), 78, "nothing is left to train")
        self.assertEqual(self.frozen("first", 11, "--checkpoint-every", 5).code, 0)
        record_path = self.folder / "first" / "run.json"
        record_path.write_text(record_path.read_text().replace("SUCCEEDED", "DRAINED"))
        self.assert_fails(self.frozen("first", 12, patterns=("wte.*",)), 78,
                          "--freeze (wte.* h.[0-3].attn.c_attn.*, here wte.*)")


if __name__ == "__main__":
    unittest.main()
