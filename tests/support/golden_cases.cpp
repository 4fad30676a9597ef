#include "fusedbun/tests/support/golden_cases.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "fusedbun/core/error.h"
#include "fusedbun/core/fusedbun.h"
#include "fusedbun/core/option_fields.h"

namespace fusedbun::golden {
namespace {

using nlohmann::json;
using Values = std::vector<double>;

double number(const json& value) {
  if (value.is_number()) return value.get<double>();
  const auto text = value.get<std::string>();
  if (text == "nan") return std::nan("");
  if (text == "inf") return HUGE_VAL;
  if (text == "-inf") return -HUGE_VAL;
  throw DataError("'" + text + "' is not a number");
}

Values numbers(const json& list) {
  // A 0-D tensor may be written as a bare number.
  if (!list.is_array()) return {number(list)};
  Values values;
  for (const json& value : list) values.push_back(number(value));
  return values;
}

std::vector<Values> lists(const json& list) {
  std::vector<Values> result;
  for (const json& values : list) result.push_back(numbers(values));
  return result;
}

// Inputs are shortest decimals of float32 values: rounded to float32, then widened.
std::vector<Values> inputs(const json& list) {
  std::vector<Values> result = lists(list);
  for (Values& values : result) {
    for (double& value : values) value = static_cast<double>(static_cast<float>(value));
  }
  return result;
}

Stream read_stream(const json& file) {
  Stream stream;
  stream.name = file.at("name").get<std::string>();
  stream.shapes = file.at("shapes").get<std::vector<std::vector<int64_t>>>();
  stream.initial = inputs(file.at("init"));
  for (const json& step : file.at("grads")) stream.gradients.push_back(inputs(step));
  if (file.contains("hess")) {
    for (const json& step : file.at("hess")) stream.hessians.push_back(inputs(step));
  }
  return stream;
}

Options read_options(const json& values) {
  Options options;
  std::set<std::string> known;
  visit_options(options, [&]<class Field>(std::string_view name, Field& field) {
    const std::string key(name);
    known.insert(key);
    if (!values.contains(key)) return;
    if constexpr (std::is_enum_v<Field>) {
      field = parse<Field>(values.at(key).get<std::string>());
    } else {
      field = values.at(key).get<Field>();
    }
  });
  for (const auto& [key, value] : values.items()) {
    FUSEDBUN_REQUIRE(known.contains(key), DataError, "there is no option '" + key + "'");
  }
  options.centralize_single_column = true;
  validate(options);
  return options;
}

Expected read_expected(const json& run) {
  Expected expected;
  for (const auto& [step, parameters] : run.at("p").items()) {
    expected.parameters[std::stoi(step)] = lists(parameters);
  }
  if (!run.contains("state")) return expected;
  for (const json& state : run.at("state")) {
    auto& named = expected.state.emplace_back();
    for (const auto& [name, values] : state.items()) named[name] = numbers(values);
  }
  return expected;
}

Case read_case(const json& entry, const std::map<std::string, std::shared_ptr<Stream>>& streams) {
  Case golden;
  const auto stream = streams.find(entry.at("stream").get<std::string>());
  FUSEDBUN_REQUIRE(stream != streams.end(), DataError, "its stream is in no file of the folder");
  golden.stream = stream->second;
  if (entry.contains("params")) {
    golden.parameters = entry.at("params").get<std::vector<int>>();
  } else {
    golden.parameters.resize(golden.stream->shapes.size());
    std::iota(golden.parameters.begin(), golden.parameters.end(), 0);
  }
  golden.options = read_options(entry.at("options"));
  golden.steps = entry.at("steps").get<int>();
  golden.expected[Precision::f64] = read_expected(entry.at("f64"));
  if (entry.contains("f32")) golden.expected[Precision::f32] = read_expected(entry.at("f32"));
  FUSEDBUN_REQUIRE(
      golden.steps >= 1 && golden.steps <= static_cast<int>(golden.stream->gradients.size()),
      DataError, "it has more steps than its stream");
  return golden;
}

torch::Tensor tensor_of(const Values& values, at::IntArrayRef shape, Precision precision) {
  return at::tensor(values, at::kDouble).reshape(shape).to(scalar_type(precision)).clone();
}

// One tensor against `expected`, whose finite maximum `scale` is that of the whole tensor of which `actual` may be a
// part.
std::optional<std::string> mismatch(const double* expected, const torch::Tensor& actual,
                                    double scale, Precision precision) {
  const double relative = precision == Precision::f64 ? 1e-12 : 1e-4;
  const torch::Tensor wide = actual.detach().to(at::kDouble).contiguous();
  const double* have = wide.data_ptr<double>();
  for (int64_t i = 0; i < wide.numel(); ++i) {
    const double want = expected[i];
    const bool same = std::isfinite(want)
                          ? std::abs(have[i] - want) <= relative * (std::abs(want) + 1e-3 * scale)
                          : (std::isnan(want) ? std::isnan(have[i]) : have[i] == want);
    if (same) continue;
    char text[160];
    std::snprintf(text, sizeof text, "element %lld is %.17g, expected %.17g",
                  static_cast<long long>(i), have[i], want);
    return text;
  }
  return std::nullopt;
}

double finite_maximum(const Values& values) {
  double maximum = 0;
  for (double value : values) {
    if (std::isfinite(value)) maximum = std::max(maximum, std::abs(value));
  }
  return maximum;
}

std::string at_step(const Case& golden, Precision precision, int step, int k) {
  return golden.id + (precision == Precision::f64 ? " (float64" : " (float32") + ", step " +
         std::to_string(step) + ", parameter " + std::to_string(golden.parameters[k]) + "): ";
}

}  // namespace

torch::ScalarType scalar_type(Precision precision) {
  return precision == Precision::f64 ? at::kDouble : at::kFloat;
}

torch::Tensor Case::initial(int k, Precision precision) const {
  return tensor_of(stream->initial.at(parameters.at(k)), stream->shapes.at(parameters.at(k)),
                   precision);
}

torch::Tensor Case::gradient(int step, int k, Precision precision) const {
  return tensor_of(stream->gradients.at(step - 1).at(parameters.at(k)),
                   stream->shapes.at(parameters.at(k)), precision);
}

torch::Tensor Case::hessian_diagonal(int step, int k, Precision precision) const {
  if (stream->hessians.empty()) return {};
  return tensor_of(stream->hessians.at(step - 1).at(parameters.at(k)),
                   stream->shapes.at(parameters.at(k)), precision);
}

std::filesystem::path directory() {
  const char* given = std::getenv("FUSEDBUN_GOLDEN_DIR");
  return given != nullptr && *given != '\0' ? given : FUSEDBUN_OWN_GOLDEN_DIR;
}

std::vector<Case> read_cases(const std::filesystem::path& folder) {
  FUSEDBUN_REQUIRE(std::filesystem::is_directory(folder), DataError,
                   "there is no folder of golden cases at " + folder.string());
  std::map<std::string, json> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".json") continue;
    std::ifstream stream(entry.path());
    files[entry.path().filename().string()] = json::parse(stream);
  }
  std::map<std::string, std::shared_ptr<Stream>> streams;
  for (const auto& [name, file] : files) {
    if (!file.is_object()) continue;
    auto stream = std::make_shared<Stream>(read_stream(file));
    streams[stream->name] = stream;
  }
  std::vector<Case> cases;
  for (const auto& [name, file] : files) {
    if (!file.is_array()) continue;
    for (const json& entry : file) {
      const std::string id = name + ": " + entry.at("id").get<std::string>();
      try {
        cases.push_back(read_case(entry, streams));
      } catch (const std::exception& error) {
        throw DataError("golden case " + id + ": " + error.what());
      }
      cases.back().id = id;
    }
  }
  FUSEDBUN_REQUIRE(!cases.empty(), DataError, "there are no golden cases in " + folder.string());
  return cases;
}

