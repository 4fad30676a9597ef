#include "fusedbun/launcher/train/hf_gpt2.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <charconv>
#include <map>
#include <string>
#include <string_view>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

using checkpoint::Dtype;
using checkpoint::SafetensorsFile;
using checkpoint::StoredTensor;
using TensorsByName = std::map<std::string_view, const StoredTensor*>;

constexpr std::string_view kPrefix = "transformer.";
constexpr std::string_view kHeads = "n_head";  // metadata key

std::string_view without_prefix(std::string_view name) {
  return name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : name;
}

/// Buffers of the causal mask, which older files hold.
bool is_mask(std::string_view name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
}

[[noreturn]] void refuse(const SafetensorsFile& file, const std::string& what) {
  throw DataError(file.path().string() + " is not a GPT-2 that fits: " + what);
}

TensorsByName by_name(const SafetensorsFile& file) {
  TensorsByName tensors;
  for (const StoredTensor& tensor : file.tensors()) {
    if (is_mask(tensor.name)) continue;
    if (!tensors.emplace(without_prefix(tensor.name), &tensor).second) {
      refuse(file, "'" + tensor.name + "' is there with and without the prefix");
    }
  }
  return tensors;
}

const StoredTensor& matrix(const SafetensorsFile& file, const TensorsByName& tensors,
                           std::string_view name) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) refuse(file, "'" + std::string(name) + "' is missing");
  const StoredTensor& tensor = *found->second;
  if (tensor.shape.size() != 2 || tensor.shape[0] < 1 || tensor.shape[1] < 1) {
    refuse(file, "'" + tensor.name + "' is not a matrix");
  }
  return tensor;
}

// As the metadata says, which we write.
std::optional<int64_t> heads_inside(const SafetensorsFile& file) {
  const auto stored = file.metadata().find(kHeads);
  if (stored == file.metadata().end()) return std::nullopt;
  int64_t heads = 0;
  const char* end = stored->second.data() + stored->second.size();
  const auto [rest, error] = std::from_chars(stored->second.data(), end, heads);
  if (error != std::errc() || rest != end || heads < 1)
    refuse(file, "its metadata says n_head = " + stored->second);
  return heads;
}

torch::Tensor tensor_of(const SafetensorsFile& file, const StoredTensor& stored) {
  at::ScalarType type;
  switch (stored.dtype) {
    case Dtype::F32:
      type = at::kFloat;
      break;
    case Dtype::F16:
      type = at::kHalf;
      break;
    case Dtype::BF16:
      type = at::kBFloat16;
      break;
    default:
      refuse(file, "'" + stored.name + "' is " + std::string(name_of(stored.dtype)) +
                       "; F32, F16 and BF16 can be read");
  }
  // The data may be at any byte of the file, so it is copied to memory that is aligned for its type.
  torch::Tensor values = at::empty(stored.shape, type);
  if (!stored.bytes.empty())
    std::memcpy(values.data_ptr(), stored.bytes.data(), stored.bytes.size());
  return values.to(at::kFloat);
}

void require_tied(const SafetensorsFile& file, const TensorsByName& tensors) {
  const auto head = tensors.find("lm_head.weight");
  if (head == tensors.end()) return;
  const StoredTensor& embedding = *tensors.at("wte.weight");
  if (head->second->shape != embedding.shape || head->second->dtype != embedding.dtype ||
      !std::equal(embedding.bytes.begin(), embedding.bytes.end(), head->second->bytes.begin())) {
    refuse(file, "its output layer lm_head.weight is not tied to wte.weight");
  }
}

}  // namespace

bool is_stored_transposed(std::string_view name) {
  return name.ends_with("c_attn.weight") || name.ends_with("c_proj.weight") ||
         name.ends_with("c_fc.weight");
}

checkpoint::Metadata hf_metadata(const Gpt2& model) {
  return {{std::string(kHeads), std::to_string(model->config().n_head)}};
}

FoundSizes sizes_of(const SafetensorsFile& file, const std::optional<HeadsSaid>& said) {
  const TensorsByName tensors = by_name(file);
  const StoredTensor& wte = matrix(file, tensors, "wte.weight");
  const StoredTensor& wpe = matrix(file, tensors, "wpe.weight");
  Gpt2Config config{.n_layer = 0,
                    .n_head = std::max<int64_t>(1, wte.shape[1] / 64),
                    .n_embd = wte.shape[1],
                    .n_ctx = wpe.shape[0],
                    .vocab = wte.shape[0]};
  while (tensors.contains("h." + std::to_string(config.n_layer) + ".ln_1.weight")) ++config.n_layer;
  if (config.n_layer == 0) refuse(file, "'h.0.ln_1.weight' is missing");
  const std::optional<int64_t> inside = heads_inside(file);
  FUSEDBUN_REQUIRE(!inside || !said || *inside == said->heads, ConfigError,
                   said->by + " = " + std::to_string(said->heads) + ": " + file.path().string() +
                       " has " + std::to_string(*inside));
  const bool is_known = inside || said;
  if (is_known) config.n_head = inside ? *inside : said->heads;
  if (config.n_embd % config.n_head != 0) {
    refuse(file, "a width of " + std::to_string(config.n_embd) + " does not divide by " +
                     std::to_string(config.n_head) +
                     (is_known ? " heads" : " heads of about 64; --heads says how many it has"));
  }
  return {config, !is_known};
}

void load_hf(const SafetensorsFile& file, Gpt2& model) {
  const torch::NoGradGuard no_grad;
  TensorsByName tensors = by_name(file);
  matrix(file, tensors, "wte.weight");
  require_tied(file, tensors);
  tensors.erase("lm_head.weight");
  for (auto& parameter : model->named_parameters()) {
    const auto found = tensors.find(parameter.key());
    if (found == tensors.end()) refuse(file, "'" + parameter.key() + "' is missing");
    torch::Tensor values = tensor_of(file, *found->second);
    if (is_stored_transposed(parameter.key()) && values.dim() == 2) values = values.t();
    if (values.sizes() != parameter.value().sizes()) {
      refuse(file,
             "'" + found->second->name + "' has another shape than the rest of the file asks for");
    }
    parameter.value().copy_(values);
    tensors.erase(found);
  }
  if (!tensors.empty())
    refuse(file, "'" + std::string(tensors.begin()->first) + "' has no place in it");
}

void save_hf(const std::filesystem::path& path, const Gpt2& model) {
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> kept;  // the memory that `tensors` look into
  std::vector<StoredTensor> tensors;
  for (const auto& parameter : model->named_parameters()) {
    torch::Tensor values = parameter.value().detach().to(at::kCPU, at::kFloat);
    if (is_stored_transposed(parameter.key())) values = values.t();
    kept.push_back(values.contiguous());
    tensors.push_back(
        {parameter.key(),
         Dtype::F32,
         values.sizes().vec(),
         {static_cast<const std::byte*>(kept.back().data_ptr()), kept.back().nbytes()}});
  }
  checkpoint::Metadata metadata = hf_metadata(model);
  metadata["format"] = "pt";  // transformers insists on it
  checkpoint::write_safetensors(path, tensors, metadata);
}

}  // namespace fusedbun::train
