#pragma once
// Whether a checkpoint fits an optimizer, and what of it can be taken if it does not fit as a whole.
//
// Thread safety: pure functions of values.
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "fusedbun/core/options.h"
#include "fusedbun/dist/checkpoint/manifest.h"
#include "fusedbun/dist/plan/parameter_spec.h"

namespace fusedbun::snapshot {

struct Compatibility {
  std::vector<bool> fits;  ///< [parameter] it is in the checkpoint, with this shape, type and view
  /// One sentence each, without an end: what differs between the checkpoint and the optimizer.
  std::vector<std::string> differences;
  bool groups_fit = true;  ///< as many groups, with the same structural options
};
Compatibility compare(const checkpoint::Manifest& saved,
                      std::span<const plan::ParameterSpec> parameters,
                      std::span<const Options> groups);

/// The first few of `differences`, and how many more there are.
std::string listed(std::span<const std::string> differences);

}  // namespace fusedbun::snapshot
