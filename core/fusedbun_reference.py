"""Fusedbun for PyTorch, in one file that needs torch alone: the optimizer written to be read, one line per operation.

    from fusedbun_reference import Fusedbun, FusionOptimizer

    optimizer = Fusedbun(model.parameters(), lr=1e-2, use_rms=True)                # O(n + m) statistics per n×m matrix
    optimizer = FusionOptimizer(model.parameters(), lr=1e-3, centralize=True, use_rms=True, prepare_hessian=True)

Both are torch.optim.Optimizer: schedulers, closures, param groups, state_dict, pickle and GradScaler work as usual. They
are one rule (`_step_parameter`) with two sets of structural options, which are keyword arguments and may be combined
freely. **With `use_rms` false and `prepare_hessian` false, the defaults, the step is SGD with momentum**: the statistics
are kept but not used. The C++ optimizer of this repository does the same, faster and sharded; tests/golden holds both to
the same numbers.

Whose idea is what:
  SM3        Anil, Gupta, Koren, Singer, "Memory-Efficient Adaptive Optimization" (2019): one number per row and column
             instead of one per element; their maxima cover every element, the smaller one is the estimate.
  Adafactor  Shazeer, Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (2018): row and column means
             and their outer product as the estimate; a decay that grows with t; steps relative to the parameter's RMS.
  Adalite    an optimizer published as code: Adafactor's ideas with centred gradients, momentum, decoupled decay.
  Fusedbun   the epsilon mask with a held second moment, after the public optimizer of this name, which fuses SM3 and
             Adalite; the separate exp_hessian; the blend of reconstruction and element is this implementation's.

Thread safety: as torch.optim: one thread at a time.
"""

import math

import torch

__all__ = ["Fusedbun", "FusionOptimizer"]

# The structural options and their values. They decide what is stored, so they stay as they are once there is state.
_STRUCTURE = {
    "accumulator": ("mean", "mean_col", "sm3", "full"),  # what is kept of a matrix' second moment
    "denominator": ("local", "global"),  # the element's own blend, or the reconstruction of the new statistics
    "decay": ("ema", "power"),  # beta_t = beta_decay, or 1 - t^(-beta_decay)
    "momentum": ("ema", "heavy_ball"),  # b·buf + (1-b)·x, or b·buf + x
    "momentum_at": ("update", "gradient"),  # a buffer of normalised updates, or of gradients
    "mask": ("zero", "hold", "off"),  # where abs(g) <= eps: g = 0; also keep the second moment; nothing
    "mask_scope": ("all", "matrices"),
    "hessian_source": ("same", "raw", "external"),  # what feeds exp_hessian
    "momentum_dtype": ("master", "bf16"),  # how the buffer is stored
    "low_precision": ("master",),  # bfloat16 and float16 parameters have a float32 master
    "nonfinite": ("skip", "propagate"),  # a NaN or inf gradient anywhere skips the whole step, or goes through
    "prepare_hessian": (False, True),
    "scale_by_parameter_rms": (False, True),  # steps relative to the parameter's own RMS
    "bias_correction": (False, True),  # of averages that began at 0
    "centralize_single_column": (False, True),  # centre n×1 matrices too, whose gradient then vanishes
    "matrix_view": ("leading", "last_two"),  # rows are the first dimension, or a stack of matrices of the last two
}

_STATE_NAMES = {"momentum_buffer", "master", *(name + part for name in ("exp_avg_sq", "exp_hessian")
                                               for part in ("", "_row", "_col"))}

# Where the two classes differ. Fusedbun is the C++ preset `fusedbun` (and `lean`), FusionOptimizer is `fusion` (and,
# with centralize and use_rms, `elementwise`).
_OFF = {"hessian_source": "same", "momentum_dtype": "master", "nonfinite": "skip", "prepare_hessian": False,
        "scale_by_parameter_rms": False, "bias_correction": False, "centralize_single_column": False,
        "matrix_view": "leading", "low_precision": "master", "beta_cap": 1}
_FUSEDBUN = {"accumulator": "mean_col", "denominator": "global", "decay": "ema", "momentum": "ema",
             "momentum_at": "update", "mask": "zero", "mask_scope": "all", **_OFF}
_FUSION = {"accumulator": "full", "denominator": "local", "decay": "ema", "momentum": "heavy_ball",
           "momentum_at": "gradient", "mask": "hold", "mask_scope": "matrices", **_OFF}


