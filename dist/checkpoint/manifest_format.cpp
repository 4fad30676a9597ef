#include <cmath>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "fusedbun/core/error.h"
#include "fusedbun/core/option_fields.h"
#include "fusedbun/dist/checkpoint/manifest.h"
#include "fusedbun/dist/checkpoint/manifest_words.h"
#include "fusedbun/dist/plan/hex.h"
#include "fusedbun/dist/plan/parameter_spec.h"

namespace fusedbun::checkpoint {
namespace {

using OrderedJson = nlohmann::ordered_json;  // fields in the order in which they are given

/// JSON has no words for NaN and inf.
double finite(double value, const std::string& what) {
  FUSEDBUN_REQUIRE(
      std::isfinite(value), ConfigError,
      what + " = " + std::to_string(value) + " cannot be saved: a finite number is expected");
  return value;
}

OrderedJson finite_or_null(const std::optional<double>& value, const std::string& what) {
  return value ? OrderedJson(finite(*value, what)) : OrderedJson();
}

std::string one_line(const OrderedJson& json, const std::string& what) {
  try {
    return json.dump();
  } catch (const OrderedJson::type_error&) {
    throw ConfigError(what + " cannot be saved: it holds bytes that are not UTF-8 text");
  }
}

OrderedJson json_of(const Options& options, const std::string& what) {
  OrderedJson json = OrderedJson::object();
  visit_options(options, [&](const char* name, const auto& field) {
    using Field = std::decay_t<decltype(field)>;
    if constexpr (std::is_enum_v<Field>) {
      json[name] = name_of(field);
    } else if constexpr (std::is_same_v<Field, double>) {
      json[name] = finite(field, what + ": " + name);
    } else {
      json[name] = field;
    }
  });
  return json;
}

OrderedJson json_of(const StoredParameter& parameter) {
  return {{"name", parameter.name},
          {"shape", parameter.shape},
          {"type", plan::name_of(parameter.type)},
          {"group", parameter.group},
          {"matrix_view", name_of(parameter.matrix_view)},
          {"transposed", parameter.transposed}};
}

OrderedJson json_of(const changes::ChangeEntry& change) {
  return {
      {"revision", change.revision},
      {"effective_step", change.effective_step},
      {"field", changes::name_of(change.field)},
      {"group", change.group},
      {"value", finite(change.value, "the change of revision " + std::to_string(change.revision))}};
}

OrderedJson json_of(const LossScaleState& state) {
  return {{"scale", finite(state.scale, "the loss scale")},
          {"good_steps", state.good_steps},
          {"skipped_in_a_row", state.skipped_in_a_row}};
}

OrderedJson json_of(const StoredPart& part) {
  return {{"name", part.name},
          {"dtype", name_of(part.dtype)},
          {"shape", part.shape},
          {"offsets", part.offsets},
          {kDigestField, to_hex(part.digest)}};
}

/// The manifest's text: a line for each thing that there are many of.
class Lines {
 public:
  void field(std::string_view name, const OrderedJson& value) {
    begin_field(name);
    text_ += one_line(value, std::string(name));
  }
  void begin_field(std::string_view name) {
    text_ += text_.empty() ? "{\n  " : ",\n  ";
    text_ += OrderedJson(name).dump() + ": ";
  }
  /// `line_of` makes the line of one of `items`.
  template <class Items, class LineOf>
  void list(std::string_view name, const Items& items, LineOf line_of,
            std::string_view brackets = "[]") {
    begin_field(name);
    add_list(items, line_of, brackets, "  ");
  }
  template <class Items, class LineOf>
  void add_list(const Items& items, LineOf line_of, std::string_view brackets,
                std::string_view indent) {
    text_ += brackets[0];
    bool first = true;
    for (const auto& item : items) {
      text_ += first ? "\n" : ",\n";
      text_ += std::string(indent) + "  ";
      first = false;
      line_of(item);
    }
    if (!first) text_ += "\n" + std::string(indent);
    text_ += brackets[1];
  }
  void add(std::string_view text) { text_ += text; }
  std::string& text() { return text_; }

 private:
  std::string text_;
};

void add_file(Lines& lines, const StoredFile& file) {
  const OrderedJson facts = {
      {"path", file.path}, {"bytes", file.bytes}, {"header", to_hex(file.header)}};
  std::string start = one_line(facts, file.path);
  start.pop_back();  // its closing brace comes after the parts
  lines.add(start + ",\"parts\":");
  lines.add_list(
      file.parts,
      [&](const StoredPart& part) {
        lines.add(one_line(json_of(part), "the name of a tensor in " + file.path));
      },
      "[]", "    ");
  lines.add("}");
}

}  // namespace

std::string format_manifest(const Manifest& manifest) {
  Lines lines;
  lines.field("format", kManifestFormat);
  lines.field("version", kManifestVersion);
  lines.field("job_step", manifest.job_step);
  lines.field("skipped_steps", manifest.skipped_steps);
  const bool is_known = std::isfinite(manifest.gradient_norm) && manifest.gradient_norm > 0;
  if (is_known) lines.field("gradient_norm", manifest.gradient_norm);
  if (manifest.loss_scale) lines.field("loss_scale", json_of(*manifest.loss_scale));
  lines.field("world_size", manifest.world_size);
  lines.field("written", manifest.written);
  lines.field("program_version", manifest.version);
  lines.list("parameters", manifest.parameters, [&](const StoredParameter& parameter) {
    lines.add(one_line(json_of(parameter), "the name of a parameter"));
  });
  int group_number = 0;
  lines.list("groups", manifest.groups, [&](const StoredGroup& group) {
    const std::string what = "group " + std::to_string(group_number++);
    const OrderedJson json = {{"options", json_of(group.options, what)},
                              {"lr_pin", finite_or_null(group.lr_pin, what + ": its pinned lr")}};
    lines.add(json.dump());
  });
  lines.field("max_grad_norm", finite_or_null(manifest.max_grad_norm, "max_grad_norm"));
  lines.field("lr_scale", finite(manifest.lr_scale, "lr_scale"));
  lines.field("active_revision", manifest.active_revision);
  lines.field("known_revision", manifest.known_revision);
  lines.field("chain_hash", plan::to_hex(manifest.chain_hash));
  lines.list("scheduled", manifest.scheduled,
             [&](const changes::ChangeEntry& change) { lines.add(json_of(change).dump()); });
  lines.list(
      "values", manifest.values,
      [&](const auto& value) {
        const std::string what = "the value '" + value.first + "' of the program";
        lines.add(one_line(value.first, what) + ": " + one_line(value.second, what));
      },
      "{}");
  lines.list("files", manifest.files, [&](const StoredFile& file) { add_file(lines, file); });
  std::string& text = lines.text();
  const std::string digest = to_hex(digest_of(std::as_bytes(std::span(text))));
  text += std::string(kBeforeDigest) + digest + std::string(kAfterDigest);
  return std::move(text);
}

}  // namespace fusedbun::checkpoint
