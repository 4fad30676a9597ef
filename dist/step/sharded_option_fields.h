#pragma once
// Every field of ShardedOptions with its name, in one list, and whether the ranks must agree on it.
//
// Invariant: the list is complete. A field that is added to ShardedOptions and not here does not compile.
// Thread safety: functions without state.
#include <string>
#include <vector>

#include "fusedbun/dist/step/sharded_fusedbun.h"

namespace fusedbun {

enum class FieldScope : uint8_t {
  job,   ///< decides which collectives are called or what scales a step: equal on all ranks
  rank,  ///< each rank's own affair
};

/// Calls `visit(name, field, scope)` for every field.
template <class Visit>
void visit_sharded_options(const ShardedOptions& options, Visit&& visit) {
  // One name for each field: the compiler counts them.
  const auto& [min_rows_per_rank, bucket_bytes, in_place_bytes, max_grad_norm,
               clip_by_previous_norm, gradient_divisor, dynamic_loss_scale, gradient_wire,
               update_wire, transport, step_in_backward, host_window, release, broadcast_parameters,
               trace, notice] = options;
  visit("min_rows_per_rank", min_rows_per_rank, FieldScope::job);
  visit("bucket_bytes", bucket_bytes, FieldScope::job);
  visit("in_place_bytes", in_place_bytes, FieldScope::job);
  visit("max_grad_norm", max_grad_norm, FieldScope::job);
  visit("clip_by_previous_norm", clip_by_previous_norm, FieldScope::job);
  visit("gradient_divisor", gradient_divisor, FieldScope::job);
  visit("dynamic_loss_scale", dynamic_loss_scale, FieldScope::job);
  visit("gradient_wire", gradient_wire, FieldScope::job);
  visit("update_wire", update_wire, FieldScope::job);
  visit("transport", transport, FieldScope::job);
  visit("step_in_backward", step_in_backward, FieldScope::job);
  visit("host_window", host_window, FieldScope::job);
  visit("release", release, FieldScope::job);
  visit("broadcast_parameters", broadcast_parameters, FieldScope::job);
  visit("trace", trace, FieldScope::rank);
  visit("notice", notice, FieldScope::rank);
}

/// "name = value" for each field on which the ranks must agree, in the order of the list: what they compare before the first
/// step.
std::vector<std::string> describe_for_start(const ShardedOptions& options);

}  // namespace fusedbun
