"""A run's event files, read by TensorBoard itself: against metrics.jsonl, over a kill and a resume."""

import json
import signal
import struct
import sys
import unittest
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

ROOT = Path(__file__).resolve().parent.parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
from job_process import run, start  # noqa: E402
from training import TrainingTestCase, metrics, steps  # noqa: E402

HPARAMS = "_hparams_/session_start_info"


def float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def read(run_dir):
    events = EventAccumulator(str(run_dir), size_guidance={SCALARS: 0, TENSORS: 0})
    events.Reload()
    return events


def by_step(run_dir, key):
    """What metrics.jsonl says of each step; of two attempts the later one."""
    return {line["step"]: line[key] for line in metrics(run_dir) if key in line}


class EventFiles(TrainingTestCase):
    def files(self):
        return sorted(self.run_dir.glob("events.out.tfevents.*"))

    def check_scalars(self):
        events = read(self.run_dir)
        for tag, key in (("train/loss", "loss"), ("train/learning_rate", "lr"), ("train/grad_norm", "grad_norm"),
                         ("train/tokens_per_second", "tokens_per_second"), ("validation/loss", "validation_loss")):
            expected = [(step, float32(value)) for step, value in sorted(by_step(self.run_dir, key).items())]
            self.assertEqual([(event.step, event.value) for event in events.Scalars(tag)], expected, tag)
        return events

    def test_a_run_that_was_killed_shows_each_step_once(self):
        changes = self.folder / "changes.toml"
        changes.write_text('[[changes]]\nat_step = 30\nreason = "test"\nweight_decay = 0.25\nlr = 0.00123\n')
        words = ["--checkpoint-every", 20, "--eval-every", 10, "--changes", changes, "--seed", 7]
        with start(*self.train(1_000_000, *words)) as process:
            self.wait_for_steps(75)
            process.signal(signal.SIGKILL)
            process.result()
        first = len(steps(self.run_dir))
        result = run(*self.train(first + 25, *words))
        self.assertEqual(result.code, 0, result)
        resumed_at = next(line["step"] for line in steps(self.run_dir) if line["attempt"] == 2)
        self.assertLess(resumed_at, first, "the second attempt does some steps again")
        self.assertEqual(len(self.files()), 2)

        events = self.check_scalars()
        self.assertEqual([event.step for event in events.Scalars("train/loss")], list(range(first + 25)))
        (change,) = events.Tensors("changes")
        self.assertEqual(change.step, next(line["step"] for line in steps(self.run_dir) if line["revision"] == 1))
        self.assertEqual(change.step, 30)
        text = change.tensor_proto.string_val[0].decode()
        self.assertTrue(text.startswith("revision 1: "), text)
        self.assertIn("weight_decay = 0.25", text)
        self.assertIn("learning_rate = 0.00123", text)
        self.assertEqual(events.SummaryMetadata("changes").plugin_data.plugin_name, "text")

        content = events.SummaryMetadata(HPARAMS).plugin_data.content
        values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        self.assertEqual({name: values[name].number_value for name in ("batch", "context", "clip", "seed", "ranks", "warmup", "steps")},
                         {"batch": 4, "context": 32, "clip": 1, "seed": 7, "ranks": 1, "warmup": 2, "steps": 1_000_000},
                         "TensorBoard shows those of the first attempt")
        self.assertEqual((values["schedule"].string_value, values["precision"].string_value), ("cosine", "float32"))
        self.assertEqual(values["eval-every"].string_value, "10", "what was set")
        self.assertEqual(values["lr"].number_value, max(by_step(self.run_dir, "lr")[step] for step in range(30)))
        self.assertNotIn("keep", values, "what was not set")

    def test_overwrite_begins_anew_and_without_it_none_is_written(self):
        self.assertEqual(run(*self.train(12)).code, 0)
        before = self.files()
        self.assertEqual(len(before), 1)
        self.assertEqual(run(*self.train(5, "--overwrite", "")).code, 0)
        self.assertEqual(len(self.files()), 1)
        self.assertNotEqual(self.files(), before)
        self.assertEqual(len(self.check_scalars().Scalars("train/loss")), 5)
        self.assertEqual(run(*self.train(5, "--overwrite", "", "--no-tensorboard", "")).code, 0)
        self.assertEqual(self.files(), [])
        config = json.loads((self.run_dir / "run.json").read_text())["attempts"][-1]["flags"]
        self.assertEqual(config["--no-tensorboard"], "true")


if __name__ == "__main__":
    unittest.main()
