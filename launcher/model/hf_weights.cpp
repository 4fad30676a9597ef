#include "fusedbun/launcher/model/hf_weights.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/text_file.h"
#include "fusedbun/launcher/model/gpt2.h"

namespace fusedbun::model {
namespace {

namespace fs = std::filesystem;
using checkpoint::Dtype;
using checkpoint::StoredTensor;
using Json = nlohmann::json;

constexpr std::string_view kPrefixes[] = {"transformer.", "model."};
constexpr const char* kHead = "lm_head.weight";

std::string without_prefix(std::string_view name) {
  for (const std::string_view prefix : kPrefixes) {
    if (name.starts_with(prefix)) return std::string(name.substr(prefix.size()));
  }
  return std::string(name);
}

/// Buffers that old files hold: GPT-2's causal mask, Llama's frequencies.
bool is_buffer(std::string_view name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") ||
         name.ends_with(".rotary_emb.inv_freq");
}

[[noreturn]] void refuse(const fs::path& path, const std::string& what) {
  throw DataError(path.string() + " does not fit: " + what);
}

// Which tensor is in which file beside the index.
std::map<std::string, std::string> weight_map_of(const fs::path& path) {
  const Json index = Json::parse(run_folder::read_text_file(path), nullptr, false);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty())
    throw DataError(path.string() + " is no index of a model's files: it has no weight_map");
  std::map<std::string, std::string> files;
  for (const auto& item : map->items()) {
    const bool is_name =
        item.value().is_string() &&
        fs::path(item.value().get<std::string>()).filename() == item.value().get<std::string>() &&
        !item.value().get<std::string>().empty();
    if (!is_name)
      throw DataError(path.string() + ": weight_map says '" + item.key() + "' is in " +
                      item.value().dump() + ", which is no file beside it");
    files.emplace(item.key(), item.value().get<std::string>());
  }
  return files;
}

// Hugging Face's cache has links.
fs::path resolved(const fs::path& path, const std::string& why) {
  std::error_code error;
  const fs::path file = fs::canonical(path, error);
  FUSEDBUN_REQUIRE(!error, DataError,
                   "cannot read " + path.string() + why + ": " + error.message());
  return file;
}

at::ScalarType type_of(const fs::path& path, const StoredTensor& stored) {
  switch (stored.dtype) {
    case Dtype::F32:
      return at::kFloat;
    case Dtype::F16:
      return at::kHalf;
    case Dtype::BF16:
      return at::kBFloat16;
    default:
      refuse(path, "'" + stored.name + "' is " + std::string(name_of(stored.dtype)) +
                       "; F32, F16 and BF16 can be read");
  }
}

at::Tensor values_of(const fs::path& path, const StoredTensor& stored) {
  // The data may be at any byte of the file, so it is copied to memory that is aligned for its type.
  at::Tensor values = at::empty(stored.shape, type_of(path, stored));
  if (!stored.bytes.empty())
    std::memcpy(values.data_ptr(), stored.bytes.data(), stored.bytes.size());
  return values;
}

std::string shape_text(at::IntArrayRef shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

Dtype dtype_of(at::ScalarType type) {
  return type == at::kHalf ? Dtype::F16 : type == at::kBFloat16 ? Dtype::BF16 : Dtype::F32;
}

}  // namespace

WeightFiles::WeightFiles(const fs::path& path) : path_(path) {
  if (path.extension() != ".json") {
    files_.emplace_back(resolved(path, ""));
    metadata_ = files_.front().metadata();
    for (const StoredTensor& tensor : files_.front().tensors()) add(tensor);
    return;
  }
  std::map<std::string, const checkpoint::SafetensorsFile*> opened;
  for (const auto& [name, file_name] : weight_map_of(path)) {
    const checkpoint::SafetensorsFile*& file = opened[file_name];
    if (file == nullptr) {
      files_.emplace_back(
          resolved(path.parent_path() / file_name, ", which " + path.string() + " names"));
      file = &files_.back();
    }
    const StoredTensor* const tensor = file->find(name);
    if (tensor == nullptr)
      throw DataError(file->path().string() + " lacks '" + name + "', which " + path.string() +
                      " says is there");
    add(*tensor);
  }
}

void WeightFiles::add(const StoredTensor& tensor) {
  if (is_buffer(tensor.name)) return;
  if (!tensors_.emplace(without_prefix(tensor.name), &tensor).second)
    refuse(path_, "'" + tensor.name + "' is there with and without its prefix");
}

bool is_stored_transposed(const CausalLm& model, std::string_view name) {
  return dynamic_cast<const Gpt2Impl*>(&model) != nullptr &&
         (name.ends_with("c_attn.weight") || name.ends_with("c_proj.weight") ||
          name.ends_with("c_fc.weight"));
}

void load_weights(const WeightFiles& files, CausalLm& model) {
  const torch::NoGradGuard no_grad;
  std::map<std::string, const StoredTensor*> left = files.tensors();
  const auto take = [&](const std::string& name) -> const StoredTensor& {
    const auto found = left.find(without_prefix(name));
    if (found == left.end()) refuse(files.path(), "'" + name + "' is missing");
    const StoredTensor& stored = *found->second;
    left.erase(found);
    return stored;
  };
  const StoredTensor* embedding = nullptr;
  bool has_head = false;
  for (auto& parameter : model.named_parameters()) {
    const StoredTensor& stored = take(parameter.key());
    if (embedding == nullptr) embedding = &stored;  // every model begins with it
    has_head |= parameter.key() == kHead;
    at::Tensor values = values_of(files.path(), stored);
    if (is_stored_transposed(model, parameter.key()) && values.dim() == 2) values = values.t();
    if (values.sizes() != parameter.value().sizes()) {
      refuse(files.path(), "'" + stored.name + "' has the shape " + shape_text(values.sizes()) +
                               ", and the model's is " + shape_text(parameter.value().sizes()));
    }
    FUSEDBUN_REQUIRE(at::isfinite(values).all().item<bool>(), ConfigError,
                     files.path().string() + ": '" + stored.name +
                         "' holds NaN or inf, from which nothing can be learned: take a checkpoint "
                         "from before that");
    parameter.value().copy_(values);
  }
  if (const auto head = left.find(kHead); head != left.end() && !has_head) {
    const StoredTensor& stored = *head->second;
    const bool is_tied = stored.shape == embedding->shape && stored.dtype == embedding->dtype &&
                         std::ranges::equal(stored.bytes, embedding->bytes);
    if (!is_tied)
      refuse(files.path(),
             "its output layer lm_head.weight is not tied to '" + embedding->name + "'");
    left.erase(head);
  }
  if (!left.empty())
    refuse(files.path(), "'" + left.begin()->second->name + "' has no place in the model");
}

void save_weights(const fs::path& path, const CausalLm& model,
                  const checkpoint::Metadata& metadata) {
  const torch::NoGradGuard no_grad;
  std::vector<at::Tensor> kept;  // the memory that `tensors` look into
  std::vector<StoredTensor> tensors;
  for (const auto& parameter : model.named_parameters()) {
    at::Tensor values = parameter.value().detach().to(at::kCPU);
    if (is_stored_transposed(model, parameter.key())) values = values.t();
    kept.push_back(values.contiguous());
    tensors.push_back(
        {parameter.key(),
         dtype_of(values.scalar_type()),
         values.sizes().vec(),
         {static_cast<const std::byte*>(kept.back().data_ptr()), kept.back().nbytes()}});
  }
  checkpoint::Metadata all = metadata;
  all["format"] = "pt";  // transformers insists on it
  checkpoint::write_safetensors(path, tensors, all);
}

}  // namespace fusedbun::model
