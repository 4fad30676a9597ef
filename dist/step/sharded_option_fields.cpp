#include "fusedbun/dist/step/sharded_option_fields.h"

#include <charconv>
#include <iterator>
#include <optional>
#include <type_traits>

#include "fusedbun/core/error.h"

namespace fusedbun {
namespace {

std::string text_of(bool value) {
  return value ? "true" : "false";
}
std::string text_of(int64_t value) {
  return std::to_string(value);
}
std::string text_of(double value) {
  char buffer[32];
  return {buffer, std::to_chars(std::begin(buffer), std::end(buffer), value).ptr};
}
std::string text_of(const std::optional<double>& value) {
  return value ? text_of(*value) : "by default";
}
std::string text_of(const std::optional<LossScaleRules>& rules) {
  if (!rules) return "none";
  return text_of(double{rules->initial}) + ", times " + text_of(double{rules->growth}) + " after " +
         text_of(rules->growth_interval) + " good steps, times " + text_of(double{rules->backoff}) +
         " after a skipped one, at least " + text_of(double{rules->minimum});
}
std::string text_of(GradientWire wire) {
  return wire == GradientWire::bf16 ? "bf16" : "exact";
}
std::string text_of(UpdateWire wire) {
  return wire == UpdateWire::bf16 ? "bf16" : "exact";
}
std::string text_of(plan::GradientTransport transport) {
  return std::string(plan::name_of(transport));
}
std::string text_of(GradientRelease release) {
  switch (release) {
    case GradientRelease::in_hook:
      return "in_hook";
    case GradientRelease::after_step:
      return "after_step";
    case GradientRelease::never:
      return "never";
  }
  FUSEDBUN_ASSERT(false, "every way to release gradients has a name");
}

/// A pointer would turn into a bool.
template <class Field>
constexpr bool kHasText = !std::is_pointer_v<Field> && requires(const Field& field) {
  text_of(field);
};

}  // namespace

std::vector<std::string> describe_for_start(const ShardedOptions& options) {
  std::vector<std::string> lines;
  visit_sharded_options(options,
                        [&]<class Field>(const char* name, const Field& field, FieldScope scope) {
                          if (scope == FieldScope::rank) return;
                          if constexpr (kHasText<Field>) {
                            lines.push_back(std::string(name) + " = " + text_of(field));
                          } else {
                            FUSEDBUN_ASSERT(false, "a field that ranks compare has a text");
                          }
                        });
  return lines;
}

}  // namespace fusedbun
