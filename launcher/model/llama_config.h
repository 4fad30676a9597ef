#pragma once
// The sizes and rules of a model of the Llama family: Llama 2 and 3, Mistral, Qwen2, Qwen3, which differ in flags alone.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <vector>

namespace fusedbun::model {

/// How the angles of rotary positions are stretched for contexts longer than those of pretraining; the names are Hugging Face's.
struct RopeScaling {
  enum class Rule : uint8_t {
    none,    ///< "default"
    linear,  ///< positions divided by `factor` (Chen et al., 2023)
    llama3,  ///< low frequencies alone, with a smooth passage (Llama 3.1)
    yarn,    ///< by frequency, and attention sharpened (Peng et al., 2023)
  };
  Rule rule = Rule::none;
  double factor = 1;
  int64_t original_context = 0;  ///< llama3, yarn: positions of pretraining
  double low_frequency = 1;      ///< llama3
  double high_frequency = 4;     ///< llama3
  double beta_fast = 32;         ///< yarn
  double beta_slow = 1;          ///< yarn
  bool truncates = true;         ///< yarn: the passage begins and ends at whole frequencies
  double attention_factor = 1;   ///< yarn: cosine and sine are multiplied by it

  bool operator==(const RopeScaling&) const = default;
};

struct LlamaConfig {
  int64_t layers = 4;
  int64_t width = 128;
  int64_t mlp_width = 352;
  int64_t heads = 4;
  int64_t kv_heads = 4;     ///< divides heads
  int64_t head_width = 32;  ///< even
  int64_t context = 128;    ///< the longest sequence
  int64_t vocab = 256;
  double norm_epsilon = 1e-5;
  double rope_theta = 10000;
  RopeScaling rope = {};
  bool qkv_bias = false;     ///< Qwen2
  bool output_bias = false;  ///< of attention
  bool mlp_bias = false;
  bool qk_norm = false;  ///< Qwen3: queries and keys are normalised per head
  bool tied = false;     ///< the output layer is the embedding
  /// A position sees so many, itself among them, in the layers that `is_windowed` names; 0: all before it.
  int64_t window = 0;
  std::vector<bool> is_windowed = {};  ///< [layer]; empty: none
  double initial_deviation = 0.02;     ///< of weights drawn from a seed
  double attention_dropout = 0;        ///< in training (dropout_rates.h)

  bool operator==(const LlamaConfig&) const = default;
};

/// Throws ConfigError naming the first value that cannot be.
void validate(const LlamaConfig& config);

/// 1 / wavelength of each pair of a head, in radians per position, [head_width / 2]: RoFormer's (Su et al., 2021), scaled.
std::vector<double> rotary_frequencies(const LlamaConfig& config);

}  // namespace fusedbun::model
