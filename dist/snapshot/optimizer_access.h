#pragma once
// OptimizerAccess: a sharded and a plain optimizer as a checkpoint sees them: named parameters, the rows that are here with
// their state, and what is the same everywhere.
//
// Thread safety: one thread at a time.
#include <functional>
#include <memory>
#include <vector>

#include "fusedbun/dist/plan/parameter_spec.h"
#include "fusedbun/dist/snapshot/contents.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"

namespace fusedbun::snapshot {

class OptimizerAccess {
 public:
  using OwnedRows = ShardedFusedbun::OwnedRows;
  using ReplicatedState = ShardedFusedbun::ReplicatedState;

  virtual ~OptimizerAccess() = default;
  OptimizerAccess() = default;
  OptimizerAccess(const OptimizerAccess&) = delete;

  /// In order of registration, with the names of the model where there is one.
  const std::vector<plan::ParameterSpec>& parameters() const { return parameters_; }
  /// [parameter]
  const std::vector<torch::Tensor>& tensors() const { return tensors_; }
  virtual std::vector<Options> group_options() const = 0;
  /// Gives parameters the names that `model` has for the same tensors, a tied one its first. Null: they keep their own. Throws
  /// ConfigError for a parameter that is none of the model's.
  void adopt_names_of(const torch::nn::Module* model);

  /// As ShardedFusedbun's. An entry of sums_of_squares is NaN where the next step will add the values up anew.
  virtual ReplicatedState state_to_save() = 0;
  virtual std::vector<OwnedRows> owned_rows() = 0;
  virtual void restore(const ReplicatedState& state,
                       const std::function<void(const OwnedRows& rows)>& read_rows) = 0;

 protected:
  std::vector<plan::ParameterSpec> parameters_;
  std::vector<torch::Tensor> tensors_;
};

/// The contents outlive it. Throws ConfigError without an optimizer, and as adopt_names_of.
std::unique_ptr<OptimizerAccess> open_optimizer(const CheckpointContents& contents);

}  // namespace fusedbun::snapshot
