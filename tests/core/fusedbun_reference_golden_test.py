"""Every golden case through core/fusedbun_reference.py, at the tolerance of tests/golden/README.md."""

import json
import math
import os
import sys
import unittest
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "core"))
from fusedbun_reference import Fusedbun, FusionOptimizer  # noqa: E402

torch.set_num_threads(1)  # the tensors are small, and threads that wait for one another are slow beside other tests
FOLDER = Path(os.environ.get("FUSEDBUN_GOLDEN_DIR") or ROOT / "tests" / "golden")
TYPES = {"f64": torch.float64, "f32": torch.float32}
TOLERANCE = {"f64": 1e-12, "f32": 1e-4}


def numbers(values):
    """A flat list, or the bare number of a 0-D tensor; "nan", "inf" and "-inf" are what float() reads, too."""
    return [float(value) for value in (values if isinstance(values, list) else [values])]


def input_of(values, shape, dtype):
    """Inputs are shortest decimals of float32 values: rounded to float32, then widened."""
    return torch.tensor(numbers(values), dtype=torch.float64).to(torch.float32).to(dtype).reshape(shape).clone()


def read_folder():
    """(streams by name, [(id, case)]); whatever files the folder has."""
    streams, cases = {}, []
    for path in sorted(FOLDER.glob("*.json")):
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            streams[content["name"]] = content
        else:
            cases += [(f"{path.name}: {case['id']}", case) for case in content]
    return streams, cases


def mismatch(actual, expected, tolerance):
    """A sentence about the first element that differs, or None."""
    want = torch.tensor(numbers(expected), dtype=torch.float64)
    have = actual.detach().double().flatten()
    if have.numel() != want.numel():
        return f"has {have.numel()} elements, expected {want.numel()}"
    finite = want[want.isfinite()].abs()
    scale = finite.max().item() if finite.numel() else 0
    for i, (a, b) in enumerate(zip(have.tolist(), want.tolist())):
        same = abs(a - b) <= tolerance * (abs(b) + 1e-3 * scale) if math.isfinite(b) else a == b or (a != a and b != b)
        if not same:
            return f"element {i} is {a!r}, expected {b!r}"
    return None


class Golden:
    """One case in one precision."""

    def __init__(self, case, stream, precision):
        self.case, self.precision, self.expected = case, precision, case[precision]
        self.indices = case.get("params", range(len(stream["shapes"])))
        self.stream = stream

    def inputs(self, lists):
        return [input_of(lists[k], self.stream["shapes"][k], TYPES[self.precision]) for k in self.indices]

    def optimizer(self, parameters):
        options = dict(self.case["options"], centralize_single_column=True)
        # Both classes take part: what asks for no exp_hessian runs as Fusedbun.
        if not options.get("prepare_hessian", False):
            options.pop("prepare_hessian", None)
            return Fusedbun(parameters, **options)
        return FusionOptimizer(parameters, **options)

    def run(self):
        """The first mismatch, or None."""
        parameters = [tensor.requires_grad_() for tensor in self.inputs(self.stream["init"])]
        optimizer = self.optimizer(parameters)
        for step in range(1, self.case["steps"] + 1):
            gradients = self.inputs(self.stream["grads"][step - 1])
            diagonals = self.inputs(self.stream["hess"][step - 1]) if self.stream.get("hess") else [None] * len(parameters)
            for parameter, gradient, diagonal in zip(parameters, gradients, diagonals, strict=True):
                parameter.grad = gradient
                if diagonal is not None:
                    optimizer.set_hessian_diagonal(parameter, diagonal)
            optimizer.step()
            wrong = self.compare_parameters(step, parameters)
            if wrong:
                return wrong
        return self.compare_state(optimizer, parameters)

    def compare_parameters(self, step, parameters):
        for k, expected in enumerate(self.expected["p"].get(str(step), [])):
            wrong = mismatch(parameters[k], expected, TOLERANCE[self.precision])
            if wrong:
                return f"step {step}, parameter {self.indices[k]}: {wrong}"
        return None

    def compare_state(self, optimizer, parameters):
        for k, expected in enumerate(self.expected.get("state", [])):
            state = {name: value for name, value in optimizer.state.get(parameters[k], {}).items() if name != "step"}
            named = {name.replace("_row", ".row").replace("_col", ".col"): value for name, value in state.items()}
            if not named:
                # Every step was skipped: what is kept is still zero.
                named = {name: torch.zeros(len(numbers(values))) for name, values in expected.items()}
            if named.keys() != expected.keys():
                return f"parameter {self.indices[k]}: keeps {sorted(named)}, expected {sorted(expected)}"
            for name, values in expected.items():
                wrong = mismatch(named[name], values, TOLERANCE[self.precision])
                if wrong:
                    return f"parameter {self.indices[k]}, {name}: {wrong}"
        return None


class GoldenCases(unittest.TestCase):
    def test_every_case(self):
        streams, cases = read_folder()
        count = {(kind, precision): 0 for kind in ("Fusedbun", "FusionOptimizer") for precision in TYPES}
        for name, case in cases:
            for precision in TYPES.keys() & case.keys():
                kind = "FusionOptimizer" if case["options"].get("prepare_hessian") else "Fusedbun"
                count[kind, precision] += 1
                with self.subTest(case=name, precision=precision):
                    wrong = Golden(case, streams[case["stream"]], precision).run()
                    self.assertIsNone(wrong, f"{name} ({precision}): {wrong}")
        print(f"{len(cases)} golden cases from {FOLDER}:", *(f"{kind} {precision} {n}" for (kind, precision), n in
                                                             count.items()), sep="  ", file=sys.stderr)
        self.assertGreater(sum(count.values()), 0, f"there are no golden cases in {FOLDER}")

    def test_the_comparer_sees_a_different_element(self):
        self.assertIsNone(mismatch(torch.tensor([1.0, math.nan, math.inf]), [1.0, "nan", "inf"], 1e-12))
        self.assertIn("element 1", mismatch(torch.tensor([1.0, 2.0 + 1e-6], dtype=torch.float64), [1.0, 2.0], 1e-12))
        self.assertIn("element 0", mismatch(torch.tensor([math.inf]), ["-inf"], 1e-12))
        self.assertIn("element 0", mismatch(torch.tensor([1e-300], dtype=torch.float64), [0.0], 1e-12))


if __name__ == "__main__":
    unittest.main()
