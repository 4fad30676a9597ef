// A fuzz case as C++, and what it is made of.
#include <array>
#include <bit>
#include <set>
#include <sstream>

#include "fusedbun/dist/plan/shard_plan.h"
#include "fusedbun/tests/dist/step/layout_fuzz_case.h"

namespace fusedbun::testing {
namespace {

constexpr std::array<const char*, 3> kLayouts = {"contiguous", "transposed", "every_second"};
constexpr std::array<const char*, 2> kWorlds = {"local", "gloo"};
constexpr std::array<const char*, 4> kTypes = {"f32", "f64", "bf16", "f16"};
constexpr std::array<const char*, 3> kReleases = {"in_hook", "after_step", "never"};
constexpr std::array<const char*, 4> kTransports = {"automatic", "collective", "point_to_point",
                                                    "shared_memory"};
constexpr std::array<const char*, 15> kActs = {
    "pass",           "begin_guard", "end_guard",  "zero_grad",  "set_grad",
    "drop_grad",      "scale_grad",  "write_sent", "collective", "write",
    "write_directly", "set_data",    "set_lr",     "unfreeze",   "save_and_load"};

template <class Names, class Enum>
std::string name_in(const Names& names, Enum value) {
  return names.at(static_cast<size_t>(value));
}

/// ".shape = {3, 4}, .frozen = true" of what differs from the default.
class Fields {
 public:
  template <class T>
  Fields& add(const char* name, const T& value, const T& by_default) {
    if (value != by_default) put(name, text_of(value));
    return *this;
  }
  template <class Names, class Enum>
  Fields& add(const char* name, const Names& names, const char* prefix, Enum value,
              Enum by_default) {
    if (value != by_default) put(name, prefix + name_in(names, value));
    return *this;
  }
  void put(const char* name, const std::string& value) {
    text_ += (text_.empty() ? "." : ", .") + std::string(name) + " = " + value;
  }
  std::string text() const { return "{" + text_ + "}"; }

 private:
  static std::string text_of(bool value) { return value ? "true" : "false"; }
  static std::string text_of(const std::string& value) { return "\"" + value + "\""; }
  static std::string text_of(uint32_t value) {
    return value == ~0u ? "~0u" : std::to_string(value) + "u";
  }
  template <class T>
  static std::string text_of(const T& value) {
    std::ostringstream text;
    text.precision(17);
    text << value;
    return text.str();
  }

