#include "fusedbun/launcher/train/optimizer_choice.h"

#include <map>
#include <string_view>

namespace fusedbun::train {
namespace {

/// Peak learning rates that train small models well, from the sweeps of tests/bench/optimizers.py.
double suitable_lr(const OptimizerChoice& choice) {
  if (choice.kind == OptimizerKind::adamw) return 4e-3;
  static const std::map<std::string_view, double> of_preset = {{"recommended", 3e-3},
                                                               {"sm3", 6e-3},
                                                               {"compact", 0.1},
                                                               {"lean", 3e-3},
                                                               {"elementwise", 1e-3}};
  const auto found = of_preset.find(choice.preset);
  return found == of_preset.end() ? 1e-3 : found->second;
}

Options defaults_of(const OptimizerChoice& choice) {
  const double lr = choice.lr.value_or(suitable_lr(choice));
  if (choice.kind == OptimizerKind::fusedbun) return preset(choice.preset, lr);
  Options adamw;
  adamw.lr = lr;
  adamw.use_rms = true;
  adamw.accumulator = Accumulator::full;
  adamw.bias_correction = true;
  adamw.beta_decay = 0.95;
  return adamw;
}

}  // namespace

Options options_of(const OptimizerChoice& choice) {
  Options options = defaults_of(choice);
  options.eps = choice.eps.value_or(options.eps);
  options.Lambda = choice.weight_decay.value_or(options.Lambda);
  options.beta_decay = choice.beta_decay.value_or(options.beta_decay);
  options.momentum_beta = choice.momentum_beta.value_or(options.momentum_beta);
  if (choice.momentum_bf16) options.momentum_dtype = MomentumDtype::bf16;
  if (choice.propagate_nonfinite) options.nonfinite = Nonfinite::propagate;
  validate(options);
  return options;
}

std::string describe(const OptimizerChoice& choice) {
  const std::string options = fusedbun::describe(options_of(choice));
  if (choice.kind == OptimizerKind::adamw) return "LibTorch's AdamW, not sharded: " + options;
  return "fusedbun " + choice.preset + ", sharded: " + options;
}

}  // namespace fusedbun::train