class _FusedbunRule(torch.optim.Optimizer):
    """What both classes share: everything but the arguments of their constructors."""

    def __init__(self, params, hyperparameters, structure_of_class, structure):
        unknown = sorted(structure.keys() - structure_of_class.keys())
        if unknown:
            raise TypeError(f"{type(self).__name__} has no option '{unknown[0]}': there are "
                            f"{', '.join(structure_of_class)}")
        self.skipped_steps = 0  # steps in which a non-finite gradient left everything as it was
        self._hessian_diagonals = {}  # of the next step, by parameter
        super().__init__(params, {**hyperparameters, **structure_of_class, **structure})

    def add_param_group(self, param_group):
        """As torch's; the group may override any option. Raises ValueError for a value out of range."""
        _validate({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure=None):
        """One step for every parameter that has a gradient.

        `closure`, if any, is called first, with gradients enabled, and its loss is returned; else None. Raises ValueError
        for sparse gradients and for options out of range, before anything is changed.
        """
        loss = None
        if closure is not None:
            # step() runs without gradients; the closure computes them.
            with torch.enable_grad():
                loss = closure()
        if self._gradients_allow_step():
            for group in self.param_groups:
                for parameter in group["params"]:
                    # A parameter that took no part in the loss is untouched: no decay, no count.
                    if parameter.grad is None or parameter.numel() == 0:
                        continue
                    diagonal = self._hessian_diagonals.get(parameter)
                    _step_parameter(parameter, diagonal, self.state[parameter], group)
        else:
            self.skipped_steps += 1
        self._hessian_diagonals.clear()
        return loss

    def set_hessian_diagonal(self, parameter, diagonal):
        """The curvature for hessian_source="external", of the parameter's shape; the next step uses and drops it."""
        if diagonal.shape != parameter.shape:
            raise ValueError(f"the Hessian's diagonal must have the parameter's shape {tuple(parameter.shape)}, "
                             f"not {tuple(diagonal.shape)}")
        self._hessian_diagonals[parameter] = diagonal

    def _gradients_allow_step(self):
        allowed = True
        for group in self.param_groups:
            _validate(group)
            for parameter in group["params"]:
                g = parameter.grad
                if g is None:
                    continue
                if g.layout != torch.strided:
                    raise ValueError(f"{type(self).__name__} does not take sparse gradients: use a dense layer "
                                     "(Embedding with sparse=False)")
                kept = _STATE_NAMES & self.state[parameter].keys() if parameter in self.state else None
                if kept is not None and kept != _layout(parameter, group).keys():
                    raise ValueError("structural options, and momentum_beta = 0 or above, are fixed once a parameter has "
                                     f"state: it keeps {', '.join(sorted(kept))}; make a new optimizer")
                # One NaN or inf would spoil the statistics of its whole row and column. The square is tested, in the
                # arithmetic's type, because it overflows first.
                if group["nonfinite"] == "skip":
                    allowed = allowed and bool(g.to(_arithmetic(parameter)).square().isfinite().all())
        return allowed

    def load_state_dict(self, state_dict):
        """As torch's, but the state keeps the type that it was saved in.

        torch casts state to the parameter's type, which would round the float32 statistics and masters of a bfloat16
        parameter, and widen a bfloat16 momentum.
        """
        super().load_state_dict(state_dict)
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"]):
            for parameter, index in zip(group["params"], saved_group["params"]):
                for name, value in state_dict["state"].get(index, {}).items():
                    if torch.is_tensor(value):
                        self.state[parameter][name] = value.detach().to(parameter.device, copy=True)

    def __getstate__(self):
        return {**super().__getstate__(), "skipped_steps": self.skipped_steps, "_hessian_diagonals": {}}


class Fusedbun(_FusedbunRule):
    """Fusedbun: SM3's memory, Adalite's centring and decoupled decay, a sparse update by an epsilon mask.

    Arguments:
        params: parameters, or param groups.
        lr: step size, >= 0; required.
        eps: threshold of the mask and floor of the denominator, > 0.
        beta_decay: decay of the second moment, in [0, 1).
        Lambda: decoupled weight decay, >= 0.
        momentum_beta: decay of the momentum, in [0, 1); 0 keeps no buffer.
        centralize: subtract each matrix row's mean from the gradient.
        use_rms: divide by the root of the second moment. Off, the step is SGD with momentum.
        structure: any of the structural options (`_STRUCTURE`), and beta_cap, the largest beta_t, in (0, 1]. By default of
            an n×m matrix the m column means are kept.

    Raises ValueError for a value out of range, TypeError for an unknown option.
    """

    def __init__(self, params, lr, eps=1e-8, beta_decay=0.8, Lambda=0.01, momentum_beta=0.9, centralize=False,
                 use_rms=False, **structure):
        hyperparameters = {"lr": lr, "eps": eps, "beta_decay": beta_decay, "Lambda": Lambda,
                           "momentum_beta": momentum_beta, "centralize": centralize, "use_rms": use_rms}
        super().__init__(params, hyperparameters, _FUSEDBUN, structure)


class FusionOptimizer(_FusedbunRule):
    """The elementwise form: a full second moment, momentum of the gradient, and on request a separate exp_hessian.

    Arguments: as Fusedbun's, and
        prepare_hessian: keep a second, separate second moment, exp_hessian, and divide by its root. `hessian_source`
            says what feeds it: the masked gradient (same), the gradient before mask and momentum (raw), or the diagonal
            that set_hessian_diagonal() is given (external).
    """

    def __init__(self, params, lr, eps=1e-8, beta_decay=0.8, Lambda=0.01, momentum_beta=0.9, centralize=False,
                 use_rms=False, prepare_hessian=False, **structure):
        hyperparameters = {"lr": lr, "eps": eps, "beta_decay": beta_decay, "Lambda": Lambda,
                           "momentum_beta": momentum_beta, "centralize": centralize, "use_rms": use_rms}
        super().__init__(params, hyperparameters, _FUSION, {"prepare_hessian": prepare_hessian, **structure})


# --- options --------------------------------------------------------------------------------------------------------


def _validate(options):
    """Raises ValueError "field = value: allowed range" for the first value out of range."""
    def require(holds, field, allowed):
        if not holds:
            raise ValueError(f"{field} = {options[field]}: must be {allowed}")

    require(math.isfinite(options["lr"]) and options["lr"] >= 0, "lr", "finite and >= 0")
    require(math.isfinite(options["eps"]) and options["eps"] > 0, "eps", "finite and > 0")
    if options["decay"] == "ema":
        require(0 <= options["beta_decay"] < 1, "beta_decay", "in [0, 1) with decay = ema")
    else:
        require(0 < options["beta_decay"] < math.inf, "beta_decay", "finite and > 0 with decay = power")
    require(math.isfinite(options["Lambda"]) and options["Lambda"] >= 0, "Lambda", "finite and >= 0")
    require(0 <= options["momentum_beta"] < 1, "momentum_beta", "in [0, 1)")
    require(0 < options["beta_cap"] <= 1, "beta_cap", "in (0, 1]")
    for field, allowed in _STRUCTURE.items():
        hint = " (a scheduler that cycles the momentum? give it cycle_momentum=False)" if field == "momentum" else ""
        require(options[field] in allowed, field, f"one of {', '.join(map(str, allowed))}{hint}")


def _arithmetic(parameter):
    """The type in which a parameter is stepped: float64 for itself, float32 for the rest."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


# --- one step of one parameter --------------------------------------------------------------------------------------


def _matrices_of(tensor, options):
    """A tensor as [k, n, m]: k matrices of n rows. One matrix whose rows are the first dimension; with matrix_view =
    last_two as many as are stacked before the last two; a vector (or a number) as one column."""
    if tensor.dim() < 2:
        return tensor.reshape(1, -1, 1)
    if options["matrix_view"] == "last_two":
        return tensor.reshape(-1, *tensor.shape[-2:])
    return tensor.reshape(1, tensor.shape[0], -1)


def _layout(parameter, options):
    """What is remembered about one parameter: name -> (shape, type)."""
    kind = _arithmetic(parameter)
    layout = {}
    if options["momentum_beta"] > 0:
        layout["momentum_buffer"] = (parameter.shape, torch.bfloat16 if options["momentum_dtype"] == "bf16" else kind)
    for name in ["exp_avg_sq"] + (["exp_hessian"] if options["prepare_hessian"] else []):
        if parameter.dim() < 2 or options["accumulator"] == "full":
            # Vectors are few: every element keeps its own, as in Adam.
            layout[name] = (parameter.shape, kind)
            continue
        count, rows, columns = _matrices_of(parameter, options).shape
        # n + m numbers for n·m elements. (SM3, Adafactor)
        if options["accumulator"] != "mean_col":
            layout[name + "_row"] = ((count * rows,), kind)
        layout[name + "_col"] = ((count * columns,), kind)
    if parameter.dtype != kind:
        # bfloat16 has 8 bits: a small step would round to nothing. The parameter is the rounding of this copy.
        layout["master"] = (parameter.shape, kind)
    return layout


def _make_state(parameter, state, options):
    """The state before the first step: all zero but the master."""
    # How many steps had a gradient for it.
    state["step"] = 0
    for name, (shape, kind) in _layout(parameter, options).items():
        state[name] = torch.zeros(shape, dtype=kind, device=parameter.device)
    if "master" in state:
        state["master"].copy_(parameter)


def _blend(beta, old, fresh):
    """An exponential moving average."""
    return old * beta + fresh * (1 - beta)


def _centralized(g, parameter, options):
    """Step 1, gradient centralisation (Yong et al. 2020, taken over from Adalite): a row's mean is subtracted, so that a
    step never shifts an output by a constant that a bias could carry."""
    # A row of one entry is its own mean: its gradient would be 0 for ever.
    has_mean = g.shape[2] > 1 or options["centralize_single_column"]
    # The rows of a vector are single elements: there is nothing to centre.
    if not options["centralize"] or parameter.dim() < 2 or not has_mean:
        return g
    # In float64, sum and difference both: float32 leaves residue of 5e-7 where the exact answer is 0, and that would pass
    # the mask and become a full step.
    wide = g.double()
    # Each row now sums to 0.
    return (wide - wide.mean(dim=2, keepdim=True)).to(g.dtype)


def _with_momentum(x, state, options):
    """M(x) of steps 2 and 6, momentum (SM3, Adalite): a running average, or sum, of past x."""
    # momentum_beta = 0: nothing is remembered.
    if "momentum_buffer" not in state:
        return x
    b = options["momentum_beta"]
    buffer = state["momentum_buffer"].view(x.shape)
    # Widens a bfloat16 buffer, exactly.
    old = buffer.to(x.dtype)
    # ema averages, so the buffer has the size of x; heavy_ball adds up, so it grows to 1/(1-b) times that.
    fresh = _blend(b, old, x) if options["momentum"] == "ema" else old * b + x
    # Only what is kept may be rounded (through float32, to nearest even); the step uses the buffer as computed.
    buffer.copy_(fresh.float() if buffer.dtype == torch.bfloat16 else fresh)
    # An average that began at 0 is too small by 1 - b^t (Adam); what is stored stays uncorrected.
    if options["bias_correction"] and options["momentum"] == "ema":
        return fresh / (1 - b ** state["step"])
    return fresh


def _reconstruct(name, state, shape, options):
    """P of step 4: what the statistics say about the second moment of every element."""
    # full: every element's own, as Adam keeps it.
    if name in state:
        return state[name].view(shape)
    count, rows, columns = shape
    c = state[name + "_col"].view(count, 1, columns)
    # mean_col: a column's mean stands for all its elements.
    if options["accumulator"] == "mean_col":
        return c.expand(shape)
    r = state[name + "_row"].view(count, rows, 1)
    # sm3: row and column maxima both cover the element; the smaller cover is the tighter one. NaN stays. (SM3)
    if options["accumulator"] == "sm3":
        return torch.minimum(r, c)
    # mean: the rank-1 matrix r·c/mean(c), whose row means are r. (Adafactor) First how much more than the average column
    # each column gets, in float64 as m may be large,
    mean = c.double().mean(dim=2, keepdim=True)
    # with 0/0 before the first step read as 0,
    share = torch.where(mean == 0, 0.0, c.double() / mean)
    # then that share of the row's mean.
    return r * share.to(r.dtype)


def _remember(name, squares, held, beta, state, options):
    """Step 4 for one second moment: takes this step's squares in; returns V, the local estimate for every element."""
    # What was known before this step,
    P = _reconstruct(name, state, squares.shape, options)
    # and what is known now, element by element. (SM3 with decay; for means: this implementation's)
    V = _blend(beta, P, squares)
    # What the means below take in.
    s = squares
    if held is not None:
        # A masked element had no news. Its estimate stays instead of decaying to 0, which would make the first step after
        # a silence huge; and the means take in that estimate in its place. (Fusedbun)
        V = torch.where(held, P, V)
        s = torch.where(held, P, s)
    if name in state:
        # Nothing to compress.
        state[name].view(V.shape).copy_(V)
    elif options["accumulator"] == "sm3":
        # The smallest numbers that cover every V of their row and column; old maxima are inside V, decayed. (SM3)
        state[name + "_row"].copy_(V.amax(dim=2).flatten())
        state[name + "_col"].copy_(V.amax(dim=1).flatten())
    else:
        # Sums of many floats, in float64.
        wide = s.double()
        # r, the rows' means, and c, the columns'. (Adafactor)
        for part, dim in (("_row", 2), ("_col", 1)):
            if name + part in state:
                kept = state[name + part]
                kept.copy_(_blend(beta, kept.double(), wide.mean(dim=dim).flatten()))
    return V


def _hessian_squares(g, raw, diagonal, options):
    """Step 4b: h², what exp_hessian takes in."""
    if options["hessian_source"] == "same":
        # The masked gradient once more: a second memory with the same content.
        return g.square()
    if options["hessian_source"] == "raw":
        # What the mask and the momentum have not seen. Where the mask holds, the estimate stays anyway.
        return raw.square()
    # A curvature that the caller measured. Negative curvature gives no scale for a step, so it counts as 0.
    return torch.zeros_like(g) if diagonal is None else _matrices_of(diagonal, options).to(g.dtype).clamp_min(0)


def _second_moment_estimate(g, raw, held, diagonal, state, options):
    """Steps 4 and 4b: takes this step's squares into the statistics; returns v, which normalises the step."""
    t = state["step"]
    # A constant decay, or one that grows with t, so that early averages forget fast. (Adafactor; Adalite)
    beta = options["beta_decay"] if options["decay"] == "ema" else 1 - t ** -options["beta_decay"]
    # A cap bounds the step of an element that wakes up at 1/sqrt(1 - beta_cap). (This implementation's)
    beta = min(beta, options["beta_cap"])
    name = "exp_avg_sq"
    V = _remember(name, g.square(), held, beta, state, options)
    if options["prepare_hessian"]:
        # A second, separate memory, which normalises instead of the first. (Fusedbun)
        name = "exp_hessian"
        V = _remember(name, _hessian_squares(g, raw, diagonal, options), held, beta, state, options)
    # local: what step t-1 knew of all rows, blended with the element's own news (this implementation's). global: the new
    # statistics alone (SM3, Adafactor).
    v = V if options["denominator"] == "local" else _reconstruct(name, state, g.shape, options)
    # An average that began at 0 is too small by 1 - beta^t. (Adam)
    return v / (1 - beta**t) if options["bias_correction"] and options["decay"] == "ema" else v


def _step_parameter(parameter, diagonal, state, options):
    """Steps 1 to 9 for one parameter, in place. `diagonal`: of the Hessian, or None."""
    if not state:
        _make_state(parameter, state, options)
    state["step"] += 1
    lr = float(options["lr"])
    # 1: kept, as hessian_source = raw looks at it.
    raw = _centralized(_matrices_of(parameter.grad, options).to(_arithmetic(parameter)), parameter, options)
    g = raw
    # 2: mask and statistics then see the buffer.
    if options["momentum_at"] == "gradient":
        g = _with_momentum(g, state, options)
    # 3, the epsilon mask: entries that are only noise do not move their parameter. (Fusedbun)
    held = None
    if options["mask"] != "off" and (options["mask_scope"] == "all" or parameter.dim() >= 2):
        # Strictly above; false for NaN.
        k = g.abs() > options["eps"]
        # A product and not a selection, so that NaN·0 stays NaN and is seen.
        g = g * k
        held = k.logical_not() if options["mask"] == "hold" else None
    # 4: the second moment. It is kept even where nothing divides by it, so that use_rms may be turned on later.
    v = _second_moment_estimate(g, raw, held, diagonal, state, options)
    # 5: SGD's direction,
    u = g
    if options["use_rms"] or options["prepare_hessian"]:
        # in units of each element's usual size (AdaGrad's family); eps keeps silent elements from exploding.
        u = u / (v.sqrt() + options["eps"])
    # 6: averages directions of many steps.
    if options["momentum_at"] == "update":
        u = _with_momentum(u, state, options)
    p = parameter.detach()
    if "master" in state:
        # A parameter is what the user's tensor is now: where the program has written it, the master follows.
        p = torch.where(p == state["master"].to(p.dtype), state["master"], p.to(g.dtype))
    p = _matrices_of(p, options)
    if options["scale_by_parameter_rms"]:
        # 7: large parameters take large steps; those that start at 0 must be able to leave it. (Adafactor, Adalite)
        u = u * p.double().square().mean().sqrt().clamp_min(1e-3).to(u.dtype)
    if options["Lambda"] != 0:
        # 8: weight decay apart from the gradient, so that it is not normalised away. (AdamW; Adalite)
        p = p * (1 - lr * options["Lambda"])
    # 9: the step,
    p = p - u * lr
    if "master" in state:
        # kept in full precision,
        state["master"].copy_(p.view_as(parameter))
    # and in place: the tensor is the user's, whatever its layout.
    parameter.copy_(p.view_as(parameter))
