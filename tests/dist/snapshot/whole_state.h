#pragma once
// The state of a sharded optimizer put together by the simplest means: every rank lays the rows that it owns, element by
// element, into whole tensors. What any other number of ranks must have after a load.
#include <ATen/ATen.h>

#include <map>
#include <mutex>
#include <string>

#include "fusedbun/dist/step/sharded_fusedbun.h"

namespace fusedbun::testing {

class WholeState {
 public:
  /// Called by each rank with its own rows.
  void lay_in(const ShardedFusedbun& optimizer);
  /// What differs between the whole and one rank's rows, "p3: momentum_buffer"; empty: not a bit. Every row of the optimizer's
  /// own must be in the whole.
  std::string difference(const ShardedFusedbun& optimizer) const;
  /// The parameter has, to the bit, the values that the ranks laid in.
  bool has_values(const std::string& parameter, const at::Tensor& values) const;

 private:
  struct Key {
    std::string parameter, field;
    auto operator<=>(const Key&) const = default;
  };
  std::mutex mutex_;
  std::map<Key, at::Tensor> tensors_;  ///< [rows, ...], or [matrices, m] of columns
  std::map<std::string, int64_t> step_counts_;
};

}  // namespace fusedbun::testing
