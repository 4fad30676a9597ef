"""A run that was killed, stopped or moved to other ranks goes on where it was; and what a person does with its checkpoints."""

import json
import os
import re
import shutil
import signal
import struct
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import BINARY, MPI_ENVIRONMENT, Process, children, lives, run, start, tree, wait_until  # noqa: E402
from small_disk import CannotMount, empty, fill, small_disk  # noqa: E402
from training import TrainingTestCase, steps  # noqa: E402

MPIRUN = [os.environ["FUSEDBUN_MPIRUN"], "-np", "2", "--oversubscribe"]
TORCHRUN = [os.environ["FUSEDBUN_TORCHRUN"], "--standalone", "--no-python", "--nproc-per-node", "2"]
STEPS = 270
EVERY = 30
_whole_models = {}  # by how they were trained; all tests have the same text


def tensors(path):
    """{name: (shape, bytes)} of a safetensors file."""
    data = Path(path).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    begin = 8 + length
    return {name: (entry["shape"], data[begin + entry["data_offsets"][0] : begin + entry["data_offsets"][1]])
            for name, entry in header.items()}


class ResumeTestCase(TrainingTestCase):
    def words(self, run_dir, *more):
        self.run_dir = self.folder / run_dir
        return self.train(STEPS, "--checkpoint-every", EVERY, "--threads", 1, *more)

    def train_whole(self, *launcher, more=()):
        """The model of the run that nothing happens to, which stays in the folder `whole`."""
        result = run(*launcher, *self.words("whole", *more), seconds=120)
        self.assertEqual(result.code, 0, result)
        return (self.run_dir / "model.safetensors").read_bytes()

    def whole(self, *launcher, more=()):
        """The same, of whichever test trained it first."""
        key = tuple(map(str, (*launcher, *more)))
        if key not in _whole_models:
            _whole_models[key] = self.train_whole(*launcher, more=more)
        return _whole_models[key]

    def checkpoints(self):
        return sorted(int(path.name[5:]) for path in (self.run_dir / "checkpoints").glob("step-*") if path.name[5:].isdigit())

    def wait_for_checkpoint(self, step):
        wait_until(lambda: [at for at in self.checkpoints() if at >= step], 60, f"a checkpoint of step {step}")

    def assert_is(self, whole, first_step=0):
        """The run has ended as the whole one; of each step the highest attempt tells, and none is missing."""
        self.assertEqual((self.run_dir / "model.safetensors").read_bytes(), whole)
        told = {}
        for line in steps(self.run_dir):
            self.assertGreaterEqual(line["attempt"], told.get(line["step"], {"attempt": 0})["attempt"])
            told[line["step"]] = line
        self.assertEqual(sorted(told), list(range(first_step, STEPS)))

    def told(self):
        return (self.run_dir / "train.log").read_text()


def a_rank(job):
    """Some process of ours that trains, below whatever started it."""
    for pid in tree(job.pid):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if len(words) > 1 and words[1] == b"train":
            return pid
    raise AssertionError("no rank lives")


