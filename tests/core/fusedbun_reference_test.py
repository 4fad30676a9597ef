"""core/fusedbun_reference.py as people use a torch optimizer: schedulers, closures, state_dict, pickle, groups, odd tensors."""

import copy
import inspect
import io
import math
import pickle
import sys
import unittest
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "core"))
from fusedbun_reference import Fusedbun, FusionOptimizer  # noqa: E402

torch.set_num_threads(1)  # the tensors are small, and threads that wait for one another are slow beside other tests
BOTH = (Fusedbun, FusionOptimizer)


def plain(kind, params, lr=0.5, **options):
    """SGD with lr: no momentum, no decay, no mask, so that every expected value is arithmetic on paper."""
    return kind(params, lr=lr, Lambda=0, momentum_beta=0, mask="off", **options)


def parameters_of(*shapes, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def step_with(optimizer, params, steps, seed=2):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


class Description(unittest.TestCase):
    """The two descriptions that the classes are made from."""

    ARGUMENTS = {"eps": 1e-8, "beta_decay": 0.8, "Lambda": 0.01, "momentum_beta": 0.9, "centralize": False, "use_rms": False}

    def arguments(self, kind):
        parameters = inspect.signature(kind).parameters.values()
        named = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
        return [p.name for p in named[:2]], {p.name: p.default for p in named[2:]}, [p.default for p in named[:2]]

    def test_names_order_and_defaults_of_the_arguments(self):
        for kind, defaults in ((Fusedbun, self.ARGUMENTS), (FusionOptimizer, {**self.ARGUMENTS, "prepare_hessian": False})):
            required, optional, their_defaults = self.arguments(kind)
            self.assertEqual(required, ["params", "lr"])
            self.assertEqual(their_defaults, [inspect.Parameter.empty] * 2)
            self.assertEqual(list(optional.items()), list(defaults.items()))
            self.assertTrue(issubclass(kind, torch.optim.Optimizer))

    def test_the_learning_rate_is_required(self):
        for kind in BOTH:
            with self.assertRaisesRegex(TypeError, "lr"):
                kind(parameters_of((2, 2)))

    def test_the_defaults_step_as_sgd_with_momentum(self):
        (p,) = parameters_of((3, 4))
        start, g = p.detach().clone(), torch.full((3, 4), 2.0)
        optimizer = Fusedbun([p], lr=0.1)
        expected, buffer = start, torch.zeros(3, 4)
        for _ in range(3):
            p.grad = g.clone()
            optimizer.step()
            buffer = 0.9 * buffer + 0.1 * g
            expected = expected * (1 - 0.1 * 0.01) - 0.1 * buffer
        torch.testing.assert_close(p.detach(), expected)

    def test_the_mask_stops_what_is_only_noise(self):
        for kind in BOTH:
            (p,) = parameters_of((2, 2))
            start = p.detach().clone()
            p.grad = torch.tensor([[1e-3, 2.0], [-1e-3, -2.0]])
            kind([p], lr=1, eps=1e-2, Lambda=0, momentum_beta=0).step()
            moved = (p.detach() - start).abs() > 0
            self.assertEqual(moved.tolist(), [[False, True], [False, True]])

    def test_centralize_subtracts_a_rows_mean(self):
        for kind in BOTH:
            (p,) = parameters_of((2, 3))
            start = p.detach().clone()
            p.grad = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])
            plain(kind, [p], lr=1, centralize=True).step()
            torch.testing.assert_close(start - p.detach(), torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]))

    def test_use_rms_divides_by_the_root_of_the_second_moment(self):
        g = torch.tensor([[3.0, -4.0], [1.0, 2.0]])
        (p,) = parameters_of((2, 2))
        start = p.detach().clone()
        p.grad = g.clone()
        plain(Fusedbun, [p], lr=1, use_rms=True).step()
        v = 0.2 * (g**2).mean(dim=0)  # one number per column, 1 - beta_decay of this step's
        torch.testing.assert_close(start - p.detach(), g / (v.sqrt() + 1e-8))

    def test_prepare_hessian_keeps_a_separate_memory_and_divides_by_its_root(self):
        g, h = torch.tensor([[3.0, -4.0]]), torch.tensor([[16.0, 25.0]])
        (p,) = parameters_of((1, 2))
        start = p.detach().clone()
        optimizer = plain(FusionOptimizer, [p], lr=1, use_rms=True, prepare_hessian=True, hessian_source="external")
        optimizer.set_hessian_diagonal(p, h)
        p.grad = g.clone()
        optimizer.step()
        torch.testing.assert_close(start - p.detach(), g / ((0.2 * h).sqrt() + 1e-8))
        torch.testing.assert_close(optimizer.state[p]["exp_hessian"], 0.2 * h)
        torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], 0.2 * g**2)

    def test_the_closure_comes_first_with_gradients_and_its_loss_is_returned(self):
        for kind in BOTH:
            (p,) = parameters_of((2, 2))
            start, seen = p.detach().clone(), []
            optimizer = plain(kind, [p])

            def closure():
                seen.append((p.detach().clone(), torch.is_grad_enabled()))
                optimizer.zero_grad()
                loss = (3 * p).sum()
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            self.assertEqual(len(seen), 1)
            self.assertTrue(seen[0][0].equal(start) and seen[0][1])
            torch.testing.assert_close(loss.detach(), (3 * start).sum())
            torch.testing.assert_close(p.detach(), start - 0.5 * 3)
            self.assertIsNone(optimizer.step())


