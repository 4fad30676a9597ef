#include "fusedbun/core/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <span>
#include <type_traits>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/core/option_fields.h"
#include "fusedbun/core/similar_name.h"

namespace fusedbun {
namespace {

template <class Enum>
using Named = std::pair<Enum, std::string_view>;

// The spelling of every enumerator; `kind` is what a message calls the option.
template <class Enum>
struct Names;

#define FUSEDBUN_NAMES(Enum, option, ...)                \
  template <>                                            \
  struct Names<Enum> {                                   \
    static constexpr std::string_view kind = option;     \
    static constexpr Named<Enum> list[] = {__VA_ARGS__}; \
  };
FUSEDBUN_NAMES(Accumulator, "accumulator", {Accumulator::mean, "mean"},
               {Accumulator::mean_col, "mean_col"}, {Accumulator::sm3, "sm3"},
               {Accumulator::full, "full"})
FUSEDBUN_NAMES(Denominator, "denominator", {Denominator::local, "local"},
               {Denominator::global, "global"})
FUSEDBUN_NAMES(Decay, "decay", {Decay::ema, "ema"}, {Decay::power, "power"})
FUSEDBUN_NAMES(Momentum, "momentum", {Momentum::ema, "ema"}, {Momentum::heavy_ball, "heavy_ball"})
FUSEDBUN_NAMES(MomentumAt, "momentum_at", {MomentumAt::update, "update"},
               {MomentumAt::gradient, "gradient"})
FUSEDBUN_NAMES(Mask, "mask", {Mask::zero, "zero"}, {Mask::hold, "hold"}, {Mask::off, "off"})
FUSEDBUN_NAMES(MaskScope, "mask_scope", {MaskScope::all, "all"}, {MaskScope::matrices, "matrices"})
FUSEDBUN_NAMES(HessianSource, "hessian_source", {HessianSource::same, "same"},
               {HessianSource::raw, "raw"}, {HessianSource::external, "external"})
FUSEDBUN_NAMES(MomentumDtype, "momentum_dtype", {MomentumDtype::master, "master"},
               {MomentumDtype::bf16, "bf16"})
FUSEDBUN_NAMES(MatrixView, "matrix_view", {MatrixView::leading, "leading"},
               {MatrixView::last_two, "last_two"})
FUSEDBUN_NAMES(LowPrecision, "low_precision", {LowPrecision::master, "master"},
               {LowPrecision::remainder, "remainder"}, {LowPrecision::stochastic, "stochastic"})
FUSEDBUN_NAMES(Nonfinite, "nonfinite", {Nonfinite::skip, "skip"},
               {Nonfinite::propagate, "propagate"})
#undef FUSEDBUN_NAMES

std::string text_of(double value) {
  char buffer[32];
  const auto result = std::to_chars(std::begin(buffer), std::end(buffer), value);
  return std::string(buffer, result.ptr);
}
std::string text_of(bool value) {
  return value ? "true" : "false";
}
template <class Enum>
requires std::is_enum_v<Enum> std::string text_of(Enum value) {
  return std::string(name_of(value));
}

void require_range(bool holds, std::string_view field, double value, std::string_view range) {
  FUSEDBUN_REQUIRE(holds, ConfigError,
                   std::string(field) + " = " + text_of(value) + ": must be " + std::string(range));
}

}  // namespace

void validate(const Options& options) {
  const auto finite = [](double x) { return std::isfinite(x); };
  require_range(finite(options.lr) && options.lr >= 0, "lr", options.lr, "finite and >= 0");
  require_range(finite(options.eps) && options.eps > 0, "eps", options.eps, "finite and > 0");
  if (options.decay == Decay::ema) {
    require_range(options.beta_decay >= 0 && options.beta_decay < 1, "beta_decay",
                  options.beta_decay, "in [0,1) with decay = ema");
  } else {
    require_range(finite(options.beta_decay) && options.beta_decay > 0, "beta_decay",
                  options.beta_decay, "finite and > 0 with decay = power");
  }
  require_range(finite(options.Lambda) && options.Lambda >= 0, "Lambda", options.Lambda,
                "finite and >= 0");
  require_range(options.momentum_beta >= 0 && options.momentum_beta < 1, "momentum_beta",
                options.momentum_beta, "in [0,1)");
  require_range(options.beta_cap > 0 && options.beta_cap <= 1, "beta_cap", options.beta_cap,
                "in (0,1]");
}

const std::vector<std::string>& preset_names() {
  static const std::vector<std::string> names = {"recommended", "sm3",      "compact", "lean",
                                                 "elementwise", "fusedbun", "fusion"};
  return names;
}

Options preset(std::string_view name, double lr) {
  Options options;
  options.lr = lr;
  options.use_rms = true;
  if (name == "recommended" || name == "sm3" || name == "compact") {
    options.decay = Decay::power;
    options.beta_cap = 0.999;
    options.mask = Mask::hold;
    options.mask_scope = MaskScope::matrices;
    if (name == "sm3") {
      options.accumulator = Accumulator::sm3;
      options.decay = Decay::ema;
      options.beta_decay = 0.99;
      options.beta_cap = 1;  // beta_t is 0.99 at every t
      options.bias_correction = true;
    } else if (name == "compact") {
      options.momentum_beta = 0;
      options.scale_by_parameter_rms = true;
    }
  } else if (name == "lean" || name == "fusedbun") {
    options.use_rms = false;  // the caller's to choose, as centralize is
    options.accumulator = Accumulator::mean_col;
    options.denominator = Denominator::global;
  } else if (name == "elementwise" || name == "fusion") {
    options.centralize = options.use_rms = name == "elementwise";
    options.accumulator = Accumulator::full;
    options.momentum = Momentum::heavy_ball;
    options.momentum_at = MomentumAt::gradient;
    options.mask = Mask::hold;
    options.mask_scope = MaskScope::matrices;
  } else {
    throw ConfigError("there is no preset '" + std::string(name) + "'; did you mean '" +
                      nearest_name(name, preset_names()) + "'?");
  }
  return options;
}

std::string nearest_name(std::string_view name, std::span<const std::string> allowed) {
  FUSEDBUN_ASSERT(!allowed.empty(), "a nearest name needs names to choose from");
  return *std::min_element(allowed.begin(), allowed.end(), [&](const auto& a, const auto& b) {
    return edits_between(name, a) < edits_between(name, b);
  });
}

std::string describe(const Options& options) {
  const Options plain;
  std::vector<std::string> defaults;
  visit_options(plain, [&](std::string_view, auto& field) { defaults.push_back(text_of(field)); });
  std::string line;
  size_t index = 0;
  visit_options(options, [&](std::string_view name, auto& field) {
    const std::string text = text_of(field);
    if (text != defaults[index++]) {
      line += (line.empty() ? "" : " ") + std::string(name) + "=" + text;
    }
  });
  return line;
}

std::string structural_difference(const Options& saved, const Options& here) {
  std::string differences;
  const auto add = [&](std::string_view name, const std::string& before, const std::string& now) {
    if (before == now) return;
    differences += (differences.empty() ? "" : ", ") + std::string(name);
    differences.append(" (").append(before).append(", here ").append(now).append(")");
  };
  std::vector<std::string> texts;
  visit_structure(saved, [&](std::string_view, auto& field) { texts.push_back(text_of(field)); });
  size_t index = 0;
  visit_structure(
      here, [&](std::string_view name, auto& field) { add(name, texts[index++], text_of(field)); });
  add("momentum_beta > 0", text_of(saved.momentum_beta > 0), text_of(here.momentum_beta > 0));
  return differences;
}

template <class Enum>
std::string_view name_of(Enum value) {
  for (const auto& [enumerator, name] : Names<Enum>::list) {
    if (enumerator == value) return name;
  }
  FUSEDBUN_ASSERT(false, "an enumerator of " + std::string(Names<Enum>::kind) + " has no name");
}

template <class Enum>
Enum parse(std::string_view name) {
  std::string allowed;
  for (const auto& [enumerator, known] : Names<Enum>::list) {
    if (known == name) return enumerator;
    allowed += (allowed.empty() ? "" : ", ") + std::string(known);
  }
  throw ConfigError(std::string(Names<Enum>::kind) + " = '" + std::string(name) +
                    "': must be one of " + allowed);
}

#define FUSEDBUN_INSTANTIATE(Enum)               \
  template std::string_view name_of<Enum>(Enum); \
  template Enum parse<Enum>(std::string_view);
FUSEDBUN_INSTANTIATE(Accumulator)
FUSEDBUN_INSTANTIATE(Denominator)
FUSEDBUN_INSTANTIATE(Decay)
FUSEDBUN_INSTANTIATE(Momentum)
FUSEDBUN_INSTANTIATE(MomentumAt)
FUSEDBUN_INSTANTIATE(Mask)
FUSEDBUN_INSTANTIATE(MaskScope)
FUSEDBUN_INSTANTIATE(HessianSource)
FUSEDBUN_INSTANTIATE(MomentumDtype)
FUSEDBUN_INSTANTIATE(MatrixView)
FUSEDBUN_INSTANTIATE(LowPrecision)
FUSEDBUN_INSTANTIATE(Nonfinite)
#undef FUSEDBUN_INSTANTIATE

}  // namespace fusedbun