class Killed(ResumeTestCase):
    def test_a_run_that_was_killed_again_and_again_is_the_run_that_was_not(self):
        whole = self.whole("launch", "-n", "2", "--")
        words = ["launch", "-n", "2", "--", *self.words("killed")]
        for step in (60, 150, 210):
            with start(*words) as job:
                self.wait_for_checkpoint(step)
                for pid in tree(job.pid):
                    os.kill(pid, signal.SIGKILL)
                job.result()
        result = run(*words)
        self.assertEqual(result.code, 0, result)
        self.assertIn("3 earlier attempts, the last RUNNING", self.told())
        self.assert_is(whole)

    def test_launch_restarts_go_on_where_the_run_was(self):
        whole = self.whole("launch", "-n", "2", "--")
        with start("launch", "-n", "2", "--max-restarts", "3", "--", *self.words("restarted")) as job:
            for step in (60, 180):
                self.wait_for_checkpoint(step)
                os.kill(a_rank(job), signal.SIGKILL)
            result = job.result(120)
        self.assertEqual(result.code, 0, result)
        self.assert_is(whole)

    def test_restarts_find_their_folder_without_a_name_too(self):
        words = ["launch", "-n", "2", "--max-restarts", "1", "--", *self.words("unnamed")]
        at = words.index("--run-dir")
        with start(*words[:at], *words[at + 2 :], folder=self.folder) as job:
            self.run_dir = wait_until(lambda: next(self.folder.glob("runs/*"), None), 60, "a run folder")
            self.wait_for_checkpoint(60)
            os.kill(a_rank(job), signal.SIGKILL)
            result = job.result(120)
        self.assertEqual(result.code, 0, result)
        self.assertEqual(len(list(self.folder.glob("runs/*"))), 1)
        self.assertEqual([attempt["state"] for attempt in json.loads((self.run_dir / "run.json").read_text())["attempts"]][-1],
                         "SUCCEEDED")
        self.assertIn("this one goes on after step", self.told())

    def test_the_command_of_the_last_line_goes_on(self):
        words = ["launch", "-n", "2", "--max-restarts", "1", "--restart-delay", "0.1", "--", *self.words("unnamed")]
        at = words.index("--run-dir")
        with start(*words[:at], *words[at + 2 :], folder=self.folder) as job:
            self.run_dir = wait_until(lambda: next(self.folder.glob("runs/*"), None), 60, "a run folder")
            for step in (60, 120):
                self.wait_for_checkpoint(step)
                wait_until(lambda: f"checkpoint of step {self.checkpoints()[-1]} is durable" in self.told(), 60, "the run to know it")
                for pid in children(job.pid):  # nobody is left to say anything
                    os.kill(pid, signal.SIGKILL)
                wait_until(lambda: self.told().count("run folder: ") == 2 or not lives(job.pid), 60, "another attempt, or the end")
            result = job.result()
        self.assertEqual(result.code, 137, result)
        restart = next(line for line in result.err.splitlines() if "restart 1 of at most 1" in line)
        who, lost, how = result.err.splitlines()[-3:]
        self.assertRegex(who, r"^fusedbun: rank [01] \(pid \d+ on .*ended by SIGKILL; the one restart is used up$")
        for line in (restart, lost):
            done, few, of, durable = map(int, re.search(r"in job step (\d+): (\d+) of (\d+) steps are lost, those after the checkpoint "
                                                        r"of step (\d+)$", line).groups())
            self.assertEqual((of, few), (done, done - durable), line)
        self.assertIn(len(steps(self.run_dir)) - self.steps_done_twice(), (done - 1, done, done + 1))
        self.assertIn(durable, self.checkpoints())
        again = Process(["sh", "-c", how.removeprefix("fusedbun: to go on: ")], folder=self.folder)
        with again as job:
            result = job.result(120)
        self.assertEqual(result.code, 0, result)
        self.assertEqual(len(list(self.folder.glob("runs/*"))), 1)
        self.assertIn(f"this one goes on after step {durable}, from ", self.told())
        self.assertTrue((self.run_dir / "model.safetensors").exists())

    def steps_done_twice(self):
        told = [line["step"] for line in steps(self.run_dir)]
        return len(told) - len(set(told))

    def test_torchrun_restarts_go_on_where_the_run_was(self):
        whole = self.whole("launch", "-n", "2", "--")
        with Process(TORCHRUN + ["--max-restarts", "2", BINARY, *self.words("restarted")]) as job:
            self.wait_for_checkpoint(90)
            os.kill(a_rank(job), signal.SIGKILL)
            result = job.result(120)
        self.assertEqual(result.code, 0, result)
        self.assertRegex(result.err, r"in job step \d+: .*; the same command goes on from there")
        self.assert_is(whole)

    @unittest.skipIf(not MPIRUN[0], "this build has no Open MPI")
    def test_mpirun_in_a_loop(self):
        with Process(MPIRUN + [BINARY, *self.words("whole")], MPI_ENVIRONMENT) as job:
            self.assertEqual(job.result(120).code, 0)
        whole = (self.run_dir / "model.safetensors").read_bytes()
        words = MPIRUN + [BINARY, *self.words("killed")]
        with Process(words, MPI_ENVIRONMENT) as job:
            self.wait_for_checkpoint(120)
            os.kill(a_rank(job), signal.SIGKILL)
            self.assertNotEqual(job.result().code, 0)
        with Process(words, MPI_ENVIRONMENT) as job:
            result = job.result(120)
        self.assertEqual(result.code, 0, result)
        self.assert_is(whole)

    def test_changes_made_on_the_way_are_made_again(self):
        changes = self.folder / "changes.toml"
        changes.write_text('[[changes]]\nat_step = 45\nreason = "slower"\nlr_scale = 0.5\n'
                           '[[changes]]\nat_step = 246\nreason = "less"\nweight_decay = 0.2\n')
        whole = self.whole("launch", "-n", "2", "--", more=("--changes", changes))
        words = ["launch", "-n", "2", "--", *self.words("killed", "--changes", changes)]
        with start(*words) as job:
            self.wait_for_checkpoint(120)
            os.kill(a_rank(job), signal.SIGKILL)
            job.result()
        result = run(*words)
        self.assertEqual(result.code, 0, result)
        self.assert_is(whole)
        history = json.loads(run("history", "--run-dir", self.run_dir, "--output", "json").out)["changes"]
        self.assertEqual([change["state"] for change in history], ["APPLIED", "APPLIED"])


