#include "fusedbun/dist/changes/changes_file.h"

#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <optional>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/text_file.h"

namespace fusedbun::changes {
namespace {

/// Where in the file something stands, for complaints.
struct Place {
  std::string file;
  std::string what;  ///< "changes[2]"

  std::string at(const toml::node& node) const {
    return file + ":" + std::to_string(node.source().begin.line) + ": " + what;
  }
  [[noreturn]] void refuse(const toml::node& node, const std::string& sentence) const {
    throw ConfigError(at(node) + ": " + sentence);
  }
};

std::string read_text(const Place& place, std::string_view key, const toml::node& node) {
  const auto text = node.value_exact<std::string>();
  if (!text) place.refuse(node, std::string(key) + " is not a text in quotation marks");
  return *text;
}

int64_t read_step(const Place& place, const toml::node& node) {
  const auto step = node.value_exact<int64_t>();
  if (!step || *step < 0) place.refuse(node, "at_step is not a whole number from 0 on");
  return *step;
}

double read_value(const Place& place, const FieldSpec& spec, std::string_view key,
                  const toml::node& node) {
  std::optional<double> value;
  if (spec.is_bool) {
    if (const auto flag = node.value_exact<bool>()) value = *flag ? 1 : 0;
  } else if (const auto whole = node.value_exact<int64_t>()) {
    value = static_cast<double>(*whole);
  } else {
    value = node.value_exact<double>();
  }
  if (!value)
    place.refuse(node,
                 std::string(key) + (spec.is_bool ? " is not true or false" : " is not a number"));
  if (!allows(spec, *value))
    place.refuse(node, std::string(key) + " is out of its range: " + std::string(spec.description));
  return *value;
}

std::string read_group(const Place& place, const toml::table& table) {
  const toml::node* node = table.get("group");
  if (node == nullptr) return "*";
  const std::string group = read_text(place, "group", *node);
  return group == "all" ? "*" : group;
}

/// The hyperparameters that stand in `table`, in its order of lines.
std::vector<ValuePatch> read_patches(const Place& place, const toml::table& table,
                                     std::initializer_list<std::string_view> other_keys) {
  const std::string group = read_group(place, table);
  std::vector<std::pair<toml::source_position, ValuePatch>> found;
  for (const auto& [key, node] : table) {
    const std::string_view name = key.str();
    if (name == "group" || std::ranges::find(other_keys, name) != other_keys.end()) continue;
    const auto spec = find_field(name);
    if (!spec) place.refuse(node, "there is no hyperparameter '" + std::string(name) + "'");
    found.emplace_back(node.source().begin,
                       ValuePatch{group, spec->field, read_value(place, *spec, name, node)});
  }
  std::ranges::sort(found, {},
                    [](const auto& one) { return std::pair(one.first.line, one.first.column); });
  std::vector<ValuePatch> patches;
  for (auto& [position, patch] : found) patches.push_back(std::move(patch));
  return patches;
}

std::vector<ValuePatch> read_patch_list(const Place& place, const toml::node& list) {
  const toml::array* tables = list.as_array();
  if (tables == nullptr) place.refuse(list, "patches is not a list of tables");
  std::vector<ValuePatch> patches;
  for (const toml::node& node : *tables) {
    if (!node.is_table()) place.refuse(node, "patches is not a list of tables");
    for (ValuePatch& patch : read_patches(place, *node.as_table(), {}))
      patches.push_back(std::move(patch));
  }
  return patches;
}

ScheduledChange read_change(const Place& place, const toml::table& table) {
  ScheduledChange change{.request = {}, .where = place.at(table)};
  ChangeRequest& request = change.request;
  const toml::node* step = table.get("at_step");
  if (step == nullptr) place.refuse(table, "at_step is missing");
  request.apply_at_step = read_step(place, *step);
  if (const toml::node* reason = table.get("reason"))
    request.reason = read_text(place, "reason", *reason);
  request.patches = read_patches(place, table, {"at_step", "reason", "patches"});
  if (const toml::node* list = table.get("patches")) {
    if (!request.patches.empty() || table.get("group") != nullptr)
      place.refuse(*list, "values stand beside patches: put them into a patch of their own");
    request.patches = read_patch_list(place, *list);
  }
  if (request.patches.empty()) place.refuse(table, "it sets no hyperparameter");
  request.actor = kActorOfFile;
  request.request_id = place.what;
  return change;
}

std::string text_of(double value) {
  char digits[32];
  return std::string(digits, std::to_chars(std::begin(digits), std::end(digits), value).ptr);
}

/// A basic string of TOML.
std::string toml_text(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += std::string("\\") + c;
    } else if (byte < 0x20 || byte == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04X", byte);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string value_line(const ValuePatch& patch) {
  const auto spec = find_field(name_of(patch.field));
  FUSEDBUN_ASSERT(spec.has_value(), "a change sets hyperparameters of the table");
  return std::string(spec->option_name) + " = " +
         (spec->is_bool ? (patch.value != 0 ? "true" : "false") : text_of(patch.value));
}

std::string group_line(const ValuePatch& patch) {
  return "group = " + toml_text(patch.group == "*" ? "all" : patch.group);
}

bool has_one_group(const std::vector<ValuePatch>& patches) {
  return std::ranges::all_of(
      patches, [&](const ValuePatch& patch) { return patch.group == patches[0].group; });
}

}  // namespace

std::vector<ScheduledChange> parse_changes(std::string_view text, const std::string& name) {
  toml::table root;
  try {
    root = toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    throw UsageError(name + ":" + std::to_string(error.source().begin.line) + ": " +
                     std::string(error.description()));
  }
  for (const auto& [key, node] : root) {
    if (key != "changes")
      Place{name, std::string(key.str())}.refuse(node, "only [[changes]] are known here");
  }
  std::vector<ScheduledChange> changes;
  const toml::node* list = root.get("changes");
  if (list == nullptr) return changes;
  const toml::array* tables = list->as_array();
  if (tables == nullptr)
    Place{name, "changes"}.refuse(*list, "write [[changes]], twice in brackets");
  for (const toml::node& node : *tables) {
    const Place place{name, "changes[" + std::to_string(changes.size() + 1) + "]"};
    if (!node.is_table()) place.refuse(node, "write [[changes]], twice in brackets");
    changes.push_back(read_change(place, *node.as_table()));
  }
  return changes;
}

std::vector<ScheduledChange> read_changes_file(const std::filesystem::path& path) {
  return parse_changes(run_folder::read_text_file(path), path.string());
}

std::string changes_as_toml(const std::vector<ChangeToWrite>& changes) {
  std::string text;
  for (const ChangeToWrite& change : changes) {
    if (change.patches.empty()) continue;
    text += (text.empty() ? "[[changes]]\n" : "\n[[changes]]\n");
    text += "at_step = " + std::to_string(change.at_step) + "\n";
    if (has_one_group(change.patches)) {
      for (const ValuePatch& patch : change.patches) text += value_line(patch) + "\n";
      text += group_line(change.patches[0]) + "\n";
    } else {
      text += "patches = [\n";
      for (const ValuePatch& patch : change.patches)
        text += "  {" + group_line(patch) + ", " + value_line(patch) + "},\n";
      text += "]\n";
    }
    if (!change.reason.empty()) text += "reason = " + toml_text(change.reason) + "\n";
  }
  return text;
}

}  // namespace fusedbun::changes
