#pragma once
// ShardedModel: what the parts of the engine share: the parameters, who owns which of their rows, how each is seen as a matrix,
// and the buckets in which gradients and rows travel.
//
// Invariants: 1. registered, matrices and plan.parameters have the same order. 2. Groups are appended; nothing moves or goes.
//
// Thread safety: none; written while groups are added, between two steps.
#include <torch/optim/optimizer.h>

#include <memory>
#include <vector>

#include "fusedbun/core/fusedbun.h"
#include "fusedbun/core/gpu/device_api.h"
#include "fusedbun/dist/plan/shard_plan.h"
#include "fusedbun/dist/step/device_stream.h"
#include "fusedbun/dist/step/gradient_bucket.h"
#include "fusedbun/dist/step/parameter_matrix.h"
#include "fusedbun/dist/step/placement.h"
#include "fusedbun/dist/step/registered_parameters.h"

namespace fusedbun {

struct ShardedModel {
  int rank = 0;
  int world_size = 1;
  Placement placement;  ///< everything is allocated there
  at::Device device = placement.device;
  int64_t job_step = 0;  ///< steps done, skipped ones too
  std::vector<torch::optim::OptimizerParamGroup>&
      groups;  ///< the optimizer's own; read at each step
  std::vector<RegisteredParameter> registered;
  plan::ShardPlan plan;
  std::vector<ParameterMatrix> matrices;
  std::vector<std::unique_ptr<GradientBucket>> buckets;

  /// Gradients, rows and state are a GPU's, and nothing waits for it.
  bool on_gpu() const { return has_device_api(device); }
  int parameter_count() const { return static_cast<int>(registered.size()); }
  int bucket_count() const { return static_cast<int>(buckets.size()); }
  const std::string& name(int parameter) const { return registered[parameter].name; }

  bool has_own_options(size_t group) const {
    return groups[group].has_options() &&
           dynamic_cast<const FusedbunOptions*>(&groups[group].options()) != nullptr;
  }
  /// The options of a group as the user and the schedule set them.
  Options& group_options(size_t group) const {
    return static_cast<FusedbunOptions&>(groups[group].options()).values();
  }
  const Options& options_of(int parameter) const {
    return group_options(static_cast<size_t>(registered[parameter].group));
  }
  std::vector<Options> all_group_options() const {
    std::vector<Options> options;
    for (size_t g = 0; g < groups.size(); ++g) options.push_back(group_options(g));
    return options;
  }
};

}  // namespace fusedbun
