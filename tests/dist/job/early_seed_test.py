"""torch::manual_seed before Job({.use_gpu = true}): LibTorch asks once whether it has a CUDA half, and that is the question. On a
machine with a driver the half is loaded then; elsewhere nothing is. The driver of these tests is a stand-in that is too old.
"""

import os
import subprocess
import unittest
from pathlib import Path

HAS_CUDA_HALF = (Path(os.environ["FUSEDBUN_TORCH_LIB"]) / "libtorch_cuda.so").exists()


def run(*, driver, too_early=False):
    folders = [os.environ["FUSEDBUN_DRIVER_STAND_IN"]] if driver else []
    folders += [os.environ["LD_LIBRARY_PATH"]] if "LD_LIBRARY_PATH" in os.environ else []
    early = {"FUSEDBUN_ASKS_TOO_EARLY": "1"} if too_early else {}
    return subprocess.run([os.environ["FUSEDBUN_BINARY"]], capture_output=True, text=True, timeout=60, check=False,
                          env={**os.environ, **early, "LD_LIBRARY_PATH": ":".join(folders)})


class EarlySeed(unittest.TestCase):
    @unittest.skipIf(Path("/dev/nvidiactl").exists(), "there is a driver")
    def test_without_a_driver_nothing_is_loaded_and_the_job_says_so(self):
        result = run(driver=False)
        self.assertEqual(result.stdout, "hooks: none\nlibtorch_cuda: not loaded\n", result.stderr)
        self.assertEqual(result.returncode, 71)
        self.assertRegex(result.stderr, r"^fusedbun: rank 0 \(on .*\) has no GPU to use: no NVIDIA driver is installed here")

    @unittest.skipUnless(HAS_CUDA_HALF, "this LibTorch is for CPUs only")
    def test_with_a_driver_the_first_question_loads_the_cuda_half(self):
        result = run(driver=True)
        self.assertEqual(result.stdout, "hooks: cuda\nlibtorch_cuda: loaded\n", result.stderr)

    @unittest.skipUnless(os.environ["FUSEDBUN_HAS_NCCL"] == "ON", "no CUDA runtime built in")
    def test_a_driver_that_is_too_old_is_named_with_both_versions(self):
        result = run(driver=True)
        self.assertEqual(result.returncode, 71)
        self.assertRegex(result.stderr, r"(?m)^fusedbun: rank 0 \(on .*\) has no GPU to use: the NVIDIA driver is too old: it supports "
                                        r"CUDA 12\.4 and LibTorch here is made for CUDA 1[3-9]\.")

    @unittest.skipUnless(HAS_CUDA_HALF, "this LibTorch is for CPUs only")
    def test_a_question_that_came_too_early_is_named(self):
        result = run(driver=True, too_early=True)
        self.assertEqual(result.returncode, 71, result.stdout)
        self.assertIn("LibTorch was asked about GPUs before its CUDA half could be loaded", result.stderr)


if __name__ == "__main__":
    unittest.main()
