#include "fusedbun/launcher/train/hf_config.h"

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/text_file.h"

namespace fusedbun::train {
namespace {

using nlohmann::json;

class Reader {
 public:
  explicit Reader(const std::filesystem::path& path) : path_(path) {
    values_ = json::parse(run_folder::read_text_file(path), nullptr, /*allow_exceptions=*/false);
    if (!values_.is_object()) refuse("is not a JSON object");
  }

  std::optional<int64_t> number(const char* name) const {
    const json value = values_.value(name, json());
    if (value.is_null()) return std::nullopt;
    if (!value.is_number_integer() || value.get<int64_t>() < 1)
      refuse("says " + std::string(name) + " = " + value.dump());
    return value.get<int64_t>();
  }

  // What is missing or null has transformers' default, the first of `known`.
  void require(const char* name, std::initializer_list<json> known) const {
    const json value = values_.value(name, json());
    if (value.is_null() || std::ranges::find(known, value) != known.end()) return;
    refuse("says " + std::string(name) + " = " + value.dump() +
           ", and here a GPT-2 is computed with " + known.begin()->dump());
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw DataError(path_.string() + " " + what);
  }

  std::filesystem::path path_;
  json values_;
};

}  // namespace

std::optional<HfConfig> read_hf_config(const std::filesystem::path& path) {
  std::error_code unreadable;  // then reading says what is wrong
  if (!std::filesystem::exists(path, unreadable) && !unreadable) return std::nullopt;
  const Reader reader(path);
  HfConfig config{path, reader.number("n_layer"), reader.number("n_head"), reader.number("n_embd")};
  reader.require("model_type", {"gpt2"});
  reader.require("activation_function", {"gelu_new", "gelu_pytorch_tanh"});
  reader.require("layer_norm_epsilon", {1e-5});
  reader.require("scale_attn_weights", {true});
  reader.require("scale_attn_by_inverse_layer_idx", {false});
  reader.require("add_cross_attention", {false});
  reader.require("tie_word_embeddings", {true});
  if (config.n_embd) reader.require("n_inner", {4 * *config.n_embd});
  return config;
}

}  // namespace fusedbun::train
