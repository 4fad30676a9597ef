#include "fusedbun/launcher/model/hf_config.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <set>

#include "fusedbun/core/error.h"
#include "fusedbun/core/similar_name.h"
#include "fusedbun/dist/run_folder/text_file.h"

namespace fusedbun::model {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

/// Whose a file is: one of a published model, which has what others need too, or one that a person wrote for fusedbun.
enum class Author : uint8_t { transformers, person };

/// Fields of one JSON object. One that is missing or null has the default that is given.
class Fields {
 public:
  Fields(Json values, std::string path, Author author, std::string prefix = "")
      : values_(std::move(values)),
        path_(std::move(path)),
        author_(author),
        prefix_(std::move(prefix)) {
    if (!values_.is_object())
      refuse("is no JSON object" + (prefix_.empty() ? "" : " in " + prefix_));
  }

  bool has(const char* name) const {
    asked_.emplace(name);
    const auto found = values_.find(name);
    return found != values_.end() && !found->is_null();
  }
  bool is_null(const char* name) const {
    return values_.contains(name) && values_.at(name).is_null();
  }
  int64_t size(const char* name, int64_t missing, int64_t least = 1) const {
    if (!has(name)) return missing;
    const Json& value = values_.at(name);
    if (!value.is_number_integer() || value.get<int64_t>() < least) refuse_value(name);
    return value.get<int64_t>();
  }
  double number(const char* name, double missing) const {
    if (!has(name)) return missing;
    const Json& value = values_.at(name);
    if (!value.is_number() || !std::isfinite(value.get<double>())) refuse_value(name);
    return value.get<double>();
  }
  /// At least 0 and below 1.
  double rate(const char* name, double missing) const {
    const double value = number(name, missing);
    if (value < 0 || value >= 1) refuse_value(name);
    return value;
  }
  bool flag(const char* name, bool missing) const {
    if (!has(name)) return missing;
    if (!values_.at(name).is_boolean()) refuse_value(name);
    return values_.at(name).get<bool>();
  }
  std::string text(const char* name, const std::string& missing) const {
    if (!has(name)) return missing;
    if (!values_.at(name).is_string()) refuse_value(name);
    return values_.at(name).get<std::string>();
  }
  std::vector<std::string> texts(const char* name) const {
    std::vector<std::string> list;
    if (!has(name)) return list;
    const Json& value = values_.at(name);
    if (!value.is_array()) refuse_value(name);
    for (const Json& item : value) {
      if (!item.is_string()) refuse_value(name);
      list.push_back(item.get<std::string>());
    }
    return list;
  }
  /// The object under the first of `names` that is there, else an empty one.
  Fields object(std::initializer_list<const char*> names) const {
    for (const char* name : names) {
      if (has(name)) return {values_.at(name), path_, author_, std::string(name) + "."};
    }
    return {Json::object(), path_, author_};
  }
  /// Only the first of `known`, transformers' default, and those that compute the same can be computed with.
  void require(const char* name, std::initializer_list<Json> known) const {
    if (!has(name) || std::ranges::find(known, values_.at(name)) != known.end()) return;
    refuse("says " + prefix_ + name + " = " + values_.at(name).dump() +
           ", and here the model is computed with " + known.begin()->dump());
  }
  [[noreturn]] void refuse(const std::string& what) const {
    if (author_ == Author::person) throw ConfigError(path_ + " " + what);
    throw DataError(path_ + " " + what);
  }
  /// In a file that a person wrote, a key that no model reads is a typing error.
  void refuse_unused(const std::string& type) const {
    if (author_ != Author::person) return;
    for (const auto& [name, value] : values_.items()) {
      if (asked_.contains(name)) continue;
      const std::string meant = similar_name(name, {asked_.begin(), asked_.end()});
      refuse("says " + prefix_ + name + ", for which this " + type + " has no use" +
             (meant.empty() ? "" : "; did you mean " + prefix_ + meant + "?"));
    }
  }
  /// A model of a person's own must say its sizes.
  void require_said(const std::string& type, std::initializer_list<const char*> names) const {
    if (author_ != Author::person) return;
    std::string all;
    for (const char* name : names) all += (all.empty() ? "" : ", ") + std::string(name);
    for (const char* name : names) {
      if (!has(name)) refuse("does not say " + std::string(name) + "; a " + type + " needs " + all);
    }
  }
  /// Token ids, or lists of them, below `vocab`.
  void check_tokens(int64_t vocab) const {
    if (author_ != Author::person) return;
    for (const char* name : kTokenNames) {
      if (!has(name)) continue;
      const Json& value = values_.at(name);
      const Json ids = value.is_array() ? value : Json::array({value});
      for (const Json& id : ids) {
        if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= vocab)
          refuse_value(name);
      }
    }
  }

