#include "fusedbun/launcher/model/model_shape.h"

namespace fusedbun::model {
namespace {

ModelShape of(const Gpt2Config& config) {
  return {.layers = config.n_layer,
          .width = config.n_embd,
          .heads = config.n_head,
          .query_width = config.n_embd,
          .kv_width = config.n_embd,
          .mlp_width = 4 * config.n_embd,
          .is_gated = false,
          .vocab = config.vocab,
          .positions = config.n_ctx,
          .is_tied = true};
}

ModelShape of(const LlamaConfig& config) {
  return {.layers = config.layers,
          .width = config.width,
          .heads = config.heads,
          .query_width = config.heads * config.head_width,
          .kv_width = config.kv_heads * config.head_width,
          .mlp_width = config.mlp_width,
          .is_gated = true,
          .vocab = config.vocab,
          .positions = 0,
          .is_tied = config.tied};
}

}  // namespace

ModelShape shape_of(const ModelConfig& config) {
  return std::visit([](const auto& sizes) { return of(sizes); }, config);
}

std::vector<int64_t> block_matrices(const ModelShape& shape) {
  const int64_t mlp = shape.mlp_width * shape.width;
  if (!shape.is_gated)
    return {3 * shape.query_width * shape.width, shape.query_width * shape.width, mlp, mlp};
  const int64_t queries = shape.query_width * shape.width, keys = shape.kv_width * shape.width;
  return {queries, keys, keys, queries, mlp, mlp, mlp};
}

int64_t block_vector_elements(const ModelShape& shape) {
  return shape.is_gated ? 2 * shape.width : 13 * shape.width;
}

}  // namespace fusedbun::model
