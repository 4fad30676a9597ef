#include "fusedbun/launcher/train/optimizer_choice.h"

#include <map>
#include <string_view>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

/// Peak learning rates that train small models well, from the sweeps of tests/bench/optimizers.py.
double suitable_lr(const std::string& preset_name, const Options& options) {
  // SGD with momentum: the step has the gradient's size. A heavy ball adds up 1 / (1 - momentum_beta) gradients.
  if (!options.use_rms && !options.prepare_hessian)
    return options.momentum == Momentum::heavy_ball ? 0.03 : 0.3;
  static const std::map<std::string_view, double> of_preset = {
      {"recommended", 3e-3}, {"sm3", 6e-3},      {"compact", 0.1}, {"lean", 3e-3},
      {"elementwise", 1e-3}, {"fusedbun", 3e-3}, {"fusion", 1e-3}};
  return of_preset.at(preset_name);
}

Options fusedbun_options(const OptimizerChoice& choice) {
  Options options = preset(choice.preset, 0);
  options.centralize = choice.centralize.value_or(options.centralize);
  options.use_rms = choice.use_rms.value_or(options.use_rms);
  options.prepare_hessian = choice.prepare_hessian.value_or(options.prepare_hessian);
  options.mask = choice.mask.value_or(options.mask);
  options.low_precision = choice.low_precision.value_or(options.low_precision);
  options.lr = choice.lr ? *choice.lr : suitable_lr(choice.preset, options);
  return options;
}

Options adamw_options(const OptimizerChoice& choice) {
  Options adamw;
  adamw.lr = choice.lr.value_or(4e-3);
  adamw.use_rms = true;
  adamw.accumulator = Accumulator::full;
  adamw.bias_correction = true;
  adamw.beta_decay = 0.95;
  return adamw;
}

}  // namespace

Options options_of(const OptimizerChoice& choice) {
  const bool asks_for_fusedbun = choice.centralize || choice.use_rms || choice.prepare_hessian ||
                                 choice.mask || choice.low_precision;
  FUSEDBUN_REQUIRE(choice.kind == OptimizerKind::fusedbun || !asks_for_fusedbun, ConfigError,
                   "--centralize, --use-rms, --prepare-hessian, --mask and --low-precision are "
                   "Fusedbun's: leave them "
                   "out, or take --optimizer fusedbun");
  Options options =
      choice.kind == OptimizerKind::fusedbun ? fusedbun_options(choice) : adamw_options(choice);
  options.eps = choice.eps.value_or(options.eps);
  options.Lambda = choice.weight_decay.value_or(options.Lambda);
  options.beta_decay = choice.beta_decay.value_or(options.beta_decay);
  options.momentum_beta = choice.momentum_beta.value_or(options.momentum_beta);
  if (choice.momentum_bf16) options.momentum_dtype = MomentumDtype::bf16;
  if (choice.propagate_nonfinite) options.nonfinite = Nonfinite::propagate;
  validate(options);
  return options;
}

bool decays_all(const OptimizerChoice& choice) {
  return choice.decays_all || options_of(choice).Lambda == 0;
}

std::string describe(const OptimizerChoice& choice) {
  const std::string options = fusedbun::describe(options_of(choice));
  if (choice.kind == OptimizerKind::adamw) return "LibTorch's AdamW, not sharded: " + options;
  return "fusedbun " + choice.preset + ", sharded: " + options;
}

}  // namespace fusedbun::train