 private:
  [[noreturn]] void refuse_value(const char* name) const {
    refuse("says " + prefix_ + name + " = " + values_.at(name).dump());
  }

  Json values_;
  std::string path_;
  Author author_;
  std::string prefix_;
  mutable std::set<std::string> asked_;  ///< names
};

Gpt2Config gpt2_of(const Fields& fields) {
  fields.require_said("gpt2", {"n_layer", "n_head", "n_embd", "n_positions", "vocab_size"});
  Gpt2Config config;
  config.n_layer = fields.size("n_layer", 12);
  config.n_head = fields.size("n_head", 12);
  config.n_embd = fields.size("n_embd", 768);
  config.n_ctx = fields.size(fields.has("n_positions") ? "n_positions" : "n_ctx", 1024);
  config.vocab = fields.size("vocab_size", 50257);
  config.initial_deviation = fields.number("initializer_range", 0.02);
  config.dropout = {.embeddings = fields.rate("embd_pdrop", 0.1),
                    .attention = fields.rate("attn_pdrop", 0.1),
                    .residuals = fields.rate("resid_pdrop", 0.1)};
  fields.require("activation_function", {"gelu_new", "gelu_pytorch_tanh"});
  fields.require("layer_norm_epsilon", {1e-5});
  fields.require("scale_attn_weights", {true});
  fields.require("scale_attn_by_inverse_layer_idx", {false});
  fields.require("add_cross_attention", {false});
  fields.require("tie_word_embeddings", {true});
  fields.require("n_inner", {4 * config.n_embd});
  return config;
}

// Without `mscale`: 0.1 · ln(factor) + 1, as the paper has it.
double sharpened(double factor, double mscale = 1) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

RopeScaling rope_scaling_of(const Fields& fields, const Fields& rope, int64_t context) {
  const std::string rule = rope.text("rope_type", rope.text("type", "default"));
  rope.require("partial_rotary_factor", {1.0, 1});
  RopeScaling scaling;
  // The dynamic rule (NTK) begins where a sequence is longer than the context, and none is.
  if (rule == "default" || rule == "dynamic") return scaling;
  if (!rope.has("factor")) fields.refuse("says rope_type = \"" + rule + "\" without a factor");
  scaling.factor = rope.number("factor", 1);
  if (rule == "linear") {
    scaling.rule = RopeScaling::Rule::linear;
    return scaling;
  }
  scaling.original_context = fields.size("original_max_position_embeddings",
                                         rope.size("original_max_position_embeddings", context));
  if (rule == "llama3") {
    scaling.rule = RopeScaling::Rule::llama3;
    scaling.low_frequency = rope.number("low_freq_factor", scaling.low_frequency);
    scaling.high_frequency = rope.number("high_freq_factor", scaling.high_frequency);
  } else if (rule == "yarn") {
    scaling.rule = RopeScaling::Rule::yarn;
    scaling.beta_fast = rope.number("beta_fast", scaling.beta_fast);
    scaling.beta_slow = rope.number("beta_slow", scaling.beta_slow);
    scaling.truncates = rope.flag("truncate", true);
    const double mscale = rope.number("mscale", 0), all = rope.number("mscale_all_dim", 0);
    const double factor = mscale != 0 && all != 0
                              ? sharpened(scaling.factor, mscale) / sharpened(scaling.factor, all)
                              : sharpened(scaling.factor);
    scaling.attention_factor = rope.number("attention_factor", factor);
  } else {
    fields.refuse("says rope_type = \"" + rule +
                  "\"; default, linear, dynamic, llama3 and yarn are known here");
  }
  return scaling;
}

