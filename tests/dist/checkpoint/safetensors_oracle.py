"""The other side of the exchange with Python's safetensors: `write FILE`, or `check FILE` (non-zero if it differs)."""
import sys

import numpy
from safetensors import safe_open
from safetensors.numpy import save_file

TENSORS = {
    "wte.weight": numpy.arange(12, dtype=numpy.float32).reshape(3, 4) / 8 - 1,
    "doubles": numpy.array([1e300, -0.0], dtype=numpy.float64),
    "halves": numpy.array([[0.5], [-2.0]], dtype=numpy.float16),
    "mask": numpy.array([True, False, True]),
    "scalar": numpy.array(-7, dtype=numpy.int64),
    "nothing": numpy.zeros((0, 5), dtype=numpy.int16),
}
METADATA = {"format": "np", "note": "quotes \" and ümlauts"}

command, path = sys.argv[1:]
if command == "write":
    save_file(TENSORS, path, METADATA)
elif command == "check":
    with safe_open(path, "numpy") as file:
        assert file.metadata() == METADATA, file.metadata()
        assert sorted(file.keys()) == sorted(TENSORS), file.keys()
        for name, expected in TENSORS.items():
            found = file.get_tensor(name)
            assert found.dtype == expected.dtype and found.shape == expected.shape, name
            assert found.tobytes() == expected.tobytes(), name
else:
    sys.exit(f"unknown command {command}")