std::map<std::string, torch::Tensor> named_state(const SegmentState& state) {
  std::map<std::string, torch::Tensor> named;
  const auto add = [&](const std::string& name, const torch::Tensor& tensor) {
    if (tensor.defined()) named[name] = tensor;
  };
  const auto add_moment = [&](const std::string& name, const SecondMoment& moment) {
    add(name, moment.full);
    add(name + ".row", moment.row);
    add(name + ".col", moment.col);
  };
  add("momentum_buffer", state.momentum_buffer);
  add_moment("exp_avg_sq", state.exp_avg_sq);
  add_moment("exp_hessian", state.exp_hessian);
  return named;
}

std::optional<std::string> compare_parameters(const Case& golden, Precision precision, int step,
                                              const std::vector<torch::Tensor>& parameters) {
  const auto run = golden.expected.find(precision);
  if (run == golden.expected.end()) return std::nullopt;
  const auto expected = run->second.parameters.find(step);
  if (expected == run->second.parameters.end()) return std::nullopt;
  if (expected->second.size() != parameters.size())
    return golden.id + ": lists another number of parameters";
  for (size_t k = 0; k < parameters.size(); ++k) {
    const Values& values = expected->second[k];
    const std::string where = at_step(golden, precision, step, static_cast<int>(k));
    if (static_cast<int64_t>(values.size()) != parameters[k].numel())
      return where + "the sizes differ";
    const auto wrong = mismatch(values.data(), parameters[k], finite_maximum(values), precision);
    if (wrong) return where + *wrong;
  }
  return std::nullopt;
}