/// What a family's fields are when its config.json does not say.
struct Family {
  const char* type;
  int64_t heads_of_keys = 0;  ///< 0: as many as queries
  int64_t head_width = 0;     ///< 0: width / heads
  int64_t window = 0;
  bool windows_are_switched = false;  ///< by use_sliding_window, from layer max_window_layers on
  bool qkv_bias = false;              ///< always
  bool has_bias_flag = false;         ///< attention_bias, of queries, keys, values and output
  bool has_mlp_bias_flag = false;
  bool qk_norm = false;
};
constexpr Family kFamilies[] = {
    {.type = "llama", .has_bias_flag = true, .has_mlp_bias_flag = true},
    {.type = "mistral", .heads_of_keys = 8, .window = 4096},
    {.type = "qwen2", .window = 4096, .windows_are_switched = true, .qkv_bias = true},
    {.type = "qwen3",
     .head_width = 128,
     .window = 4096,
     .windows_are_switched = true,
     .has_bias_flag = true,
     .qk_norm = true}};

void set_windows(const Fields& fields, const Family& family, LlamaConfig& config) {
  if (family.window == 0) return;
  // Written as null, which is no window, it is not the default.
  const bool is_switched_off =
      family.windows_are_switched && !fields.flag("use_sliding_window", false);
  const bool is_null = fields.is_null("sliding_window");
  if (is_switched_off || is_null) return;
  config.window = fields.size("sliding_window", family.window);
  const std::vector<std::string> types = fields.texts("layer_types");
  const int64_t first = family.windows_are_switched ? fields.size("max_window_layers", 28, 0) : 0;
  for (int64_t layer = 0; layer < config.layers; ++layer)
    config.is_windowed.push_back(layer >= first);
  if (types.empty() || !family.windows_are_switched) return;
  if (std::ssize(types) != config.layers)
    fields.refuse("says layer_types for another number of layers");
  for (size_t layer = 0; layer < types.size(); ++layer) {
    if (types[layer] != "sliding_attention" && types[layer] != "full_attention")
      fields.refuse("says layer_types = \"" + types[layer] + "\"");
    config.is_windowed[layer] = types[layer] == "sliding_attention";
  }
}

LlamaConfig llama_of(const Fields& fields, const Family& family) {
  fields.require_said(
      family.type, {"num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
                    "max_position_embeddings", "vocab_size"});
  LlamaConfig config;
  config.layers = fields.size("num_hidden_layers", 32);
  config.width = fields.size("hidden_size", 4096);
  config.mlp_width = fields.size("intermediate_size", 11008);
  config.heads = fields.size("num_attention_heads", 32);
  config.kv_heads = fields.size("num_key_value_heads",
                                family.heads_of_keys > 0 ? family.heads_of_keys : config.heads);
  const int64_t even_share = config.width / config.heads;
  config.head_width =
      fields.size("head_dim", family.head_width > 0 ? family.head_width : even_share);
  config.context = fields.size("max_position_embeddings", 2048);
  config.vocab = fields.size("vocab_size", 32000);
  config.norm_epsilon = fields.number("rms_norm_eps", 1e-6);
  config.initial_deviation = fields.number("initializer_range", 0.02);
  config.attention_dropout = fields.rate("attention_dropout", 0);
  const Fields rope = fields.object({"rope_parameters", "rope_scaling"});
  config.rope_theta = (rope.has("rope_theta") ? rope : fields).number("rope_theta", 10000);
  config.rope = rope_scaling_of(fields, rope, config.context);
  rope.refuse_unused(family.type);
  const bool has_biases = family.has_bias_flag && fields.flag("attention_bias", false);
  config.qkv_bias = family.qkv_bias || has_biases;
  config.output_bias = has_biases;
  config.mlp_bias = family.has_mlp_bias_flag && fields.flag("mlp_bias", false);
  config.qk_norm = family.qk_norm;
  config.tied = fields.flag("tie_word_embeddings", false);
  set_windows(fields, family, config);
  fields.require("hidden_act", {"silu", "swish"});
  return config;
}

