#include "fusedbun/core/fused_pass.h"

#include <cmath>
#include <cstdlib>

namespace fusedbun {

bool has_fused_step(const Options& options) {
  if (options.prepare_hessian && options.hessian_source == HessianSource::external) return false;
  const bool momentum_fits =
      options.momentum_beta == 0 || options.momentum_at == MomentumAt::update;
  switch (options.accumulator) {
    case Accumulator::full:
      return true;
    case Accumulator::mean:
    case Accumulator::sm3:
      return options.denominator == Denominator::local && momentum_fits;
    case Accumulator::mean_col:
      // A held element needs P = c_j while the new c is being summed; the statistics pass does not read it.
      return options.denominator == Denominator::global && momentum_fits &&
             options.mask != Mask::hold;
  }
  return false;
}

bool has_fused_cuda_step(const Options& options) {
  return has_fused_step(options) && !options.prepare_hessian;
}

namespace fused {
namespace {

MomentumKind momentum_kind(bool stored, MomentumAt at) {
  if (!stored) return MomentumKind::none;
  return at == MomentumAt::update ? MomentumKind::of_update : MomentumKind::of_gradient;
}

bool is_power_of_two(double value) {
  int exponent = 0;
  return std::frexp(value, &exponent) == 0.5 && std::abs(exponent) < 64;
}

// Everything but the kind.
template <class T>
PassArguments<T> arguments_of(const RowRange& range, const StepScalars& s,
                              const Structure& structure, bool has_momentum) {
  PassArguments<T> a;
  a.rows = range.rows();
  a.columns = range.columns;
  a.elements = range.elements();
  a.first_of_parameter = range.row_begin * range.columns;
  a.low_precision = structure.low_precision;
  a.step_seed = s.step_seed;
  a.has_hessian = structure.prepare_hessian;
  a.hessian_of_raw = structure.hessian_source == HessianSource::raw;
  a.momentum_kind = momentum_kind(has_momentum, structure.momentum_at);
  a.momentum_is_bf16 = structure.momentum_dtype == MomentumDtype::bf16;
  a.centralize =
      s.centralize && !range.is_vector && (range.columns > 1 || structure.centralize_single_column);
  a.masked =
      structure.mask != Mask::off && (structure.mask_scope == MaskScope::all || !range.is_vector);
  a.held = a.masked && structure.mask == Mask::hold;
  a.use_rms = s.use_rms || structure.prepare_hessian;
  a.gradient_divisor = static_cast<T>(s.gradient_divisor);
  a.gradient_inverse =
      is_power_of_two(s.gradient_divisor) ? static_cast<T>(1 / s.gradient_divisor) : T{0};
  a.gradient_scale = static_cast<T>(s.gradient_scale);
  a.eps = static_cast<T>(s.eps);
  a.beta = static_cast<T>(s.beta);
  a.beta_rest = static_cast<T>(1 - s.beta);
  a.row_beta = s.beta;
  a.second_moment_scale = static_cast<T>(1 / s.second_moment_correction);
  a.momentum_beta = static_cast<T>(s.momentum_beta);
  a.momentum_rest =
      structure.momentum == Momentum::ema ? static_cast<T>(1 - s.momentum_beta) : T{1};
  a.momentum_scale = static_cast<T>(1 / s.momentum_correction);
  a.keep = static_cast<T>(s.keep);
  // The update's momentum is divided by its correction where it is multiplied by lr anyway.
  const double correction = a.momentum_kind == MomentumKind::of_update ? s.momentum_correction : 1;
  a.step = static_cast<T>(s.lr * s.parameter_scale / correction);
  return a;
}

// Where nothing depends on rows: long ones, so that there are no short ends.
template <class T>
void lay_out_without_rows(PassArguments<T>& a) {
  a.columns = kSumBlock;
  a.rows = (a.elements + kSumBlock - 1) / kSumBlock;
}

bool keeps_full(const RowRange& range, const Structure& structure) {
  return range.is_vector || structure.accumulator == Accumulator::full;
}

}  // namespace

template <class T>
PassArguments<T> begin_arguments(const RowRange& range, const StepScalars& scalars,
                                 const Structure& structure, bool has_momentum) {
  PassArguments<T> a = arguments_of<T>(range, scalars, structure, has_momentum);
  if (keeps_full(range, structure)) {
    a.kind = PassKind::full;
    if (!a.centralize) lay_out_without_rows(a);
  } else if (structure.accumulator == Accumulator::sm3) {
    a.kind = PassKind::sm3;
  } else if (structure.accumulator == Accumulator::mean) {
    a.kind = PassKind::mean;
  } else {
    a.kind = PassKind::statistics;  // of the gradient alone
    a.momentum_kind = MomentumKind::none;
  }
  return a;
}

template <class T>
PassArguments<T> finish_arguments(const RowRange& range, const StepScalars& scalars,
                                  const Structure& structure, bool has_momentum) {
  PassArguments<T> a = arguments_of<T>(range, scalars, structure, has_momentum);
  a.kind = PassKind::columns;
  return a;
}

#define FUSEDBUN_INSTANTIATE(T)                                                                    \
  template PassArguments<T> begin_arguments(const RowRange&, const StepScalars&, const Structure&, \
                                            bool);                                                 \
  template PassArguments<T> finish_arguments(const RowRange&, const StepScalars&,                  \
                                             const Structure&, bool);
FUSEDBUN_INSTANTIATE(float)
FUSEDBUN_INSTANTIATE(double)
#undef FUSEDBUN_INSTANTIATE

}  // namespace fused
}  // namespace fusedbun
