// One step of Fusedbun, written to be read. Every tensor is [rows, m]: the rows of one matrix that are given (all
// of them in one process). g is the gradient, p the parameter, r and c what is remembered of the squares of past
// gradients.
//
// Whose idea is what:
//   SM3        Anil, Gupta, Koren, Singer, "Memory-Efficient Adaptive Optimization" (2019): one number per row and
//              column instead of one per element; their maxima cover every element, the smaller one is the estimate.
//   Adafactor  Shazeer, Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (2018): row and column
//              means and their outer product as the estimate; a decay that grows with t; steps relative to the
//              parameter's RMS.
//   Adalite    an optimizer published as code: Adafactor's ideas with centred gradients, momentum, decoupled decay.
//   Fusedbun   the epsilon mask with a held second moment, after the public optimizer of this name, which fuses SM3 and
//              Adalite; the blend of reconstruction and element is this implementation's.
#include "fusedbun/core/step_reference.h"

#include <ATen/ATen.h>

namespace fusedbun {
namespace {

using at::Tensor;

// beta·old + (1-beta)·fresh: an exponential moving average, in the type of its tensors.
Tensor blend(double beta, const Tensor& old, const Tensor& fresh) {
  return old * beta + fresh * (1 - beta);
}

bool is_masked(const RowRange& range, const Options& options) {
  // Vectors (biases, gains) are few and dense: MaskScope::matrices leaves them alone. (Fusedbun)
  return options.mask != Mask::off && (options.mask_scope == MaskScope::all || !range.is_vector);
}

// Before step 1: the averaged gradient.
Tensor averaged(const SegmentStep& step) {
  // The sum over ranks arrives here.
  Tensor g = step.gradients.front();
  // One correctly rounded division makes the average. By a tensor: for a number, GPUs would multiply by 1/divisor.
  if (step.scalars.gradient_divisor != 1) {
    g = g / at::full({1}, step.scalars.gradient_divisor, g.options());
  }
  // Gradient clipping: the factor is the same for all parameters, so the direction stays.
  if (step.scalars.gradient_scale != 1) g = g * step.scalars.gradient_scale;
  return g;
}

// Step 1, gradient centralisation (Yong et al. 2020, taken over from Adalite): a row's mean is subtracted, so that a
// step never shifts an output by a constant that a bias could carry.
Tensor centralized(const Tensor& g, const RowRange& range, const StepScalars& scalars,
                   const Options& options) {
  // A row of one entry is its own mean: g would be 0 for ever, and the parameter would never train.
  const bool has_mean = range.columns > 1 || options.centralize_single_column;
  // The rows of a vector are single elements: there is nothing to centre.
  if (!scalars.centralize || range.is_vector || !has_mean) return g;
  // In float64, sum and difference both: float32 leaves residue of 5e-7 where the exact answer is 0, and that would
  // pass the mask and become a full step.
  const Tensor wide = g.to(at::kDouble);
  // Each row now sums to 0.
  return (wide - wide.mean(/*dim=*/1, /*keepdim=*/true)).to(g.scalar_type());
}

// M(x) of steps 2 and 6, momentum (Adalite and SM3 have it): what is done is a memory of what was asked for before.
Tensor with_momentum(const Tensor& x, SegmentState& state, const StepScalars& scalars,
                     const Options& options) {
  const double b = scalars.momentum_beta;
  // b = 0: nothing is remembered, M is the identity.
  if (!state.momentum_buffer.defined()) return x;
  // Widens a bfloat16 buffer, exactly.
  const Tensor old = state.momentum_buffer.to(x.scalar_type());
  // ema averages, so the buffer has the size of x; heavy_ball adds up, so it grows to 1/(1-b) times that.
  const Tensor fresh = options.momentum == Momentum::ema ? blend(b, old, x) : old * b + x;
  // Only what is kept may be rounded: to nearest even, through float32. The step uses the buffer as computed.
  const bool rounds = options.momentum_dtype == MomentumDtype::bf16;
  state.momentum_buffer.copy_(rounds ? fresh.to(at::kFloat) : fresh);
  // An average that began at 0 is too small by 1 - b^t (Adam's bias correction); what is stored stays uncorrected.
  return fresh / scalars.momentum_correction;
}

// P of step 4: what the statistics of step t-1 say about the second moment of every element.
Tensor reconstruct(const SecondMoment& moment, const Options& options, const RowRange& range) {
  // full: every element's own, as Adam keeps it.
  if (range.is_vector || options.accumulator == Accumulator::full) return moment.full;
  const Tensor c = moment.col.unsqueeze(0);  // [1, m]
  // mean_col: a column's mean stands for all its elements.
  if (options.accumulator == Accumulator::mean_col) {
    return c.expand({range.rows(), range.columns});
  }
  const Tensor r = moment.row.unsqueeze(1);  // [rows, 1]
  // sm3: row and column maxima both cover the element; the smaller cover is the tighter one. NaN stays. (SM3)
  if (options.accumulator == Accumulator::sm3) return at::minimum(r, c);
  // mean: the rank-1 matrix r·c/mean(c), whose row means are r and whose column means are c up to a factor.
  // (Adafactor) First how much more than the average column column j gets, in float64 as m may be large,
  const Tensor mean = c.to(at::kDouble).mean();
  const Tensor share = c.to(at::kDouble) / mean;
  // with 0/0 before the first step read as 0,
  const Tensor known = at::where(mean == 0, at::zeros_like(share), share);
  // then that share of the row's mean.
  return r * known.to(r.scalar_type());
}

// What one step feeds into one second moment.
struct Evidence {
  Tensor squares;  // g² (or h²) of this step, [rows, m]
  Tensor held;     // true where mask = hold keeps the old estimate, [rows, m]; undefined: nowhere
};

// Steps 4 and 4b for one second moment: remembers this step's squares and leaves the column partials of these rows in
// `partials` ([m]; undefined where no columns are kept). Returns V, the local estimate for every element.
Tensor remember(const Evidence& evidence, SecondMoment& moment, Tensor partials,
                const SegmentStep& step, const Options& options) {
  const double beta = step.scalars.beta;
  // What was known before this step,
  const Tensor P = reconstruct(moment, options, step.range);
  // and what is known now, element by element. (SM3 with decay; for means: this implementation's)
  Tensor V = blend(beta, P, evidence.squares);
  // What the means below take in.
  Tensor s = evidence.squares;
  if (evidence.held.defined()) {
    // A masked element had no news. Its estimate stays instead of decaying to 0, which would make the first step after
    // a silence huge; and the means take in that estimate in its place. (Fusedbun)
    V = at::where(evidence.held, P, V);
    s = at::where(evidence.held, P, s);
  }
  if (step.range.is_vector || options.accumulator == Accumulator::full) {
    // Nothing to compress.
    moment.full.copy_(V);
  } else if (options.accumulator == Accumulator::sm3) {
    // The smallest numbers that cover every V of their row and column; amax keeps NaN. (SM3)
    moment.row.copy_(V.amax(1));
    // abs takes the sign from a NaN, so that maxima may travel as integers.
    at::maximum_out(partials, partials, V.amax(0).abs());
  } else {
    // Sums of many floats, in float64.
    const Tensor wide = s.to(at::kDouble);
    // r, the rows' means; a row is whole here, so this is final. (Adafactor)
    if (moment.row.defined()) {
      moment.row.copy_(blend(beta, moment.row.to(at::kDouble), wide.mean(1)));
    }
    // For c; divided by n when all rows of the matrix are in.
    partials.add_(wide.sum(0));
  }
  return V;
}

// Steps 5 to 9. `v` is undefined when nothing normalises.
void update(const Tensor& g, const Tensor& v, SegmentStep& step, SegmentState& state,
            const Options& options) {
  const StepScalars& scalars = step.scalars;
  // 5: SGD's direction,
  Tensor u = g;
  if (v.defined()) {
    // where v began at 0 and is an average, corrected as in Adam,
    const Tensor corrected = v / scalars.second_moment_correction;
    // in units of each element's usual size (AdaGrad's family); eps keeps silent elements from exploding.
    u = u / (corrected.sqrt() + scalars.eps);
  }
  // 6: averages directions of many steps.
  if (options.momentum_at == MomentumAt::update) u = with_momentum(u, state, scalars, options);
  // 7: large parameters take large steps (Adafactor's scale_parameter, Adalite); 1 when not asked for.
  u = u * scalars.parameter_scale;
  // 8: weight decay apart from the gradient, so that it is not normalised away (AdamW; Adalite).
  Tensor p = step.parameter * scalars.keep;
  // 9: the step,
  p = p - u * scalars.lr;
  // in place: the tensor is the user's.
  step.parameter.copy_(p);
  // For the next step's RMS of a parameter of which this segment is only a part.
  if (step.parameter_sum_of_squares != nullptr) {
    *step.parameter_sum_of_squares = p.to(at::kDouble).square().sum().item<double>();
  }
}

// Step 4b: h², what exp_hessian takes in.
Tensor hessian_squares(const Tensor& g, const Tensor& raw, const SegmentStep& step,
                       const Options& options) {
  switch (options.hessian_source) {
    case HessianSource::same:
      // The masked gradient once more: a second memory with the same content.
      return g.square();
    case HessianSource::raw:
      // What the mask and the momentum have not seen. Where the mask holds, the estimate stays anyway.
      return raw.square();
    case HessianSource::external:
      // A curvature that the caller measured. Negative curvature gives no scale for a step, so it counts as 0.
      return step.hessian_diagonal.defined()
                 ? step.hessian_diagonal.to(g.scalar_type()).clamp_min(0)
                 : at::zeros_like(g);
  }
  return {};
}

}  // namespace

void reference_begin(SegmentStep& step, SegmentState& state, const Options& options) {
  // 1: kept, as HessianSource::raw looks at it.
  const Tensor raw = centralized(averaged(step), step.range, step.scalars, options);
  Tensor g = raw;
  // 2: mask and statistics then see the buffer.
  if (options.momentum_at == MomentumAt::gradient) {
    g = with_momentum(g, state, step.scalars, options);
  }
  // 3, the epsilon mask: entries that are only noise do not move their parameter. (Fusedbun)
  Tensor held;
  if (is_masked(step.range, options)) {
    // Strictly above; false for NaN.
    const Tensor k = g.abs() > step.scalars.eps;
    // A product and not a selection, so that NaN·0 stays NaN and is seen.
    g = g * k;
    if (options.mask == Mask::hold) held = k.logical_not();
  }
  // 4: the second moment of g.
  Tensor v = remember({g.square(), held}, state.exp_avg_sq,
                      column_entries_of(step.column_partials, 0, step.range), step, options);
  // 4b: a second memory of its own, which normalises in its place.
  if (options.prepare_hessian) {
    v = remember({hessian_squares(g, raw, step, options), held}, state.exp_hessian,
                 column_entries_of(step.column_partials, 1, step.range), step, options);
  }
  // Global: the update waits for the columns of all rows.
  if (!updates_in_begin(step.range, options)) {
    step.kept_update_input = g;
    return;
  }
  // Local: what step t-1 knew of all rows, blended with the element's own news; no other rows are needed.
  const bool normalised = step.scalars.use_rms || options.prepare_hessian;
  update(g, normalised ? v : Tensor(), step, state, options);
}

void reference_absorb(const Tensor& column_totals, const RowRange& range,
                      const StepScalars& scalars, SegmentState& state, const Options& options) {
  int64_t which = 0;
  for (SecondMoment* moment : {&state.exp_avg_sq, &state.exp_hessian}) {
    if (!moment->col.defined()) continue;
    const Tensor totals = column_entries_of(column_totals, which++, range);
    if (columns_are_maxima(options)) {
      // This step's maxima; old ones are inside V already, decayed. (SM3)
      moment->col.copy_(totals);
    } else {
      // mean_i over all rows of the matrix, wherever they are,
      const Tensor mean = totals / static_cast<double>(range.rows_total);
      // into c. (Adafactor)
      moment->col.copy_(blend(scalars.beta, moment->col.to(at::kDouble), mean));
    }
  }
}

void reference_finish(SegmentStep& step, SegmentState& state, const Options& options) {
  if (updates_in_begin(step.range, options)) return;
  // Global: the new statistics alone estimate v, as Adafactor and SM3 have it.
  const SecondMoment& moment = options.prepare_hessian ? state.exp_hessian : state.exp_avg_sq;
  const bool normalised = step.scalars.use_rms || options.prepare_hessian;
  update(step.kept_update_input, normalised ? reconstruct(moment, options, step.range) : Tensor(),
         step, state, options);
  step.kept_update_input = Tensor();
}

}  // namespace fusedbun
