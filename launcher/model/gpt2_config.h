#pragma once
// The sizes of a GPT-2, and how it is trained.
//
// Thread safety: a value.
#include <cstdint>

#include "fusedbun/launcher/model/dropout_rates.h"

namespace fusedbun::model {

struct Gpt2Config {
  int64_t n_layer = 4;
  int64_t n_head = 4;
  int64_t n_embd = 128;  ///< width, a multiple of n_head
  int64_t n_ctx = 128;   ///< positions: the longest sequence
  int64_t vocab = 256;   ///< token ids; 256: bytes
  /// Of weights drawn from a seed; those of layers that end in the residual stream are smaller (gpt2.h).
  double initial_deviation = 0.02;
  DropoutRates dropout = {};  ///< attn_pdrop, embd_pdrop, resid_pdrop

  bool operator==(const Gpt2Config&) const = default;
};

/// Throws ConfigError naming the first value that cannot be: below 1, or a width that the heads do not divide.
void validate(const Gpt2Config& config);

}  // namespace fusedbun::model