class Habits(unittest.TestCase):
    def test_a_scheduler_sets_the_step(self):
        for kind in BOTH:
            (p,) = parameters_of((2, 2))
            optimizer = plain(kind, [p], lr=1.0)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
            steps = []
            for _ in range(3):
                before = p.detach().clone()
                p.grad = torch.ones(2, 2)
                optimizer.step()
                scheduler.step()
                steps.append((before - p.detach()).mean().item())
            torch.testing.assert_close(torch.tensor(steps), torch.tensor([1.0, 0.5, 0.25]))

    def test_a_scheduler_that_cycles_the_momentum_is_told_what_to_do(self):
        params = parameters_of((2, 2))
        optimizer = Fusedbun(params, lr=0.1)
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=9, cycle_momentum=False)
        step_with(optimizer, params, 1)
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=9)
        with self.assertRaisesRegex(ValueError, "cycle_momentum=False"):
            optimizer.step()

    def test_training_lowers_the_loss(self):
        for kind, options in ((Fusedbun, {}), (Fusedbun, {"use_rms": True}), (Fusedbun, {"use_rms": True, "centralize": True}),
                              (FusionOptimizer, {"use_rms": True}), (FusionOptimizer, {"prepare_hessian": True})):
            torch.manual_seed(3)
            model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
            x = torch.randn(64, 8)
            y = x[:, :1] * x[:, 1:2]
            optimizer = kind(model.parameters(), lr=2e-3 if options else 0.3, **options)
            losses = []
            for _ in range(150):
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(model(x), y)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                losses.append(loss.item())
            self.assertLess(losses[-1], 0.6 * losses[0], f"{kind.__name__} {options}")

    def saved_and_loaded(self, optimizer, fresh):
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        fresh.load_state_dict(torch.load(file, weights_only=True))

    def test_a_state_dict_continues_bit_for_bit_in_every_type(self):
        for kind in BOTH:
            for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
                for options in ({}, {"momentum_dtype": "bf16"}, {"prepare_hessian": True, "accumulator": "sm3"}):
                    options = {"lr": 1e-3, "use_rms": True, **options}
                    if kind is Fusedbun:
                        options.pop("prepare_hessian", None)
                    params = parameters_of((5, 3), (4,), (), dtype=dtype)
                    optimizer = kind(params, **options)
                    step_with(optimizer, params, 3)
                    copies = [p.detach().clone().requires_grad_() for p in params]
                    fresh = kind(copies, lr=7, use_rms=False)
                    self.saved_and_loaded(optimizer, fresh)
                    for p, c in zip(params, copies):
                        kept = {name: v.dtype for name, v in optimizer.state[p].items() if torch.is_tensor(v)}
                        self.assertEqual({n: v.dtype for n, v in fresh.state[c].items() if torch.is_tensor(v)}, kept)
                    step_with(optimizer, params, 3, seed=9)
                    step_with(fresh, copies, 3, seed=9)
                    for p, c in zip(params, copies):
                        self.assertTrue(p.equal(c), f"{kind.__name__} {dtype} {options}")

    def test_pickle_and_deepcopy_continue_bit_for_bit(self):
        for kind in BOTH:
            for duplicate in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
                params = parameters_of((5, 3), (4,))
                optimizer = kind(params, lr=1e-2, use_rms=True)
                step_with(optimizer, params, 2)
                optimizer.skipped_steps = 4
                copies, fresh = duplicate((params, optimizer))
                step_with(optimizer, params, 2, seed=9)
                step_with(fresh, copies, 2, seed=9)
                self.assertEqual(fresh.skipped_steps, 4)
                for p, c in zip(params, copies):
                    self.assertTrue(p.equal(c) and p is not c)

    def test_groups_have_options_of_their_own_and_come_late(self):
        a, b, c = parameters_of((2, 2), (2, 2), (2, 2))
        optimizer = plain(FusionOptimizer, [{"params": [a]}, {"params": [b], "lr": 0.25}], lr=1)
        optimizer.add_param_group({"params": [c], "lr": 2.0, "use_rms": True})
        before = [p.detach().clone() for p in (a, b, c)]
        for p in (a, b, c):
            p.grad = torch.full((2, 2), 3.0)
        optimizer.step()
        moved = [(old - p.detach()).mean().item() for old, p in zip(before, (a, b, c))]
        torch.testing.assert_close(torch.tensor(moved), torch.tensor([3.0, 0.75, 2.0 / math.sqrt(0.2)]))
        with self.assertRaisesRegex(ValueError, "eps = 0: must be finite and > 0"):
            optimizer.add_param_group({"params": parameters_of((1,)), "eps": 0})
        self.assertEqual(len(optimizer.param_groups), 3)

    def test_a_parameter_without_a_gradient_is_untouched(self):
        for kind in BOTH:
            used, frozen = parameters_of((2, 2), (2, 2))
            start = frozen.detach().clone()
            optimizer = kind([used, frozen], lr=0.1, Lambda=0.5)
            used.grad = torch.ones(2, 2)
            optimizer.step()
            self.assertTrue(frozen.equal(start))
            self.assertNotIn(frozen, optimizer.state)

    def test_a_grad_scaler_skips_its_overflow(self):
        (p,) = parameters_of((2, 2))
        start = p.detach().clone()
        optimizer = plain(Fusedbun, [p], lr=1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale((p * math.inf).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        self.assertTrue(p.equal(start))
        optimizer.zero_grad()
        scaler.scale((p * 2).sum()).backward()
        scaler.step(optimizer)
        torch.testing.assert_close(p.detach(), start - 2)


class OddTensors(unittest.TestCase):
    def test_any_layout_gives_the_contiguous_ones_bits(self):
        weight = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(1))
        layouts = {"channels_last": lambda: weight.to(memory_format=torch.channels_last),
                   "permuted": lambda: weight.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
                   "a part of a larger one": lambda: torch.cat([weight, weight], dim=1)[:, :3]}
        for kind in BOTH:
            for name, make in layouts.items():
                for options in ({}, {"accumulator": "mean", "denominator": "local"}, {"accumulator": "sm3"}):
                    a, b = weight.clone().requires_grad_(), make().requires_grad_()
                    self.assertTrue(a.equal(b))
                    self.assertFalse(b.is_contiguous())
                    one = kind([a], lr=1e-2, centralize=True, use_rms=True, **options)
                    other = kind([b], lr=1e-2, centralize=True, use_rms=True, **options)
                    strides = b.stride()
                    step_with(one, [a], 3)
                    step_with(other, [b], 3)
                    self.assertTrue(a.equal(b), f"{kind.__name__}, {name}, {options}")
                    self.assertEqual(b.stride(), strides)

    def test_numbers_vectors_empty_ones_and_expanded_gradients(self):
        for kind in BOTH:
            params = parameters_of((), (5,), (0, 3), (3, 0), (2, 1))
            optimizer = kind(params, lr=0.1, use_rms=True, centralize=True)
            for p in params:
                p.grad = torch.ones(()).expand(p.shape)
            optimizer.step()
            self.assertTrue(all(p.isfinite().all() for p in params))
            self.assertEqual(optimizer.state[params[0]]["exp_avg_sq"].shape, ())
            # An n×1 matrix is its rows' mean; it is not centred, or it would never train.
            self.assertGreater(optimizer.state[params[4]]["momentum_buffer"].abs().min().item(), 0)

    def test_a_bfloat16_parameter_is_its_masters_rounding(self):
        for kind in BOTH:
            (half,) = parameters_of((9, 33), dtype=torch.bfloat16)
            wide = half.detach().float().requires_grad_()
            one, other = (kind([p], lr=1e-4, use_rms=True) for p in (half, wide))  # far below bfloat16's resolution
            start = half.detach().clone()
            for step in range(40):
                g = torch.randn((9, 33), generator=torch.Generator().manual_seed(step)).bfloat16() + 1
                half.grad, wide.grad = g, g.float()
                one.step()
                other.step()
            self.assertTrue(one.state[half]["master"].equal(wide.detach()))
            self.assertTrue(half.equal(wide.detach().bfloat16()))
            self.assertFalse(half.equal(start))

    def test_a_master_follows_what_somebody_else_writes(self):
        (p,) = parameters_of((2, 3), dtype=torch.bfloat16)
        optimizer = plain(Fusedbun, [p], lr=2.0**-12)  # below bfloat16's resolution at 1
        with torch.no_grad():
            p.fill_(1)
        for written in (1.0, 4.0):
            with torch.no_grad():
                p[0].fill_(written)
            p.grad = torch.ones(2, 3, dtype=torch.bfloat16)
            optimizer.step()
        # Row 0 was written once more, after its first step; row 1 kept both steps.
        torch.testing.assert_close(optimizer.state[p]["master"],
                                   torch.tensor([[4 - 2.0**-12] * 3, [1 - 2 * 2.0**-12] * 3]), rtol=0, atol=0)

    def test_stacked_matrices_are_stepped_as_each_alone(self):
        for kind in BOTH:
            for options in ({}, {"accumulator": "mean", "denominator": "local"}, {"accumulator": "sm3"}):
                options = {"lr": 1e-2, "use_rms": True, "centralize": True, **options}
                (stack,) = parameters_of((2, 3, 4, 5))
                alone = [m.clone().requires_grad_() for m in stack.detach().reshape(6, 4, 5)]
                one, other = kind([stack], matrix_view="last_two", **options), kind(alone, **options)
                for step in range(3):
                    stack.grad = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(step))
                    for m, g in zip(alone, stack.grad.reshape(6, 4, 5)):
                        m.grad = g.clone()
                    one.step()
                    other.step()
                self.assertTrue(stack.detach().reshape(6, 4, 5).equal(torch.stack([m.detach() for m in alone])), options)

    def test_the_cap_bounds_the_step_of_an_element_that_wakes_up(self):
        for cap, bound in ((1, 50_000**0.4), (0.999, 1 / math.sqrt(0.001))):
            (p,) = parameters_of((1, 2))
            optimizer = plain(FusionOptimizer, [p], lr=1, use_rms=True, decay="power", beta_cap=cap)
            p.grad = torch.zeros(1, 2)
            optimizer.step()
            optimizer.state[p]["step"] = 49_999
            start = p.detach().clone()
            p.grad = torch.ones(1, 2)
            optimizer.step()
            torch.testing.assert_close(start - p.detach(), torch.full((1, 2), bound), rtol=1e-4, atol=0)

    def test_sparse_gradients_are_refused_before_anything_moves(self):
        for kind in BOTH:
            layer = torch.nn.Embedding(5, 2, sparse=True)
            (p,) = parameters_of((2, 2))
            start = p.detach().clone()
            optimizer = kind([p, *layer.parameters()], lr=0.1)
            (layer(torch.tensor([1])).sum() + p.sum()).backward()
            with self.assertRaisesRegex(ValueError, "sparse=False"):
                optimizer.step()
            self.assertTrue(p.equal(start))

    def test_a_gradient_that_is_not_finite_leaves_everything_as_it_was(self):
        for bad in (math.nan, math.inf, 1e20):  # the square of the last one is not finite
            for kind in BOTH:
                params = parameters_of((2, 2), (2,))
                optimizer = kind(params, lr=0.1, use_rms=True)
                step_with(optimizer, params, 1)
                kept = copy.deepcopy((params, optimizer.state_dict()["state"]))
                params[0].grad = torch.ones(2, 2)
                params[1].grad = torch.tensor([1.0, bad])
                optimizer.step()
                self.assertEqual(optimizer.skipped_steps, 1)
                torch.testing.assert_close((params, optimizer.state_dict()["state"]), kept, rtol=0, atol=0)
        params = parameters_of((2, 2))
        params[0].grad = torch.full((2, 2), math.nan)
        Fusedbun(params, lr=0.1, nonfinite="propagate").step()
        self.assertTrue(params[0].isnan().all())


