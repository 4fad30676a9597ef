#pragma once
// Every field of Options with its name: what prints, saves, parses or compares options walks it. Hyperparameters are listed in options.h,
// the structure here.
//
// Invariant: both lists are complete. Thread safety: as the options it is given.
#include "fusedbun/core/options.h"

namespace fusedbun {

/// Calls `visit(name, field)` for every hyperparameter. `Target` is Hyperparameters or Options, const or not.
template <class Target, class Visit>
void visit_hyperparameters(Target& options, Visit&& visit) {
#define FUSEDBUN_VISIT(type, name) visit(#name, options.name);
  FUSEDBUN_HYPERPARAMETERS(FUSEDBUN_VISIT)
#undef FUSEDBUN_VISIT
}

/// Calls `visit(name, field)` for every structural option. `Target` is Structure or Options, const or not.
template <class Target, class Visit>
void visit_structure(Target& options, Visit&& visit) {
  visit("accumulator", options.accumulator);
  visit("denominator", options.denominator);
  visit("decay", options.decay);
  visit("momentum", options.momentum);
  visit("momentum_at", options.momentum_at);
  visit("mask", options.mask);
  visit("mask_scope", options.mask_scope);
  visit("hessian_source", options.hessian_source);
  visit("momentum_dtype", options.momentum_dtype);
  visit("nonfinite", options.nonfinite);
  visit("matrix_view", options.matrix_view);
  visit("low_precision", options.low_precision);
  visit("prepare_hessian", options.prepare_hessian);
  visit("scale_by_parameter_rms", options.scale_by_parameter_rms);
  visit("bias_correction", options.bias_correction);
  visit("beta_cap", options.beta_cap);
  visit("centralize_single_column", options.centralize_single_column);
}

/// Calls `visit(name, field)` for every field; the field's type is double, bool or one of the enums.
template <class Target, class Visit>
void visit_options(Target& options, Visit&& visit) {
  visit_hyperparameters(options, visit);
  visit_structure(options, visit);
}

}  // namespace fusedbun
