#include "fusedbun/dist/step/loss_scaler.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>

#include <algorithm>
#include <cmath>

#include "fusedbun/core/error.h"

namespace fusedbun {

LossScaler::LossScaler(const std::optional<LossScaleRules>& rules, StepsUnderWay* steps,
                       at::Device device)
    : rules_(rules), steps_(steps), device_(device) {
  if (!rules_) return;
  state_.scale = rules_->initial;
  scale_ = steps_ != nullptr ? steps_->loss_scale() : at::empty({}, at::kFloat);
  write();
}

at::Tensor LossScaler::scaled(const at::Tensor& loss) {
  if (!rules_) return loss;
  FUSEDBUN_REQUIRE(loss.defined() && at::isFloatingType(loss.scalar_type()), ConfigError,
                   "scale_loss() was given no loss: it takes a tensor of floating-point numbers");
  has_scaled_ = true;
  return loss * scale_;
}

std::string LossScaler::problem(const std::vector<Options>& groups, bool has_gradients) const {
  if (!rules_) return {};
  const bool all_skip = std::ranges::all_of(
      groups, [](const Options& group) { return group.nonfinite == Nonfinite::skip; });
  if (!all_skip)
    return "dynamic_loss_scale lives on steps that are skipped: it needs nonfinite = skip in every "
           "parameter group";
  if (has_gradients && !has_scaled_)
    return "dynamic_loss_scale is set, but no loss was given to scale_loss() since the last step: "
           "write optimizer.scale_loss(loss).backward()";
  return {};
}

void LossScaler::decide(bool skipped) {
  if (!rules_) return;
  state_ = after_step(*rules_, state_, skipped);
  write();
}

void LossScaler::restore(const LossScaleState& state) {
  if (!rules_) return;
  state_ = state;
  write();
}

// Not by an operation of LibTorch's: graphs that hold the tensor would refuse their backward pass.
void LossScaler::write() {
  if (steps_ != nullptr)
    return steps_->set_loss_scale(state_, device_api_of(device_).current_stream());
  *static_cast<float*>(scale_.data_ptr()) = state_.scale;
}

void validate(const LossScaleRules& rules) {
  const auto require = [](bool is_good, const char* name, double value, const char* is) {
    FUSEDBUN_REQUIRE(is_good, ConfigError,
                     "dynamic_loss_scale." + std::string(name) + " = " + std::to_string(value) +
                         ": it is " + is);
  };
  require(rules.minimum > 0 && std::isfinite(rules.minimum), "minimum", rules.minimum,
          "a number above 0");
  require(rules.initial >= rules.minimum && std::isfinite(rules.initial), "initial", rules.initial,
          "a number, and at least the minimum");
  require(rules.growth > 1 && std::isfinite(rules.growth), "growth", rules.growth,
          "a number above 1");
  require(rules.backoff > 0 && rules.backoff < 1, "backoff", rules.backoff, "above 0 and below 1");
  require(rules.growth_interval >= 1, "growth_interval", static_cast<double>(rules.growth_interval),
          "at least 1");
}

}  // namespace fusedbun
