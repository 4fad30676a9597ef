"""table.py: what it prints of a run, of half a run, and of one that broke at once."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import table  # noqa: E402

ENV = {"date": "2026-11-27 10:00 UTC", "commit": "abc1234", "card": "NVIDIA H100", "memory": "81559 MiB", "driver": "580.1",
       "torch": "2.11.0", "nvcc": "V13.0.88", "nccl": "2.30.7", "rehearsal_on_the_cpu": False}


def three(name, low, median, high):
    return {name: median, f"{name}_low": low, f"{name}_high": high}


def results(**stages):
    return {"environment": ENV, "stages": {name: {"state": "held", "result": result} for name, result in stages.items()}}


STEP = {"rows": [
    {"preset": "recommended", "model": "124m", "dtype": "f32"} | three("ns_per_param", 0.00811, 0.00822, 0.0085)
    | three("ratio_to_adamw_fused", 0.7, 0.71, 0.72) | three("fraction_of_copy", 0.9, 0.92, 0.93),
    {"preset": "limit of AdamW", "model": "124m", "dtype": "copy", "gigabytes_per_second": 3012.4}
    | three("ns_per_param", 1, 1, 1) | three("ratio_to_adamw_fused", 1, 1, 1) | three("fraction_of_copy", 1, 1, 1)]}
LOOP = {"runs": [{"model": "124m", "optimizer": "AdamW, bf16", "peak_bytes": 12_340_000_000} | three("tokens_per_second", 99000, 100000, 101000)
                 | three("forward_backward_ms", 50, 51, 52) | three("optimizer_ms", 0, 1.234, 2)]}
BEST = {"parameters": 38_123_000_000, "layers": 84, "peak_bytes": 80_100_000_000, "predicted_bytes": 80_000_000_000} | three("step_ms", 900, 1000, 1100)


class Table(unittest.TestCase):
    def test_a_step_stands_beside_adamw_and_the_copy(self):
        text = table.step_table(results(bench_step=STEP))
        self.assertIn("124m parameters; the copy moves 3012 GB/s", text)
        self.assertIn("| recommended | f32 | 0.00822 (0.00811 to 0.00850) | 0.710 (0.700 to 0.720) | 0.920 (0.900 to 0.930) |", text)
        self.assertNotIn("limit", text)

    def test_a_loop(self):
        self.assertIn("| 124m | AdamW, bf16 | 100000 (99000 to 101000) | 51.0 (50.0 to 52.0) | 1.23 (0 to 2.00) | 12.3 |",
                      table.whole_steps_table(results(whole_steps=LOOP)))

    def test_sizes_say_whether_the_search_came_to_its_end(self):
        ways = [{"optimizer": "compact", "largest": BEST, "is_the_largest": True}, {"optimizer": "AdamW", "largest": BEST, "is_the_largest": False},
                {"optimizer": "other", "largest": None}]
        lines = table.sizes_table(results(headline={"ways": ways})).splitlines()
        self.assertEqual(lines[2:], ["| compact | 38.1 B | 84 | 80.1 | 80.0 | 1.00 (0.900 to 1.10) |",
                                     "| AdamW | 38.1 B or more | 84 | 80.1 | 80.0 | 1.00 (0.900 to 1.10) |",
                                     "| other | none found |  |  |  |  |"])

    def test_what_did_not_run_is_left_out_and_what_failed_is_named(self):
        broken = results(bench_step=None)
        broken["stages"]["job"] = {"state": "failed", "result": None}
        text = table.tables(broken)
        self.assertIn("commit abc1234: NVIDIA H100 (81559 MiB, driver 580.1)", text)
        self.assertIn("job failed", text)
        self.assertNotIn("|", text)


if __name__ == "__main__":
    unittest.main()