/// Dropout under the names of config.json.
OrderedJson dropout_json(const Gpt2Config& config) {
  return {{"attn_pdrop", config.dropout.attention},
          {"embd_pdrop", config.dropout.embeddings},
          {"resid_pdrop", config.dropout.residuals}};
}
OrderedJson dropout_json(const LlamaConfig& config) {
  OrderedJson json;
  json["attention_dropout"] = config.attention_dropout;
  return json;
}

OrderedJson json_of(const Gpt2Config& config) {
  OrderedJson json{{"architectures", {"GPT2LMHeadModel"}},
                   {"model_type", "gpt2"},
                   {"activation_function", "gelu_new"},
                   {"n_layer", config.n_layer},
                   {"n_head", config.n_head},
                   {"n_embd", config.n_embd},
                   {"n_positions", config.n_ctx},
                   {"n_ctx", config.n_ctx},
                   {"vocab_size", config.vocab},
                   {"layer_norm_epsilon", 1e-5},
                   {"initializer_range", config.initial_deviation},
                   {"tie_word_embeddings", true},
                   {"bos_token_id", nullptr},
                   {"eos_token_id", nullptr}};
  json.update(dropout_json(config));
  return json;
}

OrderedJson json_of(const RopeScaling& rope, double theta) {
  OrderedJson json{{"rope_theta", theta}};
  switch (rope.rule) {
    case RopeScaling::Rule::none:
      json["rope_type"] = "default";
      return json;
    case RopeScaling::Rule::linear:
      json["rope_type"] = "linear";
      json["factor"] = rope.factor;
      return json;
    case RopeScaling::Rule::llama3:
      json["rope_type"] = "llama3";
      json["low_freq_factor"] = rope.low_frequency;
      json["high_freq_factor"] = rope.high_frequency;
      break;
    case RopeScaling::Rule::yarn:
      json["rope_type"] = "yarn";
      json["beta_fast"] = rope.beta_fast;
      json["beta_slow"] = rope.beta_slow;
      json["truncate"] = rope.truncates;
      json["attention_factor"] = rope.attention_factor;
      break;
  }
  json["factor"] = rope.factor;
  json["original_max_position_embeddings"] = rope.original_context;
  return json;
}

// The family whose flags say what the model has.
const char* family_of(const LlamaConfig& config) {
  if (config.qk_norm) return "qwen3";
  if (config.qkv_bias && !config.output_bias) return "qwen2";
  return config.window > 0 ? "mistral" : "llama";
}

OrderedJson json_of(const LlamaConfig& config) {
  const std::string family = family_of(config);
  const std::string name = family == "llama"     ? "Llama"
                           : family == "mistral" ? "Mistral"
                           : family == "qwen2"   ? "Qwen2"
                                                 : "Qwen3";
  OrderedJson json{{"architectures", {name + "ForCausalLM"}},
                   {"model_type", family},
                   {"hidden_act", "silu"},
                   {"num_hidden_layers", config.layers},
                   {"hidden_size", config.width},
                   {"intermediate_size", config.mlp_width},
                   {"num_attention_heads", config.heads},
                   {"num_key_value_heads", config.kv_heads},
                   {"head_dim", config.head_width},
                   {"max_position_embeddings", config.context},
                   {"vocab_size", config.vocab},
                   {"rms_norm_eps", config.norm_epsilon},
                   {"initializer_range", config.initial_deviation},
                   {"rope_parameters", json_of(config.rope, config.rope_theta)},
                   {"tie_word_embeddings", config.tied},
                   {"bos_token_id", nullptr},
                   {"eos_token_id", nullptr}};
  json.update(dropout_json(config));
  if (family == "llama" || family == "qwen3") json["attention_bias"] = config.output_bias;
  if (family == "llama") json["mlp_bias"] = config.mlp_bias;
  if (family == "mistral") json["sliding_window"] = config.window;
  if (family == "qwen2" || family == "qwen3") {
    json["use_sliding_window"] = config.window > 0;
    json["sliding_window"] = config.window > 0 ? OrderedJson(config.window) : OrderedJson();
    json["layer_types"] = OrderedJson::array();
    for (int64_t layer = 0; layer < config.layers; ++layer) {
      const bool is_windowed = !config.is_windowed.empty() && config.is_windowed[layer];
      json["layer_types"].push_back(is_windowed ? "sliding_attention" : "full_attention");
    }
  }
  return json;
}

