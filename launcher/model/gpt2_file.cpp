#include "fusedbun/launcher/model/gpt2_file.h"

#include <algorithm>
#include <charconv>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/model/gpt2.h"

namespace fusedbun::model {
namespace {

using checkpoint::StoredTensor;

constexpr std::string_view kHeads = "n_head";  // metadata key

[[noreturn]] void refuse_gpt2(const WeightFiles& files, const std::string& what) {
  throw DataError(files.path().string() + " is not a GPT-2 that fits: " + what);
}

const StoredTensor& matrix(const WeightFiles& files, const std::string& name) {
  const auto found = files.tensors().find(name);
  if (found == files.tensors().end()) refuse_gpt2(files, "'" + name + "' is missing");
  const StoredTensor& tensor = *found->second;
  if (tensor.shape.size() != 2 || tensor.shape[0] < 1 || tensor.shape[1] < 1)
    refuse_gpt2(files, "'" + tensor.name + "' is not a matrix");
  return tensor;
}

// As the metadata says, which we write.
std::optional<int64_t> heads_inside(const WeightFiles& files) {
  const auto stored = files.metadata().find(kHeads);
  if (stored == files.metadata().end()) return std::nullopt;
  int64_t heads = 0;
  const char* end = stored->second.data() + stored->second.size();
  const auto [rest, error] = std::from_chars(stored->second.data(), end, heads);
  if (error != std::errc() || rest != end || heads < 1)
    refuse_gpt2(files, "its metadata says n_head = " + stored->second);
  return heads;
}

}  // namespace

FoundSizes sizes_of(const WeightFiles& files, const std::optional<HeadsSaid>& said) {
  const StoredTensor& wte = matrix(files, "wte.weight");
  const StoredTensor& wpe = matrix(files, "wpe.weight");
  Gpt2Config config{.n_layer = 0,
                    .n_head = std::max<int64_t>(1, wte.shape[1] / 64),
                    .n_embd = wte.shape[1],
                    .n_ctx = wpe.shape[0],
                    .vocab = wte.shape[0]};
  while (files.tensors().contains("h." + std::to_string(config.n_layer) + ".ln_1.weight"))
    ++config.n_layer;
  if (config.n_layer == 0) refuse_gpt2(files, "'h.0.ln_1.weight' is missing");
  const std::optional<int64_t> inside = heads_inside(files);
  FUSEDBUN_REQUIRE(!inside || !said || *inside == said->heads, ConfigError,
                   said->by + " = " + std::to_string(said->heads) + ": " + files.path().string() +
                       " has " + std::to_string(*inside));
  const bool is_known = inside || said;
  if (is_known) config.n_head = inside ? *inside : said->heads;
  if (config.n_embd % config.n_head != 0) {
    refuse_gpt2(files,
                "a width of " + std::to_string(config.n_embd) + " does not divide by " +
                    std::to_string(config.n_head) +
                    (is_known ? " heads" : " heads of about 64; --heads says how many it has"));
  }
  return {config, !is_known};
}

checkpoint::Metadata metadata_of(const CausalLm& model) {
  const auto* const gpt2 = dynamic_cast<const Gpt2Impl*>(&model);
  if (gpt2 == nullptr) return {};
  return {{std::string(kHeads), std::to_string(gpt2->config().n_head)}};
}

}  // namespace fusedbun::model
