// Validation, presets, names and descriptions of the options, and the scalars that a step evaluates them to.
#include "fusedbun/core/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "fusedbun/core/error.h"
#include "fusedbun/core/option_fields.h"
#include "fusedbun/core/step_scalars.h"

namespace fusedbun {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

template <class Call>
std::string config_error_of(Call&& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "no error";
}

Options valid() {
  return preset("recommended", 1e-3);
}

struct Refused {
  void (*change)(Options&);
  const char* message;
};

TEST(Options, ValuesOutOfRangeAreRefusedWithFieldValueAndRange) {
  const Refused table[] = {
      {[](Options& o) { o.lr = kNan; }, "lr = nan: must be finite and >= 0"},
      {[](Options& o) { o.lr = -1; }, "lr = -1: must be finite and >= 0"},
      {[](Options& o) { o.lr = kInf; }, "lr = inf: must be finite and >= 0"},
      {[](Options& o) { o.eps = 0; }, "eps = 0: must be finite and > 0"},
      {[](Options& o) { o.eps = kNan; }, "eps = nan: must be finite and > 0"},
      {[](Options& o) { o.Lambda = -0.5; }, "Lambda = -0.5: must be finite and >= 0"},
      {[](Options& o) { o.momentum_beta = 1; }, "momentum_beta = 1: must be in [0,1)"},
      {[](Options& o) { o.momentum_beta = kNan; }, "momentum_beta = nan: must be in [0,1)"},
      {[](Options& o) { o.beta_decay = 0; },
       "beta_decay = 0: must be finite and > 0 with decay = power"},
      {[](Options& o) { o.beta_cap = 0; }, "beta_cap = 0: must be in (0,1]"},
      {[](Options& o) { o.beta_cap = 1.5; }, "beta_cap = 1.5: must be in (0,1]"},
      {[](Options& o) { o.beta_cap = kNan; }, "beta_cap = nan: must be in (0,1]"},
      {[](Options& o) { o.decay = Decay::ema, o.beta_decay = 1; },
       "beta_decay = 1: must be in [0,1) with decay = ema"},
  };
  for (const Refused& row : table) {
    Options options = valid();
    row.change(options);
    EXPECT_EQ(config_error_of([&] { validate(options); }), row.message);
  }
}

TEST(Options, EdgesOfTheRangesAreAllowed) {
  Options options = valid();
  options.lr = 0;
  options.Lambda = 0;
  options.momentum_beta = 0;
  options.decay = Decay::ema;
  options.beta_decay = 0;
  EXPECT_NO_THROW(validate(options));
}

TEST(Options, PlainDefaultsAreThoseOfTheConstructor) {
  const Options plain;
  EXPECT_TRUE(std::isnan(plain.lr));
  EXPECT_EQ(plain.eps, 1e-8);
  EXPECT_EQ(plain.beta_decay, 0.8);
  EXPECT_EQ(plain.Lambda, 0.01);
  EXPECT_EQ(plain.momentum_beta, 0.9);
  EXPECT_FALSE(plain.centralize || plain.use_rms || plain.prepare_hessian);
}

TEST(Options, PresetsDifferFromTheDefaultsInWhatTheyAreDescribedBy) {
  EXPECT_EQ(describe(preset("recommended", 0.5)),
            "lr=0.5 use_rms=true decay=power mask=hold mask_scope=matrices beta_cap=0.999");
  EXPECT_EQ(describe(preset("sm3", 0.5)),
            "lr=0.5 beta_decay=0.99 use_rms=true accumulator=sm3 mask=hold mask_scope=matrices "
            "bias_correction=true");
  EXPECT_EQ(describe(preset("compact", 0.5)),
            "lr=0.5 momentum_beta=0 use_rms=true decay=power mask=hold mask_scope=matrices "
            "scale_by_parameter_rms=true beta_cap=0.999");
  EXPECT_EQ(describe(preset("lean", 0.5)), "lr=0.5 accumulator=mean_col denominator=global");
  EXPECT_EQ(describe(preset("elementwise", 0.5)),
            "lr=0.5 centralize=true use_rms=true accumulator=full momentum=heavy_ball "
            "momentum_at=gradient mask=hold "
            "mask_scope=matrices");
  for (const std::string& name : preset_names())
    EXPECT_NO_THROW(validate(preset(name, 1e-3))) << name;
}

TEST(Options, TheOriginalDescriptionsArePresets) {
  // Every default is the description's: nothing but the structure differs from the plain constructor.
  EXPECT_EQ(describe(preset("fusedbun", 0.5)), "lr=0.5 accumulator=mean_col denominator=global");
  EXPECT_EQ(describe(preset("fusion", 0.5)),
            "lr=0.5 accumulator=full momentum=heavy_ball momentum_at=gradient mask=hold "
            "mask_scope=matrices");
  // How the other two presets relate to them.
  EXPECT_EQ(describe(preset("lean", 0.5)), describe(preset("fusedbun", 0.5)));
  Options fusion = preset("fusion", 0.5);
  fusion.centralize = fusion.use_rms = true;
  EXPECT_EQ(describe(fusion), describe(preset("elementwise", 0.5)));
}

TEST(Options, AnUnknownPresetSuggestsTheNearest) {
  EXPECT_EQ(config_error_of([] { preset("recomended", 1e-3); }),
            "there is no preset 'recomended'; did you mean 'recommended'?");
  EXPECT_EQ(config_error_of([] { preset("sm4", 1e-3); }),
            "there is no preset 'sm4'; did you mean 'sm3'?");
}

TEST(OptionsDeathTest, AnAssertionNamesItsFileWithinTheProject) {
  // Not where it was built: nothing stands before the project's own folder.
  EXPECT_DEATH(nearest_name("sm3", {}), "our bug: .* at core/options\\.cpp:[0-9]+");
}

TEST(Options, NamesOfEnumeratorsParseBack) {
  EXPECT_EQ(name_of(Accumulator::mean_col), "mean_col");
  EXPECT_EQ(parse<Accumulator>("sm3"), Accumulator::sm3);
  EXPECT_EQ(parse<Momentum>("heavy_ball"), Momentum::heavy_ball);
  EXPECT_EQ(config_error_of([] { parse<Mask>("Hold"); }),
            "mask = 'Hold': must be one of zero, hold, off");
}

TEST(Options, TheListOfFieldsIsComplete) {
  // A field that the list forgot would make two options with different fields describe equally.
  int doubles = 0, flags = 0, enums = 0;
  Options options;
  visit_options(options, [&]<class Field>(std::string_view, Field&) {
    if constexpr (std::is_same_v<Field, double>) ++doubles;
    if constexpr (std::is_same_v<Field, bool>) ++flags;
    if constexpr (std::is_enum_v<Field>) ++enums;
  });
  EXPECT_EQ(doubles, 6);
  EXPECT_EQ(flags, 6);
  EXPECT_EQ(enums, 12);
  EXPECT_EQ(sizeof(Hyperparameters), 5 * sizeof(double) + 8);  // two flags, padded
  // Three flags, padded to the cap's double; and one flag after it.
  EXPECT_EQ(sizeof(Structure), 12 * sizeof(Accumulator) + 8 + sizeof(double) + 8);
}

TEST(StepScalars, DecayGrowsWithThePowerRule) {
  const Options options = preset("recommended", 1e-2);
  EXPECT_EQ(step_scalars(options, 1, 1).beta, 0);
  EXPECT_DOUBLE_EQ(step_scalars(options, 10, 1).beta, 1 - std::pow(10, -0.8));
}

TEST(StepScalars, TheCapIsReachedWhereThePowerRuleWouldPassItAndNotBefore) {
  // 1 - t^-0.8 = 0.999 at t = 1000^(1/0.8) = 5623.4.
  Options capped = preset("recommended", 1e-2), uncapped = capped;
  ASSERT_EQ(capped.beta_cap, 0.999);
  uncapped.beta_cap = 1;
  for (int64_t t : {1, 2, 100, 5623}) {
    EXPECT_EQ(step_scalars(capped, t, 1).beta, step_scalars(uncapped, t, 1).beta) << t;
  }
  for (int64_t t : {5624, 10'000, 100'000}) {
    EXPECT_EQ(step_scalars(capped, t, 1).beta, 0.999) << t;
    EXPECT_GT(step_scalars(uncapped, t, 1).beta, 0.999) << t;
  }
  Options ema = preset("sm3", 1e-2);
  ema.beta_cap = 0.5;
  EXPECT_EQ(step_scalars(ema, 3, 1).beta, 0.5);
  EXPECT_DOUBLE_EQ(step_scalars(ema, 3, 1).second_moment_correction, 1 - std::pow(0.5, 3));
}

TEST(StepScalars, CorrectionsAreTwoIndependentParts) {
  Options options = preset("sm3", 1e-2);
  EXPECT_DOUBLE_EQ(step_scalars(options, 3, 1).second_moment_correction, 1 - std::pow(0.99, 3));
  EXPECT_DOUBLE_EQ(step_scalars(options, 3, 1).momentum_correction, 1 - std::pow(0.9, 3));
  options.decay = Decay::power;
  EXPECT_EQ(step_scalars(options, 3, 1).second_moment_correction, 1);
  options.momentum = Momentum::heavy_ball;
  EXPECT_EQ(step_scalars(options, 3, 1).momentum_correction, 1);
  options.momentum = Momentum::ema;
  options.momentum_beta = 0;
  EXPECT_EQ(step_scalars(options, 3, 1).momentum_correction, 1);
}

TEST(StepScalars, ParameterScaleHasAFloorAndKeepsNan) {
  const Options options = preset("compact", 0.1);
  EXPECT_EQ(step_scalars(options, 1, 0).parameter_scale, 1e-3);
  EXPECT_EQ(step_scalars(options, 1, 0.5).parameter_scale, 0.5);
  EXPECT_TRUE(std::isnan(step_scalars(options, 1, kNan).parameter_scale));
  EXPECT_EQ(step_scalars(preset("recommended", 0.1), 1, 0.5).parameter_scale, 1);
  EXPECT_DOUBLE_EQ(step_scalars(options, 1, 1).keep, 1 - 0.1 * 0.01);
}

}  // namespace
}  // namespace fusedbun
