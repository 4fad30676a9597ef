#pragma once
// config.json, as `transformers` keeps it beside a model's weights: which model computes with them.
//
// Thread safety: functions without state.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "fusedbun/launcher/model/gpt2_config.h"
#include "fusedbun/launcher/model/llama_config.h"

namespace fusedbun::model {

inline constexpr const char* kConfigName = "config.json";

using ModelConfig = std::variant<Gpt2Config, LlamaConfig>;

/// The model of a config.json: model_type gpt2, llama, mistral, qwen2 or qwen3. What is missing has transformers' default. Throws DataError,
/// naming the file and the field, for another architecture, for a value that the models here do not compute with, and for text that is no
/// JSON object.
ModelConfig read_hf_config(const std::filesystem::path& path);

/// The same of its text; `name` is what errors call the file.
ModelConfig parse_hf_config(const std::string& config_text, const std::string& name);
/// Of a file that a person wrote for a model from scratch. Throws ConfigError for what read_hf_config throws DataError for, for a size that is
/// missing, and for a field that nothing here asks for, naming the nearest that is.
ModelConfig parse_own_config(const std::string& config_text, const std::string& name);

/// Fields that name tokens, with which models here compute nothing.
inline constexpr const char* kTokenNames[] = {"bos_token_id", "eos_token_id", "pad_token_id"};

/// A config.json of `config`, whose weights are stored in `dtype` ("float32").
std::string hf_config_text(const ModelConfig& config, std::string_view dtype);
/// The text of a config.json that was read, for weights that are stored in `dtype` now.
std::string with_dtype(const std::string& config_text, std::string_view dtype);

/// The text of a config.json that was read, saying the dropout of `config`.
std::string with_dropout(const std::string& config_text, const ModelConfig& config);

/// eos_token_id of a config.json's text, of several the first; nothing if it says none.
std::optional<int64_t> end_of_text_in(const std::string& config_text);

DropoutRates dropout_of(const ModelConfig& config);
/// Everywhere where the architecture has dropout.
void set_dropout(ModelConfig& config, double rate);

int64_t context_of(const ModelConfig& config);
int64_t vocab_of(const ModelConfig& config);

}  // namespace fusedbun::model
