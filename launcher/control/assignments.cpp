#include "fusedbun/launcher/control/assignments.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/core/similar_name.h"
#include "fusedbun/dist/changes/change.h"

namespace fusedbun::launcher {
namespace {

using changes::Field;
using changes::FieldSpec;

std::vector<std::string> known_names() {
  std::vector<std::string> names;
  for (const FieldSpec& spec : changes::field_specs()) {
    names.emplace_back(spec.option_name);
    if (spec.name != spec.option_name) names.emplace_back(spec.name);
  }
  return names;
}

/// Names as `fusedbun train` spells them are understood too: --clip, --weight-decay.
FieldSpec find_name(const std::string& name) {
  std::string known = name == "clip" ? std::string(changes::name_of(Field::max_grad_norm)) : name;
  std::ranges::replace(known, '-', '_');
  if (const auto spec = changes::find_field(known)) return *spec;
  const std::string close = similar_name(name, known_names());
  throw UsageError(
      "'" + name + "' cannot be changed while a job runs" +
      (close.empty() ? ": 'fusedbun set --help' lists what can" : ", did you mean " + close + "?"));
}

bool read_bool(const std::string& name, const std::string& text) {
  if (text == "true" || text == "on" || text == "1") return true;
  if (text == "false" || text == "off" || text == "0") return false;
  throw UsageError(name + "=" + text + ": say true or false");
}

double read_number(const std::string& name, const std::string& text) {
  double value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  FUSEDBUN_REQUIRE(read.ec == std::errc{} && read.ptr == text.data() + text.size(), UsageError,
                   name + "=" + text + ": '" + text + "' is not a number");
  return value;
}

void assign(const std::string& name, const std::string& text,
            control::v1::HyperparameterValues& values) {
  FieldSpec spec = find_name(name);
  if (spec.field == Field::learning_rate && text == "schedule") {
    spec = *changes::find_field(changes::name_of(Field::unpin_learning_rate));
  }
  const auto* reflection = values.GetReflection();
  const auto* field = values.GetDescriptor()->FindFieldByNumber(static_cast<int>(spec.field));
  FUSEDBUN_REQUIRE(!reflection->HasField(values, field), UsageError, name + " is given twice");
  if (spec.field == Field::unpin_learning_rate && text == "schedule") {
    reflection->SetBool(&values, field, true);
  } else if (spec.is_bool) {
    reflection->SetBool(&values, field, read_bool(name, text));
  } else {
    reflection->SetDouble(&values, field, read_number(name, text));
  }
}

std::string range_of(const FieldSpec& spec) {
  if (spec.is_bool) return "true or false";
  const bool is_open = spec.max == std::numeric_limits<double>::max();
  std::string text = spec.min_exclusive ? "above 0" : "0 or more";
  if (!is_open) text += ", below " + std::to_string(static_cast<int>(spec.max));
  return text;
}

}  // namespace

control::v1::GroupPatch read_assignments(std::span<const std::string> words,
                                         const std::string& group) {
  control::v1::GroupPatch patch;
  patch.set_group(group == "all" ? "*" : group);
  for (const std::string& word : words) {
    const size_t equals = word.find('=');
    FUSEDBUN_REQUIRE(equals != word.npos && equals > 0 && equals + 1 < word.size(), UsageError,
                     "'" + word + "' is not NAME=VALUE, as in lr=3e-4");
    assign(word.substr(0, equals), word.substr(equals + 1), *patch.mutable_values());
  }
  return patch;
}

std::string assignable_names() {
  std::string text = "Names:\n";
  for (const FieldSpec& spec : changes::field_specs()) {
    if (spec.field == Field::unpin_learning_rate) continue;  // spelled lr=schedule
    std::string name(spec.option_name);
    name.resize(15, ' ');
    text += "  " + name + range_of(spec) +
            (spec.field == Field::learning_rate ? ", or schedule" : "") + ": " +
            std::string(spec.description) + (spec.per_group ? "" : " (of the job)") + "\n";
  }
  return text;
}

}  // namespace fusedbun::launcher
