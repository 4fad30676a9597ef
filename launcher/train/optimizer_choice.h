#pragma once
// Which optimizer `fusedbun train` runs, and with which options. No LibTorch.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <optional>
#include <string>

#include "fusedbun/core/options.h"

namespace fusedbun::train {

enum class OptimizerKind : uint8_t { fusedbun, adamw };

struct OptimizerChoice {
  OptimizerKind kind = OptimizerKind::fusedbun;
  std::string preset = "recommended";  ///< of Fusedbun
  /// Unset: the preset's value, or AdamW's; lr: what suits it (options_of). For AdamW momentum_beta and beta_decay are
  /// its two betas.
  std::optional<double> lr, eps, weight_decay, beta_decay, momentum_beta;
  /// Unset: the preset's. Fusedbun's alone.
  std::optional<bool> centralize, use_rms, prepare_hessian;
  std::optional<Mask> mask;
  std::optional<LowPrecision> low_precision;
  bool momentum_bf16 = false;
  bool decays_all = false;  ///< weight decay of biases and norms too
  bool propagate_nonfinite =
      false;  ///< let a NaN or inf gradient through instead of skipping the step
};

/// The options in full. For AdamW lr, eps, Lambda, beta_decay and momentum_beta are meant. Throws ConfigError for a
/// value out of range, and for one of Fusedbun's own options with AdamW.
Options options_of(const OptimizerChoice& choice);

/// Whether weight decay, if there is any, is of biases and norms (parameters of fewer than two dimensions) too. By default it is not, as in
/// transformers' Trainer.
bool decays_all(const OptimizerChoice& choice);

/// One line for people.
std::string describe(const OptimizerChoice& choice);

}  // namespace fusedbun::train
