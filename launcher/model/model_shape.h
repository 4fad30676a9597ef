#pragma once
// What decides the memory that a model takes, for all architectures alike.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <vector>

#include "fusedbun/launcher/model/hf_config.h"

namespace fusedbun::model {

struct ModelShape {
  int64_t layers = 0;
  int64_t width = 0;
  int64_t heads = 0;
  int64_t query_width = 0;  ///< of all heads together
  int64_t kv_width = 0;
  int64_t mlp_width = 0;
  bool is_gated = false;  ///< the MLP has a gate: two matrices in
  int64_t vocab = 0;
  int64_t positions = 0;  ///< rows of a learned embedding of positions; 0: rotary
  bool is_tied = true;
};

/// While the loss is computed, logits of so many bytes, in float32, are there at once (cross_entropy.h).
constexpr int64_t kLogitBytes = 64 << 20;

ModelShape shape_of(const ModelConfig& config);

/// Elements of each matrix of a block.
std::vector<int64_t> block_matrices(const ModelShape& shape);
/// Elements of a block's norms and of GPT-2's biases; those of Llama's are left out.
int64_t block_vector_elements(const ModelShape& shape);

}  // namespace fusedbun::model