  std::string text_;
};

std::string text_of(const FuzzParameter& p) {
  std::string shape;
  for (const int64_t size : p.shape) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
  Fields fields;
  fields.add("id", p.id, 0);
  fields.put("shape", "{" + shape + "}");
  return fields.add("type", kTypes, "ElementType::", p.type, ElementType::f32)
      .add("layout", kLayouts, "Layout::", p.layout, Layout::contiguous)
      .add("group", p.group, 0)
      .add("frozen", p.frozen, false)
      .add("tied", p.tied, false)
      .text();
}

std::string text_of(const FuzzGroup& g) {
  const FuzzGroup plain;
  Fields fields;
  fields.add("preset", g.preset, plain.preset).add("lr", g.lr, plain.lr);
  if (g.matrix_view != plain.matrix_view) fields.put("matrix_view", "MatrixView::last_two");
  if (g.nonfinite != plain.nonfinite) fields.put("nonfinite", "Nonfinite::propagate");
  return fields.add("centralize", g.centralize, false)
      .add("bf16_momentum", g.bf16_momentum, false)
      .add("prepare_hessian", g.prepare_hessian, false)
      .add("joins_at", g.joins_at, 0)
      .text();
}

std::string text_of(const FuzzAction& a) {
  const FuzzAction plain;
  return Fields()
      .add("act", kActs, "Act::", a.act, plain.act)
      .add("ranks", a.ranks, plain.ranks)
      .add("parameters", a.parameters, plain.parameters)
      .add("value", a.value, plain.value)
      .add("odd_rank", a.odd_rank, plain.odd_rank)
      .add("unused", a.unused, plain.unused)
      .add("poisoned_rank", a.poisoned_rank, plain.poisoned_rank)
      .text();
}

std::string text_of(const FuzzStep& step);
std::string text_of(const FuzzChange& change);

template <class List>
std::string list_of(const List& list, const char* between) {
  std::string text;
  for (const auto& item : list) text += (text.empty() ? "" : between) + text_of(item);
  return text;
}

std::string text_of(const FuzzStep& step) {
  Fields fields;
  fields.put("idiom", "Idiom::" + idiom_names()[static_cast<size_t>(step.idiom)]);
  fields.put("actions", "{" + list_of(step.actions, ", ") + "}");
  return fields.add("loss_scale", step.loss_scale, 1.0).text();
}

std::string text_of(const FuzzChange& change) {
  Fields fields;
  fields.add("announced", change.announced, int64_t{0})
      .add("effective", change.effective, int64_t{2});
  fields.put("field", "changes::Field(" + std::to_string(static_cast<int>(change.field)) + ")");
  return fields.add("group", change.group, -1).add("value", change.value, 1.0).text();
}

}  // namespace

std::string to_cpp(const FuzzCase& c) {
  const FuzzCase plain;
  std::ostringstream text;
  text << "FuzzCase c{.seed = " << c.seed << "u, .ranks = " << c.ranks << "};\n";
  const auto line = [&](const char* name, const auto& value, const auto& by_default) {
    if (value != by_default) text << "c." << name << " = " << value << ";\n";
  };
  text << std::boolalpha;
  if (c.world != plain.world) text << "c.world = FuzzWorld::" << name_in(kWorlds, c.world) << ";\n";
  if (c.transport != plain.transport) {
    text << "c.transport = plan::GradientTransport::" << name_in(kTransports, c.transport) << ";\n";
  }
  line("host_window", c.host_window, plain.host_window);
  line("min_rows_per_rank", c.min_rows_per_rank, plain.min_rows_per_rank);
  line("bucket_bytes", c.bucket_bytes, plain.bucket_bytes);
  line("in_place_bytes", c.in_place_bytes, plain.in_place_bytes);
  line("wire_bf16", c.wire_bf16, plain.wire_bf16);
  line("updates_bf16", c.updates_bf16, plain.updates_bf16);
  line("max_grad_norm", c.max_grad_norm, plain.max_grad_norm);
  line("divisor", c.divisor, plain.divisor);
  line("step_in_backward", c.step_in_backward, plain.step_in_backward);
  if (c.release != plain.release) {
    text << "c.release = GradientRelease::" << name_in(kReleases, c.release) << ";\n";
  }
  line("different_starts", c.different_starts, plain.different_starts);
  text << "c.groups = {" << list_of(c.groups, ",\n            ") << "};\n";
  text << "c.parameters = {" << list_of(c.parameters, ",\n                ") << "};\n";
  text << "c.steps = {" << list_of(c.steps, ",\n           ") << "};\n";
  if (!c.changes.empty()) text << "c.changes = {" << list_of(c.changes, ", ") << "};\n";
  return text.str();
}

namespace {

bool is_spread(const FuzzCase& c, const FuzzParameter& p) {
  const FuzzGroup& group = c.groups[static_cast<size_t>(p.group)];
  const plan::ShardPlan plan = plan::make_plan(
      std::vector<plan::ParameterSpec>{
          {.name = "p", .shape = p.shape, .type = p.type, .matrix_view = group.matrix_view}},
      {.world_size = c.ranks,
       .min_rows_per_rank = c.min_rows_per_rank,
       .bucket_bytes = c.bucket_bytes});
  return plan.buckets_of[0].size() > 1;
}

void name_features_of_model(const FuzzCase& c, std::set<std::string>& names) {
  for (const FuzzParameter& p : c.parameters) {
    names.insert("type " + name_in(kTypes, p.type));
    names.insert("layout " + name_in(kLayouts, p.layout));
    if (p.frozen) names.insert("frozen");
    if (p.tied) names.insert("tied");
    if (p.shape.empty()) names.insert("scalar");
    if (p.shape.size() == 4) names.insert("4-D");
    if (!p.shape.empty() && p.shape[0] == 0) names.insert("empty");
    if (p.shape.size() == 2 && p.shape[0] == 1) names.insert("1xN");
    if (p.shape.size() == 2 && p.shape[1] == 1) names.insert("Nx1");
    const FuzzGroup& group = c.groups[static_cast<size_t>(p.group)];
    if (p.shape.size() > 2 && group.matrix_view == MatrixView::last_two) names.insert("stacked");
    if (is_spread(c, p)) names.insert("spread over buckets");
    if (group.joins_at > 0) names.insert("late group");
    names.insert("preset " + group.preset);
    if (group.prepare_hessian) names.insert("prepare_hessian");
  }
  if (c.groups.size() > 1) names.insert("several groups");
}

void name_features_of_sharding(const FuzzCase& c, std::set<std::string>& names) {
  names.insert("ranks " + std::to_string(c.ranks));
  names.insert("world " + name_in(kWorlds, c.world));
  names.insert("transport " + name_in(kTransports, c.transport));
  names.insert("release " + name_in(kReleases, c.release));
  if (c.transport == plan::GradientTransport::automatic && c.host_window && c.ranks > 1) {
    names.insert("host window");
  }
  if (c.wire_bf16) names.insert("wire bf16");
  if (c.updates_bf16) names.insert("updates bf16");
  if (c.max_grad_norm > 0) names.insert("clip");
  if (c.divisor > 0) names.insert("user's divisor");
  if (c.step_in_backward) names.insert("step_in_backward");
}

void name_features_of_steps(const FuzzCase& c, std::set<std::string>& names) {
  for (const FuzzStep& step : c.steps) {
    if (step.loss_scale != 1) names.insert("loss scale");
    for (const FuzzAction& action : step.actions) {
      if (action.act >= Act::collective) names.insert("act " + name_in(kActs, action.act));
      if (action.unused != 0) names.insert("unused on one rank");
      if (action.act == Act::pass && action.parameters != ~0u) names.insert("unused everywhere");
      if (action.poisoned_rank >= 0) names.insert("NaN on one rank");
    }
  }
  if (!c.changes.empty()) names.insert("changes");
}

}  // namespace

void count_features(const FuzzCase& c, std::map<std::string, int64_t>& counts) {
  std::set<std::string> names;
  name_features_of_model(c, names);
  name_features_of_sharding(c, names);
  name_features_of_steps(c, names);
  for (const std::string& name : names) ++counts[name];
  for (const FuzzStep& step : c.steps) {
    ++counts["idiom " + idiom_names()[static_cast<size_t>(step.idiom)]];
  }
}

std::vector<std::string> wanted_features() {
  std::vector<std::string> names = {"type f32",
                                    "type f64",
                                    "type bf16",
                                    "frozen",
                                    "tied",
                                    "scalar",
                                    "4-D",
                                    "empty",
                                    "1xN",
                                    "Nx1",
                                    "stacked",
                                    "late group",
                                    "prepare_hessian",
                                    "several groups",
                                    "host window",
                                    "spread over buckets",
                                    "wire bf16",
                                    "updates bf16",
                                    "clip",
                                    "user's divisor",
                                    "step_in_backward",
                                    "loss scale",
                                    "unused on one rank",
                                    "unused everywhere",
                                    "NaN on one rank",
                                    "changes"};
  for (const std::string& name : idiom_names()) names.push_back("idiom " + name);
  for (const std::string& name : preset_names()) names.push_back("preset " + name);
  for (const char* name : kLayouts) names.push_back("layout " + std::string(name));
  for (const char* name : kReleases) names.push_back("release " + std::string(name));
  for (size_t act = static_cast<size_t>(Act::collective); act < kActs.size(); ++act) {
    names.push_back("act " + std::string(kActs[act]));
  }
  for (int ranks = 1; ranks <= 8; ++ranks) names.push_back("ranks " + std::to_string(ranks));
  return names;
}

}  // namespace fusedbun::testing
