"""`fusedbun bench` as a process, on the smallest model: that it measures, and what it prints. Never how fast."""

import json
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from job_process import TestCase, run  # noqa: E402


class Bench(TestCase):
    def rows(self, *words):
        result = run("bench", *words, "--json", seconds=120)
        self.assertEqual(result.code, 0, result)
        return json.loads(result.out)["rows"]

    def test_a_step_beside_adamw_and_the_memory_limit(self):
        rows = self.rows("step", "--model", "3m", "--rounds", "2", "--threads", "1,2")
        by_name = {(row["preset"], row["dtype"], row["threads"]): row for row in rows}
        for threads in (1, 2):
            ours = by_name["recommended", "f32", threads]
            self.assertEqual(ours["model"], "3m")
            for field in ("ns_per_param", "ratio_to_adamw_fused", "ratio_to_limit"):
                self.assertGreater(ours[field], 0)
            self.assertEqual(by_name["AdamW fused (LibTorch)", "f32", threads]["ratio_to_adamw_fused"], 1)
            self.assertEqual(ours["bytes_per_param_at_limit"], 20)

    def test_without_a_gpu_a_step_on_one_is_refused(self):
        result = run("bench", "step", "--model", "3m", "--rounds", "1", "--device", "cuda", seconds=120)
        if result.code == 0:
            self.skipTest("this machine has a GPU: tests/gpu/run.sh measures it")
        self.assert_fails(result, 71, "rank 0 (on ", "has no GPU to use: ")

    def test_without_a_gpu_ranks_on_one_are_refused(self):
        result = run("bench", "train", "--model", "3m", "--rounds", "1", "--steps", "1", "--device", "cuda", "--share-gpu",
                     "--only", "messages, agreed", seconds=120)
        if result.code == 0:
            self.skipTest("this machine has a GPU: tests/gpu/run.sh measures it")
        self.assert_fails(result, 71, "has no GPU to use: ")

    def test_collectives(self):
        rows = self.rows("collectives", "--mib", "1", "--steps", "2")
        self.assertEqual([row["operation"] for row in rows], ["reduce_scatter", "all_gather", "all_reduce", "exchange"])
        self.assertTrue(all(row["ranks"] == 2 and row["ms"] > 0 for row in rows))

    def test_an_exchange_and_a_training_row_each_on_ranks_of_its_own(self):
        (row,) = self.rows("exchange", "--model", "3m", "--rounds", "1", "--steps", "2", "--only", "window, agreed")
        self.assertEqual(row["name"], "window, agreed")
        self.assertGreater(row["ms"], 0)
        rows = self.rows("train", "--model", "3m", "--rounds", "1", "--steps", "2",
                         "--only", "messages, in backward", "--only", "all_reduce + AdamW fused")
        ours, adamw = rows
        self.assertGreater(ours["step_ms"], ours["not_forward_backward_ms"])
        self.assertGreater(adamw["state_bytes"], 3.5 * ours["state_bytes"])  # 8 bytes per parameter against 4 / 2
        self.assertGreater(ours["peak_rss"], 0)

    def test_ranks_of_a_launcher_take_part(self):
        result = run("launch", "-n", "3", "--", "bench", "collectives", "--mib", "1", "--steps", "1", seconds=120)
        self.assertEqual(result.code, 0, result)
        self.assertIn("| reduce_scatter | gloo | 3 |", result.out)

    def test_what_is_not_there_is_refused(self):
        self.assert_fails(run("bench", "step", "--model", "7b"), 78, "there are 3m, 25m and 124m")
        self.assert_fails(run("bench", "train", "--only", "nothing"), 78, "is no row of this benchmark")


if __name__ == "__main__":
    unittest.main()