std::optional<std::string> compare_state(const Case& golden, Precision precision, int k,
                                         const RowRange& range, const SegmentState& state) {
  const auto run = golden.expected.find(precision);
  if (run == golden.expected.end() || run->second.state.empty()) return std::nullopt;
  const auto& expected = run->second.state.at(k);
  const auto actual = named_state(state);
  const std::string where = at_step(golden, precision, golden.steps, k);
  for (const auto& [name, tensor] : actual) {
    if (!expected.contains(name)) return where + "keeps " + name + ", which is not expected";
  }
  for (const auto& [name, values] : expected) {
    const auto tensor = actual.find(name);
    if (tensor == actual.end()) return where + "keeps no " + name;
    const bool by_column = name.ends_with(".col");
    const int64_t per_row = name.ends_with(".row") ? 1 : range.columns;
    const int64_t begin = by_column ? 0 : range.row_begin * per_row;
    const int64_t count = by_column ? range.columns : range.rows() * per_row;
    const bool sizes_fit =
        tensor->second.numel() == count && begin + count <= static_cast<int64_t>(values.size());
    if (!sizes_fit) return where + name + ": the sizes differ";
    const auto wrong =
        mismatch(values.data() + begin, tensor->second, finite_maximum(values), precision);
    if (wrong) return where + name + ": " + *wrong;
  }
  return std::nullopt;
}

namespace {

std::vector<torch::Tensor> on_cpu(const std::vector<torch::Tensor>& tensors) {
  std::vector<torch::Tensor> copies;
  for (const torch::Tensor& tensor : tensors) copies.push_back(tensor.detach().cpu());
  return copies;
}

// The state of a parameter, as made if every step was skipped.
SegmentState state_on_cpu(Fusedbun& optimizer, const torch::Tensor& parameter,
                          const RowRange& range, const Options& options) {
  const auto entry = optimizer.state().find(parameter.unsafeGetTensorImpl());
  if (entry == optimizer.state().end()) {
    const at::Tensor rows = parameter.detach().cpu().reshape({range.rows(), range.columns});
    return make_segment_state(rows, range, options);
  }
  SegmentState state = static_cast<const FusedbunParamState&>(*entry->second).segment;
  visit_tensors(state, [](const char*, torch::Tensor& tensor) {
    if (tensor.defined()) tensor = tensor.cpu();
  });
  return state;
}

}  // namespace

std::optional<std::string> run_fusedbun(const Case& golden, Precision precision, at::Device device,
                                        const std::function<void()>& before_looking) {
  std::vector<torch::Tensor> parameters;
  for (size_t k = 0; k < golden.parameters.size(); ++k) {
    const torch::Tensor initial = golden.initial(static_cast<int>(k), precision);
    parameters.push_back(initial.to(device).requires_grad_());
  }
  Fusedbun optimizer(parameters, FusedbunOptions(golden.options));
  for (int step = 1; step <= golden.steps; ++step) {
    for (size_t k = 0; k < parameters.size(); ++k) {
      const int index = static_cast<int>(k);
      parameters[k].mutable_grad() = golden.gradient(step, index, precision).to(device);
      const torch::Tensor diagonal = golden.hessian_diagonal(step, index, precision);
      if (diagonal.defined()) optimizer.set_hessian_diagonal(parameters[k], diagonal.to(device));
    }
    optimizer.step();
    if (before_looking) before_looking();
    if (auto wrong = compare_parameters(golden, precision, step, on_cpu(parameters))) return wrong;
  }
  for (size_t k = 0; k < parameters.size(); ++k) {
    const at::IntArrayRef shape = parameters[k].sizes();
    const RowRange range = all_rows_of({shape.data(), shape.size()}, golden.options.matrix_view);
    const SegmentState state = state_on_cpu(optimizer, parameters[k], range, golden.options);
    if (auto wrong = compare_state(golden, precision, static_cast<int>(k), range, state))
      return wrong;
  }
  return std::nullopt;
}

}  // namespace fusedbun::golden
