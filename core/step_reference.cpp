// One step of Fusedbun, written to be read. Every tensor is [rows, m]: the rows of one matrix that are at hand (all of them
// in one process). g is the gradient, p the parameter, r and c what is remembered of the squares of past gradients.
//
// Whose idea is what:
//   SM3         Anil, Gupta, Koren, Singer, "Memory-Efficient Adaptive Optimization" (2019): one number per row and one per
//               column instead of one per element; their maxima cover every element, the smaller one is the estimate.
//   Adafactor   Shazeer, Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (2018): row and column means
//               and their outer product as the estimate; a decay that grows with t; steps relative to the parameter's RMS.
//   Adalite     Facebook Research / Vasily Shadrin's optimizer of that name: Adafactor's ideas with centred gradients,
//               momentum and decoupled weight decay.
//   Fusedbun    this optimizer: the epsilon mask, the held second moment, and the blend of reconstruction and element.
#include "fusedbun/core/step_reference.h"

#include <ATen/ATen.h>

namespace fusedbun {
namespace {

using at::Tensor;

// beta·old + (1-beta)·fresh: an exponential moving average, the one way in which anything is remembered here.
Tensor blend(double beta, const Tensor& old, const Tensor& fresh) {
  return old * beta + fresh * (1 - beta);
}

bool is_masked(const RowRange& range, const Options& options) {
  // Vectors (biases, gains) are few and dense: MaskScope::matrices leaves them alone. (Fusedbun)
  return options.mask != Mask::off && (options.mask_scope == MaskScope::all || !range.is_vector);
}

// Step 0½: the averaged gradient. The sum over ranks arrives; one correctly rounded division makes the average, one
// multiplication applies the clip factor. Dividing by a tensor, not by a number, keeps GPUs from using 1/divisor.
Tensor averaged(const SegmentStep& step) {
  Tensor g = step.gradient;
  if (step.scalars.gradient_divisor != 1) {
    g = g / at::full({1}, step.scalars.gradient_divisor, g.options());
  }
  if (step.scalars.gradient_scale != 1) g = g * step.scalars.gradient_scale;
  return g;
}

// Step 1: gradient centralisation (Yong et al. 2020, taken over from Adalite): a row's mean is subtracted, so that a step
// never shifts an output by a constant that a bias could carry. In float64, sum and difference both: float32 leaves residue
// of 5e-7 where the exact answer is 0, which would pass the mask and become a full step.
Tensor centralized(const Tensor& g, const RowRange& range, const StepScalars& scalars,
                   const Options& options) {
  const bool has_mean =
      range.columns > 1 || options.centralize_single_column;  // g - mean of one entry is 0 for ever
  if (!scalars.centralize || range.is_vector || !has_mean)
    return g;                             // a vector's row is one element: nothing to centre
  const Tensor wide = g.to(at::kDouble);  // sums of many floats need more than float32
  return (wide - wide.mean(/*dim=*/1, /*keepdim=*/true))
      .to(g.scalar_type());  // each row now sums to 0
}

// M(x) of steps 2 and 6: momentum. ema averages (its buffer has the size of x), heavy_ball adds up (1/(1-b) times as large).
Tensor with_momentum(const Tensor& x, SegmentState& state, const StepScalars& scalars,
                     const Options& options) {
  const double b = scalars.momentum_beta;
  if (!state.momentum_buffer.defined())
    return x;  // b = 0: nothing is remembered, M is the identity
  const Tensor old =
      state.momentum_buffer.to(x.scalar_type());  // widens a bfloat16 buffer, exactly
  const Tensor fresh = options.momentum == Momentum::ema ? blend(b, old, x) : old * b + x;
  // The step uses the fresh buffer as computed; only what is kept may be rounded, to nearest even and through float32.
  state.momentum_buffer.copy_(options.momentum_dtype == MomentumDtype::bf16 ? fresh.to(at::kFloat)
                                                                            : fresh);
  return fresh /
         scalars
             .momentum_correction;  // an average that began at 0 is too small by 1 - b^t (Adam's correction)
}

// Step 4, P: what the statistics of step t-1 say about the second moment of every element.
Tensor reconstruct(const SecondMoment& moment, const Options& options, const RowRange& range) {
  if (range.is_vector || options.accumulator == Accumulator::full)
    return moment.full;                      // as Adam keeps it: every element
  const Tensor c = moment.col.unsqueeze(0);  // [1, m]
  if (options.accumulator == Accumulator::mean_col)
    return c.expand({range.rows(), range.columns});  // equal in all rows
  const Tensor r = moment.row.unsqueeze(1);          // [rows, 1]
  if (options.accumulator == Accumulator::sm3)
    return at::minimum(r, c);  // SM3: the tighter of the two covers; NaN stays
  // Adafactor: the rank-1 matrix r·cᵀ/mean(c), which has exactly these row means and, up to a factor, column means.
  const Tensor mean = c.to(at::kDouble).mean();   // float64: m may be large
  const Tensor share = c.to(at::kDouble) / mean;  // how much more than average column j gets
  return r * at::where(mean == 0, at::zeros_like(share), share)
                 .to(r.scalar_type());  // before the first step: all 0
}

// What one step feeds into one second moment.
struct Evidence {
  Tensor squares;  // g² (or h²) of this step, [rows, m]
  Tensor held;     // true where mask = hold keeps the old estimate, [rows, m]; undefined: nowhere
};

// Steps 4 and 4b for one second moment: remembers this step's squares and leaves the column partials of these rows in
// `partials` ([m], or undefined where no columns are kept). Returns V, the local estimate for every element.
Tensor remember(const Evidence& evidence, SecondMoment& moment, const Tensor& partials,
                const SegmentStep& step, const Options& options) {
  const double beta = step.scalars.beta;
  const Tensor P = reconstruct(moment, options, step.range);  // what was known before this step
  Tensor V = blend(beta, P, evidence.squares);  // what is known now, element by element
  Tensor s = evidence.squares;                  // what the means below take in
  if (evidence.held.defined()) {  // an element without news says nothing about its variance,
    V = at::where(evidence.held, P,
                  V);  // so its estimate stays instead of decaying to 0, (Fusedbun)
    s = at::where(evidence.held, P, s);  // and the means take in that estimate in its place
  }
  if (step.range.is_vector || options.accumulator == Accumulator::full) {
    moment.full.copy_(V);  // nothing to compress
  } else if (options.accumulator == Accumulator::sm3) {
    moment.row.copy_(V.amax(1));  // SM3: a row's number covers all its elements; NaN stays
    at::maximum_out(const_cast<Tensor&>(partials), partials,
                    V.amax(0).abs());  // abs: a NaN without its sign, too
  } else {
    const Tensor wide = s.to(at::kDouble);  // sums of many floats in float64
    if (moment.row.defined())
      moment.row.copy_(blend(beta, moment.row.to(at::kDouble), wide.mean(1)));  // Adafactor's r
    partials.add_(wide.sum(0));  // for c; divided by n when all rows of the matrix are in
  }
  return V;
}

// Steps 5 to 9: normalise, momentum, scale, decay, step. `v` is undefined when nothing normalises.
void update(const Tensor& g, const Tensor& v, SegmentStep& step, SegmentState& state,
            const Options& options) {
  const StepScalars& scalars = step.scalars;
  Tensor u = g;       // plain SGD's direction
  if (v.defined()) {  // else: every element in units of its usual size (AdaGrad's
    u = u / ((v / scalars.second_moment_correction).sqrt() +
             scalars.eps);  // family); eps keeps silent ones from exploding
  }
  if (options.momentum_at == MomentumAt::update)
    u = with_momentum(u, state, scalars, options);  // averages directions
  u = u * scalars.parameter_scale;  // Adafactor: relative to the size of the parameter itself
  Tensor p =
      step.parameter * scalars.keep;  // weight decay apart from the gradient (AdamW; Adalite too)
  p = p - u * scalars.lr;             // the step
  step.parameter.copy_(p);            // in place: the parameter is the user's tensor
  if (step.parameter_sum_of_squares !=
      nullptr) {  // next step's RMS, for segments that are parts of a parameter
    *step.parameter_sum_of_squares = p.to(at::kDouble).square().sum().item<double>();
  }
}

// The columns of exp_avg_sq (which = 0) or exp_hessian (which = 1) in a tensor that has both, or undefined.
Tensor columns_of(const Tensor& entries, int64_t which, const RowRange& range) {
  return entries.defined() ? entries.narrow(0, which * range.columns, range.columns) : Tensor();
}

}  // namespace

void reference_begin(SegmentStep& step, SegmentState& state, const Options& options) {
  const Tensor raw = centralized(averaged(step), step.range, step.scalars,
                                 options);  // step 1; kept for HessianSource::raw
  Tensor g = raw;
  if (options.momentum_at == MomentumAt::gradient)
    g = with_momentum(g, state, step.scalars, options);  // step 2

  // Step 3, the epsilon mask: entries that are only noise do not move their parameter. (Fusedbun)
  const bool masked = is_masked(step.range, options);
  const Tensor k = masked ? g.abs() > step.scalars.eps : Tensor();  // strictly above; false for NaN
  if (masked) g = g * k;  // 0 where masked, but NaN·0 stays NaN
  const Tensor held = masked && options.mask == Mask::hold ? k.logical_not() : Tensor();

  // Step 4: the second moment of g.
  Tensor v = remember({g.square(), held}, state.exp_avg_sq,
                      columns_of(step.column_partials, 0, step.range), step, options);
  // Step 4b: a second memory of its own, made of the masked gradient again, of the raw one (where not held; what is held
  // keeps its estimate anyway), or of a curvature that the caller measured; negative curvature says nothing about a step.
  if (options.prepare_hessian) {
    Tensor squares = g.square();
    if (options.hessian_source == HessianSource::raw) squares = raw.square();
    if (options.hessian_source == HessianSource::external) {
      squares = step.hessian_diagonal.defined()
                    ? step.hessian_diagonal.to(g.scalar_type()).clamp_min(0)
                    : at::zeros_like(g);
    }
    v = remember({squares, held}, state.exp_hessian,
                 columns_of(step.column_partials, 1, step.range), step,
                 options);  // this one normalises now
  }
  if (updates_in_begin(step.range, options)) {
    const bool normalised = step.scalars.use_rms || options.prepare_hessian;
    update(g, normalised ? v : Tensor(), step, state,
           options);  // local: the reconstruction is old, the element is new
  } else {
    step.kept_update_input = g;  // global: the update waits for the columns of all rows
  }
}

void reference_absorb(const Tensor& column_totals, const RowRange& range,
                      const StepScalars& scalars, SegmentState& state, const Options& options) {
  int64_t which = 0;
  for (SecondMoment* moment : {&state.exp_avg_sq, &state.exp_hessian}) {
    if (!moment->col.defined()) continue;
    const Tensor totals = columns_of(column_totals, which++, range);
    if (columns_are_maxima(options)) {
      moment->col.copy_(
          totals);  // SM3, with decay inside V: this step's maximum, no older one is kept
    } else {
      const Tensor mean =
          totals / static_cast<double>(range.rows_total);  // mean_i over all rows of the matrix
      moment->col.copy_(blend(scalars.beta, moment->col.to(at::kDouble), mean));  // Adafactor's c
    }
  }
}

void reference_finish(SegmentStep& step, SegmentState& state, const Options& options) {
  if (updates_in_begin(step.range, options)) return;
  const SecondMoment& moment = options.prepare_hessian ? state.exp_hessian : state.exp_avg_sq;
  const bool normalised = step.scalars.use_rms || options.prepare_hessian;
  update(step.kept_update_input, normalised ? reconstruct(moment, options, step.range) : Tensor(),
         step, state, options);  // global: the new statistics alone, as Adafactor and SM3 have it
  step.kept_update_input = Tensor();
}

}  // namespace fusedbun