class Stopped(ResumeTestCase):
    def stop(self, words, environment=None, number=signal.SIGTERM):
        newest = self.checkpoints()[-1] if self.checkpoints() else 0
        with Process(words, environment) as job:
            self.wait_for_checkpoint(newest + 1)
            job.signal(number)
            return job.result()

    def test_asked_to_leave_it_loses_no_step(self):
        whole = self.whole("launch", "-n", "2", "--")
        words = [BINARY, "launch", "-n", "2", "--", *self.words("stopped")]
        for number in (signal.SIGTERM, signal.SIGUSR1):
            result = self.stop(words, number=number)
            self.assertEqual(result.code, 75, result)
            self.assertIn("the same command goes on from here", result.err)
            attempt = json.loads((self.run_dir / "run.json").read_text())["attempts"][-1]
            self.assertEqual(self.checkpoints()[-1], attempt["steps"])
        result = run(*words[1:])
        self.assertEqual(result.code, 0, result)
        self.assert_is(whole)
        self.assertEqual(len(steps(self.run_dir)), STEPS)  # no step was done twice

    def test_on_other_ranks_it_goes_on(self):
        words = self.words("moved", "--batch", 6)
        result = self.stop([BINARY, "launch", "-n", "2", "--", *words])
        self.assertEqual(result.code, 75, result)
        done = len(steps(self.run_dir))
        result = run("launch", "-n", "3", "--", *words)
        self.assertEqual(result.code, 0, result)
        self.assertIn(f"this one goes on after step {done}, from ", self.told())
        self.assertIn("saved by 2 ranks", self.told())
        self.assertEqual([line["step"] for line in steps(self.run_dir)], list(range(STEPS)))
        self.assertLess(steps(self.run_dir)[-1]["loss"], steps(self.run_dir)[done]["loss"])

    def test_another_run_folder_begins_where_this_one_is(self):
        self.stop([BINARY, *self.words("first")])
        done = len(steps(self.run_dir))
        first = self.run_dir
        result = run(*self.words("second", "--resume", first))
        self.assertEqual(result.code, 0, result)
        self.assertEqual([line["step"] for line in steps(self.run_dir)], list(range(done, STEPS)))
        self.assert_fails(run(*self.words("third", "--resume", self.folder / "nowhere")), 65, "nowhere")


class Precision(ResumeTestCase):
    """The scale of float16's losses, and how long it has been good, are a part of a checkpoint; so are bfloat16's masters."""

    SCALED = ("--precision", "fp16-autocast", "--loss-scale", 2.0**24, "--loss-scale-growth-every", 7)

    def scales(self):
        """What each step used and counted; of two lines about a step the later one."""
        return {line["step"]: (line["loss_scale"], line["good_steps"]) for line in steps(self.run_dir)}

    def stop_after(self, step, words):
        with Process(words) as job:
            self.wait_for_checkpoint(step)
            job.signal(signal.SIGTERM)
            result = job.result()
        self.assertEqual(result.code, 75, result)

    def test_a_run_that_was_killed_and_stopped_is_the_run_that_was_not(self):
        whole = self.whole("launch", "-n", "2", "--", more=self.SCALED)
        scales = self.scales()
        self.assertGreater(len({scale for scale, _ in scales.values()}), 2, "it rises and falls")
        words = ["launch", "-n", "2", "--", *self.words("stopped", *self.SCALED)]
        self.stop_after(60, [BINARY, *words])
        with start(*words) as job:
            self.wait_for_checkpoint(180)
            os.kill(a_rank(job), signal.SIGKILL)
            job.result()
        result = run(*words)
        self.assertEqual(result.code, 0, result)
        self.assert_is(whole)
        self.assertEqual(self.scales(), scales)

    def goes_on_to_the_bit(self, *flags):
        whole = self.whole("launch", "-n", "2", "--", more=flags)
        words = ["launch", "-n", "2", "--", *self.words("stopped", *flags)]
        self.stop_after(120, [BINARY, *words])
        result = run(*words)
        self.assertEqual(result.code, 0, result)
        self.assert_is(whole)

    def test_bfloat16_parameters_and_their_masters_go_on_to_the_bit(self):
        self.goes_on_to_the_bit("--precision", "bf16")

    def test_rounded_updates_go_on_to_the_bit(self):
        self.goes_on_to_the_bit("--bf16-wire", "", "--no-host-window", "")

    def test_on_other_ranks_the_scale_goes_on(self):
        words = self.words("moved", "--batch", 6, *self.SCALED)
        self.stop_after(60, [BINARY, "launch", "-n", "2", "--", *words])
        scale, good = self.scales()[len(steps(self.run_dir)) - 1]
        done = len(steps(self.run_dir))
        result = run("launch", "-n", "3", "--", *words)
        self.assertEqual(result.code, 0, result)
        # What the last step before the move left is what the first one after it used.
        skipped = steps(self.run_dir)[done - 1]["skipped"] > steps(self.run_dir)[done - 2]["skipped"]
        expected = scale / 2 if skipped else scale * 2 if good == 0 else scale
        self.assertEqual(steps(self.run_dir)[done]["loss_scale"], expected)
        if steps(self.run_dir)[done]["skipped"] == steps(self.run_dir)[done - 1]["skipped"]:
            self.assertEqual(steps(self.run_dir)[done]["good_steps"], (good + 1) % 7)

    def test_another_precision_is_another_run(self):
        self.stop_after(30, [BINARY, *self.words("run", *self.SCALED)])
        self.assert_fails(run(*self.words("run")), 78, "--precision (fp16-autocast, here float32)", "--overwrite")