ModelConfig model_of(const Fields& fields) {
  const std::string type = fields.text("model_type", "");
  if (type == "gpt2") return gpt2_of(fields);
  for (const Family& family : kFamilies) {
    if (type == family.type) return llama_of(fields, family);
  }
  fields.refuse("says model_type = \"" + type +
                "\"; gpt2, llama, mistral, qwen2 and qwen3 can be trained here");
}

ModelConfig parsed(const std::string& config_text, const std::string& name, Author author) {
  const Fields fields(Json::parse(config_text, nullptr, /*allow_exceptions=*/false), name, author);
  const ModelConfig config = model_of(fields);
  fields.check_tokens(vocab_of(config));
  fields.refuse_unused(fields.text("model_type", ""));
  return config;
}

}  // namespace

ModelConfig read_hf_config(const std::filesystem::path& path) {
  return parse_hf_config(run_folder::read_text_file(path), path.string());
}

ModelConfig parse_hf_config(const std::string& config_text, const std::string& name) {
  return parsed(config_text, name, Author::transformers);
}

ModelConfig parse_own_config(const std::string& config_text, const std::string& name) {
  return parsed(config_text, name, Author::person);
}

std::optional<int64_t> end_of_text_in(const std::string& config_text) {
  const Json json = Json::parse(config_text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return std::nullopt;  // read_hf_config says so
  Json token = json.value("eos_token_id", Json());
  if (token.is_array() && !token.empty()) token = Json(token.front());
  return token.is_number_integer() ? std::optional(token.get<int64_t>()) : std::nullopt;
}

std::string hf_config_text(const ModelConfig& config, std::string_view dtype) {
  OrderedJson json = std::visit([](const auto& sizes) { return json_of(sizes); }, config);
  json["dtype"] = dtype;
  return json.dump(2) + "\n";
}

std::string with_dtype(const std::string& config_text, std::string_view dtype) {
  OrderedJson json = OrderedJson::parse(config_text);
  // Its name up to transformers 4, and since 5.
  if (json.contains("torch_dtype")) json["torch_dtype"] = dtype;
  if (json.contains("dtype") || !json.contains("torch_dtype")) json["dtype"] = dtype;
  return json.dump(2) + "\n";
}

std::string with_dropout(const std::string& config_text, const ModelConfig& config) {
  OrderedJson json = OrderedJson::parse(config_text);
  json.update(std::visit([](const auto& sizes) { return dropout_json(sizes); }, config));
  return json.dump(2) + "\n";
}

DropoutRates dropout_of(const ModelConfig& config) {
  if (const auto* gpt2 = std::get_if<Gpt2Config>(&config)) return gpt2->dropout;
  return {.attention = std::get<LlamaConfig>(config).attention_dropout};
}

void set_dropout(ModelConfig& config, double rate) {
  if (auto* const gpt2 = std::get_if<Gpt2Config>(&config)) {
    gpt2->dropout = {.embeddings = rate, .attention = rate, .residuals = rate};
  } else {
    std::get<LlamaConfig>(config).attention_dropout = rate;
  }
}

int64_t context_of(const ModelConfig& config) {
  if (const auto* gpt2 = std::get_if<Gpt2Config>(&config)) return gpt2->n_ctx;
  return std::get<LlamaConfig>(config).context;
}

int64_t vocab_of(const ModelConfig& config) {
  return std::visit([](const auto& sizes) { return sizes.vocab; }, config);
}

}  // namespace fusedbun::model
