#include "fusedbun/core/fused_pass.h"

#include <cmath>
#include <cstdlib>

namespace fusedbun {

bool has_fused_step(const Options& options) {
  if (options.prepare_hessian) return false;
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
PassArguments<T> arguments_of(const FusedStep<T>& step) {
  const StepScalars& s = step.scalars;
  const Structure& structure = step.structure;
  const bool is_vector = step.range.is_vector;
  PassArguments<T> a{};
  a.parameter = step.parameter;
  a.rounded = step.rounded;
  a.gradient = step.gradient;
  a.gradient_type = step.gradient_type;
  a.more_gradients = step.more_gradients;
  a.more_gradient_count = step.more_gradient_count;
  a.momentum = step.momentum;
  a.full = step.full;
  a.row = step.row;
  a.column_sums = step.column_sums;
  a.column_maxima = step.column_maxima;
  a.rows = step.range.rows();
  a.columns = step.range.columns;
  a.momentum_kind = momentum_kind(step.momentum != nullptr, structure.momentum_at);
  a.momentum_is_bf16 = structure.momentum_dtype == MomentumDtype::bf16;
  a.centralize =
      s.centralize && !is_vector && (step.range.columns > 1 || structure.centralize_single_column);
  a.masked = structure.mask != Mask::off && (structure.mask_scope == MaskScope::all || !is_vector);
  a.held = a.masked && structure.mask == Mask::hold;
  a.use_rms = s.use_rms;
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

bool keeps_full(const RowRange& range, const Structure& structure) {
  return range.is_vector || structure.accumulator == Accumulator::full;
}

}  // namespace

template <class T>
PassArguments<T> begin_pass(const FusedStep<T>& step) {
  PassArguments<T> a = arguments_of(step);
  if (keeps_full(step.range, step.structure)) {
    a.kind = PassKind::full;
  } else if (step.structure.accumulator == Accumulator::sm3) {
    a.kind = PassKind::sm3;
    a.column_values = step.col;
  } else if (step.structure.accumulator == Accumulator::mean) {
    a.kind = PassKind::mean;
  } else {
    a.kind = PassKind::statistics;  // of the gradient alone
    a.parameter = nullptr;
    a.rounded = nullptr;
    a.momentum = nullptr;
    a.momentum_kind = MomentumKind::none;
  }
  return a;
}

template <class T>
PassArguments<T> finish_pass(const FusedStep<T>& step) {
  PassArguments<T> a = arguments_of(step);
  a.kind = PassKind::columns;
  return a;
}

template PassArguments<float> begin_pass(const FusedStep<float>&);
template PassArguments<double> begin_pass(const FusedStep<double>&);
template PassArguments<float> finish_pass(const FusedStep<float>&);
template PassArguments<double> finish_pass(const FusedStep<double>&);

}  // namespace fused
}  // namespace fusedbun