class Damaged(ResumeTestCase):
    def setUp(self):
        super().setUp()
        self.whole_model = self.train_whole()
        shutil.rmtree(self.run_dir / "checkpoints" / "latest", ignore_errors=True)
        # As if it had been killed after its last checkpoint.
        for name in ("run.json", "model.safetensors", "metrics.jsonl", "train.log"):
            (self.run_dir / name).unlink()
        # The newest three; on a slow disk one that falls due while the last is still being saved is left out.
        self.third, self.second, self.first = self.checkpoints()[-3:]
        self.newest = self.run_dir / "checkpoints" / f"step-{self.first}"

    def flip(self, path):
        data = bytearray(path.read_bytes())
        data[len(data) * 3 // 4] ^= 1
        path.write_bytes(data)

    def test_a_damaged_checkpoint_is_refused_and_an_older_one_taken_when_told_so(self):
        self.flip(self.newest / "optimizer" / "shard-00001-model-00001-of-00001.safetensors")
        self.assert_fails(run(*self.words("whole")), 65, "shard-00001-model-00001-of-00001.safetensors", "--fallback")
        self.assertFalse((self.run_dir / "model.safetensors").exists())
        result = run(*self.words("whole", "--fallback", ""))
        self.assertEqual(result.code, 0, result)
        self.assertIn(f"this one goes on after step {self.second}", self.told())
        self.assertIn("passed over: ", self.told())
        self.assert_is(self.whole_model, self.second)

    def test_going_on_from_an_older_one_sets_the_later_ones_aside(self):
        result = run(*self.words("whole", "--resume", self.third))
        self.assertEqual(result.code, 0, result)
        self.assert_is(self.whole_model, self.third)
        self.assertIn(f"step-{self.first}.set-aside", self.told())
        self.assertTrue((self.newest.parent / f"step-{self.first}.set-aside" / "manifest.json").exists())
        self.assertGreater(self.checkpoints()[-1], self.third)  # saved anew
        self.assertEqual(run("checkpoint", "verify", "--all", "--run-dir", self.run_dir).code, 0)

    def test_one_without_a_manifest_is_none(self):
        (self.newest / "manifest.json").unlink()
        self.assert_fails(run(*self.words("whole")), 65, "manifest.json")

    def test_leftovers_of_a_killed_save_go(self):
        left = self.run_dir / "checkpoints" / "step-575.tmp"
        left.mkdir()
        (left / "model").mkdir()
        self.assertEqual(run(*self.words("whole")).code, 0)
        self.assertFalse(left.exists())
        self.assert_is(self.whole_model, self.first)
        left.mkdir()  # and where the run is at its end already, too
        self.assertEqual(run(*self.words("whole")).code, 0)
        self.assertFalse(left.exists())


class FullDisk(ResumeTestCase):
    def test_a_disk_that_takes_no_checkpoint_costs_no_step(self):
        disk = self.folder / "disk"
        disk.mkdir()
        try:
            mounted = small_disk(disk, 4)
            mounted.__enter__()
        except CannotMount as error:
            self.skipTest(str(error))
        self.addCleanup(mounted.__exit__, None, None, None)
        words = self.train(100_000, "--checkpoint-every", EVERY, "--run-dir", disk / "run")
        self.run_dir = disk / "run"
        with start(*words) as job:
            self.wait_for_checkpoint(EVERY)
            fill(disk)
            line = ""
            while "is not saved: " not in line:
                line = job.popen.stderr.readline()
                self.assertTrue(line)
            self.assertIn("No space left on device", line)
            before = self.checkpoints()[-1]
            empty(disk)
            self.wait_for_checkpoint(before + 1)
            job.signal(signal.SIGTERM)
            result = job.result()
        self.assertEqual(result.code, 75, result)
        self.assertEqual(run("checkpoint", "verify", "--all", "--run-dir", self.run_dir).code, 0)


class Commands(ResumeTestCase):
    def setUp(self):
        super().setUp()
        with start("launch", "-n", "2", "--", *self.words("run")) as job:
            self.wait_for_checkpoint(60)
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 75)

    def ask(self, *words):
        result = run("checkpoint", *words)
        self.assertEqual(result.code, 0, result)
        return result.out

    def test_list_and_show(self):
        steps_there = self.checkpoints()
        table = self.ask("list", "--run-dir", self.run_dir).splitlines()
        self.assertEqual([int(line.split()[0]) for line in table[1:]], steps_there[::-1])
        self.assertIn("latest", table[1])
        listed = json.loads(self.ask("list", "--run-dir", self.run_dir, "--output", "json"))["checkpoints"]
        self.assertEqual([entry["job_step"] for entry in listed], steps_there[::-1])
        self.assertEqual([entry["latest"] for entry in listed][:2], [True, False])
        shown = json.loads(self.ask("show", "--run-dir", self.run_dir, str(steps_there[0]), "--output", "json"))
        self.assertEqual((shown["job_step"], shown["world_size"]), (steps_there[0], 2))
        self.assertEqual(shown["values"]["next sample"], str(4 * steps_there[0]))  # --batch sequences in each step
        self.assertIn("steps done", self.ask("show", self.run_dir / "checkpoints" / f"step-{steps_there[0]}"))

    def test_verify_names_the_file(self):
        self.assertIn("whole", self.ask("verify", "--run-dir", self.run_dir))
        path = next((self.run_dir / "checkpoints" / f"step-{self.checkpoints()[0]}" / "model").glob("shard-*"))
        data = bytearray(path.read_bytes())
        data[-1] ^= 16
        path.write_bytes(data)
        self.assert_fails(run("checkpoint", "verify", "--run-dir", self.run_dir, "--all"), 65, path.name)

    def test_export_is_the_model(self):
        model = self.folder / "exported.safetensors"
        self.ask("export", "--run-dir", self.run_dir, "--to", model)
        self.assertEqual(tensors(model), tensors(self.run_dir / "model.safetensors"))
        result = run(*self.words("next", "--init", model, "--steps", 3))
        self.assertEqual(result.code, 0, result)

    def test_resharded_it_goes_on_as_before(self):
        elsewhere = self.folder / "resharded"
        newest = self.checkpoints()[-1]
        self.ask("reshard", "--run-dir", self.run_dir, "--ranks", "5", "--to", elsewhere)
        self.assertIn("whole", self.ask("verify", elsewhere / f"step-{newest}"))
        self.assertEqual(len(list((elsewhere / f"step-{newest}" / "model").glob("shard-*"))), 5)
        models = []
        for name, source in (("one", self.run_dir), ("two", elsewhere)):
            result = run(*self.words(name, "--resume", source))
            self.assertEqual(result.code, 0, result)
            models.append((self.run_dir / "model.safetensors").read_bytes())
        self.assertEqual(models[0], models[1])
        self.assert_fails(run("checkpoint", "reshard", elsewhere / f"step-{newest}", "--ranks", "2", "--to", elsewhere), 78,
                          "is there already")

    def test_what_is_not_there_is_said(self):
        self.assert_fails(run("checkpoint", "show", "--run-dir", self.run_dir, "3"), 65, "no checkpoint of step 3")
        self.assert_fails(run("checkpoint", "list"), 64, "--run-dir")
        self.assertIn("there are no checkpoints", self.ask("list", "--run-dir", self.folder))


if __name__ == "__main__":
    unittest.main()