class Refusals(unittest.TestCase):
    def test_values_out_of_range_are_named(self):
        for options, words in (({"lr": -1}, "lr = -1: must be finite and >= 0"), ({"lr": math.nan}, "lr = nan"),
                               ({"eps": 0}, "eps = 0: must be finite and > 0"),
                               ({"beta_decay": 1}, r"beta_decay = 1: must be in \[0, 1\) with decay = ema"),
                               ({"beta_decay": 0, "decay": "power"}, "beta_decay = 0: must be finite and > 0"),
                               ({"Lambda": -0.1}, "Lambda = -0.1"), ({"momentum_beta": 1}, "momentum_beta = 1"),
                               ({"beta_cap": 1.5}, r"beta_cap = 1.5: must be in \(0, 1\]"),
                               ({"mask": "on"}, "mask = on: must be one of zero, hold, off")):
            for kind in BOTH:
                with self.assertRaisesRegex(ValueError, words):
                    kind(parameters_of((2, 2)), **{"lr": 0.1, **options})

    def test_an_unknown_option_is_refused(self):
        with self.assertRaisesRegex(TypeError, "has no option 'betas'"):
            Fusedbun(parameters_of((2, 2)), lr=0.1, betas=(0.9, 0.99))

    def test_structure_is_fixed_once_there_is_state(self):
        for field, value in (("momentum_beta", 0), ("accumulator", "sm3"), ("prepare_hessian", True)):
            params = parameters_of((2, 2))
            optimizer = FusionOptimizer(params, lr=0.1)
            step_with(optimizer, params, 1)
            optimizer.param_groups[0][field] = value
            start = params[0].detach().clone()
            with self.assertRaisesRegex(ValueError, "fixed once a parameter has state"):
                optimizer.step()
            self.assertTrue(params[0].equal(start))

    def test_a_diagonal_of_another_shape_is_refused(self):
        params = parameters_of((2, 3))
        with self.assertRaisesRegex(ValueError, r"\(2, 3\), not \(3, 2\)"):
            FusionOptimizer(params, lr=0.1).set_hessian_diagonal(params[0], torch.ones(3, 2))


if __name__ == "__main__":
    unittest.main()
