#include "user_program.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "fusedbun/core/error.h"
#include "local_ranks.h"

namespace fusedbun::testing {

using ::testing::AnyOf;
using ::testing::HasSubstr;

// A program that goes wrong must not keep its test for a minute.
constexpr std::chrono::seconds kTimeout{10};

std::vector<Setting> all_settings() {
  std::vector<Setting> settings;
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (const int world_size : {1, 2, 3}) {
      settings.push_back({world_size, false, type});
      if (world_size > 1) settings.push_back({world_size, true, type});
    }
  }
  return settings;
}

std::vector<Setting> settings_where(bool (*holds)(const Setting&)) {
  std::vector<Setting> settings = all_settings();
  std::erase_if(settings, [&](const Setting& setting) { return !holds(setting); });
  return settings;
}

std::vector<Setting> settings_of_several_ranks() {
  return settings_where([](const Setting& setting) { return setting.world_size > 1; });
}

std::string name_of_setting(const ::testing::TestParamInfo<Setting>& info) {
  const Setting& setting = info.param;
  return (setting.host_window ? "Window" : "Messages") + std::to_string(setting.world_size) +
         (setting.world_size == 1 ? "Rank" : "Ranks") + c10::toString(setting.type);
}

Model::Model(at::ScalarType type, double start) {
  const auto full = [&](at::IntArrayRef shape) { return at::full(shape, start, type); };
  small = register_parameter("small", full({8, 8}));
  large = register_parameter("large", full({256, 256}));
}

void Model::backward(double gradient) const {
  ((small * gradient).sum() + (large * gradient).sum()).backward();
}

void Model::expect_values(double value, const std::string& when) const {
  testing::expect_values(small, value, "small " + when);
  testing::expect_values(large, value, "large " + when);
}

void expect_values(const at::Tensor& tensor, double value, const std::string& when) {
  const at::Tensor values = tensor.detach().to(at::kDouble);
  const double error = (values - value).abs().max().item<double>();
  // One rounding of the type; a wrong divisor or a lost gradient is far above it.
  const double unit = tensor.scalar_type() == at::kBFloat16 ? 0x1p-8 : 1e-6;
  EXPECT_LE(error, unit * std::max(1.0, std::abs(value)))
      << when << ": from " << values.min().item<double>() << " to " << values.max().item<double>()
      << ", not " << value;
}

ShardedOptions Rank::options() const {
  return {.min_rows_per_rank = 1, .bucket_bytes = 4096, .host_window = setting_.host_window};
}

FusedbunOptions plain_sgd(double lr) {
  return FusedbunOptions(lr).momentum_beta(0).Lambda(0).mask(Mask::off);
}

void expect_refused(const std::function<void()>& action,
                    const ::testing::Matcher<const std::string&>& text, const std::string& when) {
  try {
    action();
  } catch (const ConfigError& error) {
    EXPECT_THAT(std::string(error.what()), text) << when;
    return;
  }
  throw std::logic_error("a rank did not refuse it " + when);
}

::testing::Matcher<const std::string&> names_a_parameter() {
  return AnyOf(HasSubstr("'small'"), HasSubstr("'large'"));
}

void UserProgram::on_ranks(const std::function<void(Rank&)>& program) {
  const Setting& setting = GetParam();
  run_ranks(
      setting.world_size,
      [&](comm::Communicator& communicator) {
        Rank rank(communicator, setting);
        program(rank);
      },
      kTimeout);
}

}  // namespace fusedbun::testing
