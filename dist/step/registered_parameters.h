#pragma once
// The parameters an optimizer was given, as the engine keeps them: each tensor once, trainable,
// with a name.
//
// Invariants: 1. A tied parameter (the same tensor under two names) is one entry; the first name
// wins, the others are kept as aliases. 2. No two entries share memory. 3. Frozen parameters are
// not registered.
//
// Thread safety: values.
#include <ATen/core/Tensor.h>

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fusedbun/dist/plan/parameter_spec.h"

namespace fusedbun {

struct RegisteredParameter {
  std::string name;
  std::vector<std::string> aliases;
  at::Tensor tensor;
  int group = 0;

  plan::ParameterSpec spec() const;
};

using NamedTensor = std::pair<std::string, at::Tensor>;

/// The tensors of one group, each once: a tensor with several names (tied weights) has aliases.
struct Registration {
  std::vector<RegisteredParameter> trainable;
  std::vector<RegisteredParameter> frozen;  ///< require no gradient now; they may later
};

/// Registers `named`, in order, as group `group`. Throws ConfigError for a tensor that is in `present`: it would belong to two
/// groups.
Registration register_parameters(std::span<const NamedTensor> named, int group,
                                 std::span<const RegisteredParameter> present);

/// Throws ConfigError naming both if two parameters overlap in memory, or one is not a dense
/// floating point leaf.
void require_trainable(std::span<const RegisteredParameter> parameters);

}  // namespace fusedbun
