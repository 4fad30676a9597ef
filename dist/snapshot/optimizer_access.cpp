#include "fusedbun/dist/snapshot/optimizer_access.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "fusedbun/core/error.h"

namespace fusedbun::snapshot {
namespace {

class ShardedAccess final : public OptimizerAccess {
 public:
  explicit ShardedAccess(ShardedFusedbun& optimizer) : optimizer_(optimizer) {
    parameters_ = optimizer.shard_plan().parameters;
    for (size_t p = 0; p < parameters_.size(); ++p) {
      tensors_.push_back(optimizer.parameter(static_cast<int>(p)));
    }
  }

  std::vector<Options> group_options() const override {
    std::vector<Options> options;
    for (const auto& group : optimizer_.param_groups()) {
      options.push_back(static_cast<const FusedbunOptions&>(group.options()).values());
    }
    return options;
  }
  ReplicatedState state_to_save() override { return optimizer_.state_to_save(); }
  std::vector<OwnedRows> owned_rows() override { return optimizer_.owned_rows(); }
  void restore(const ReplicatedState& state,
               const std::function<void(const OwnedRows& rows)>& read_rows) override {
    optimizer_.restore(state, read_rows);
  }

 private:
  ShardedFusedbun& optimizer_;
};

/// One process: every row is here. The state of a parameter is made by its first step; before it there is none to save, and it is
/// saved as the zeros that the step would make.
class PlainAccess final : public OptimizerAccess {
 public:
  explicit PlainAccess(Fusedbun& optimizer) : optimizer_(optimizer) {
    const auto& groups = optimizer.param_groups();
    for (size_t g = 0; g < groups.size(); ++g) {
      const auto& tensors = groups[g].params();
      for (size_t i = 0; i < tensors.size(); ++i) {
        if (!tensors[i].requires_grad()) continue;
        parameters_.push_back({.name = "group" + std::to_string(g) + "." + std::to_string(i),
                               .shape = tensors[i].sizes().vec(),
                               .type = element_type(tensors[i].scalar_type()),
                               .group = static_cast<int>(g),
                               .matrix_view = options_of(groups[g]).matrix_view});
        tensors_.push_back(tensors[i]);
      }
    }
  }

  std::vector<Options> group_options() const override {
    std::vector<Options> options;
    for (const auto& group : optimizer_.param_groups()) options.push_back(options_of(group));
    return options;
  }

  ReplicatedState state_to_save() override {
    ReplicatedState saved{.job_step = optimizer_.job_step(),
                          .skipped_steps = optimizer_.skipped_steps(),
                          .step_counts = {},
                          .sums_of_squares = {},
                          .groups = group_options(),
                          .gradient_norm = 0,
                          .loss_scale = {},
                          .changes = {}};
    saved.changes.overrides.lr_pin.resize(saved.groups.size());
    for (const torch::Tensor& tensor : tensors_) {
      const FusedbunParamState* state = find(tensor);
      const int64_t t = state != nullptr ? state->step : 0;
      saved.step_counts.push_back(t);
      // What a GPU keeps is added up anew.
      const bool known = state != nullptr && !state->squares.on_device.defined() &&
                         state->squares.of.difference(tensor) == TensorSnapshot::Difference::none;
      saved.sums_of_squares.push_back(known ? state->squares.sum
                                            : std::numeric_limits<double>::quiet_NaN());
    }
    return saved;
  }

  std::vector<OwnedRows> owned_rows() override {
    at::NoGradGuard no_grad;
    std::vector<OwnedRows> owned;
    unstepped_.clear();
    unstepped_.reserve(tensors_.size());  // `state` points into it
    for (size_t p = 0; p < tensors_.size(); ++p) {
      const RowRange range = parameters_[p].all_rows();
      if (range.elements() == 0) continue;
      const torch::Tensor values =
          tensors_[p].detach().contiguous().view({range.rows(), range.columns});
      FusedbunParamState* state = find(tensors_[p]);
      const Options options = group_options()[static_cast<size_t>(parameters_[p].group)];
      if (state != nullptr) fit_segment_state(values, options, state->segment);
      SegmentState& segment =
          state != nullptr ? state->segment
                           : unstepped_.emplace_back(make_segment_state(values, range, options));
      owned.push_back({.parameter = static_cast<int>(p),
                       .name = parameters_[p].name,
                       .range = range,
                       .values = values,
                       .state = &segment,
                       .t = state != nullptr ? state->step : 0});
    }
    return owned;
  }

  void restore(const ReplicatedState& saved,
               const std::function<void(const OwnedRows& rows)>& read_rows) override {
    at::NoGradGuard no_grad;
    optimizer_.set_step_counts(saved.job_step, saved.skipped_steps);
    for (size_t g = 0; g < saved.groups.size(); ++g) {
      static_cast<FusedbunOptions&>(optimizer_.param_groups()[g].options()).values() =
          saved.groups[g];
    }
    optimizer_.state().clear();
    for (OwnedRows& rows : owned_rows()) {
      read_rows(rows);
      const auto p = static_cast<size_t>(rows.parameter);
      torch::Tensor& tensor = tensors_[p];
      if (!tensor.is_contiguous()) tensor.detach().copy_(rows.values.view(tensor.sizes()));
      if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
      if (saved.step_counts[p] == 0) continue;
      auto state = std::make_unique<FusedbunParamState>();
      state->step = saved.step_counts[p];
      state->segment = *rows.state;
      if (!std::isnan(saved.sums_of_squares[p])) {
        state->squares = {
            saved.sums_of_squares[p], TensorSnapshot(tensor, TensorSnapshot::Sampling::few), {}};
      }
      optimizer_.state()[tensor.unsafeGetTensorImpl()] = std::move(state);
    }
  }

 private:
  static const Options& options_of(const torch::optim::OptimizerParamGroup& group) {
    return static_cast<const FusedbunOptions&>(group.options()).values();
  }
  FusedbunParamState* find(const torch::Tensor& tensor) {
    const auto found = optimizer_.state().find(tensor.unsafeGetTensorImpl());
    return found == optimizer_.state().end()
               ? nullptr
               : static_cast<FusedbunParamState*>(found->second.get());
  }

  Fusedbun& optimizer_;
  std::vector<SegmentState> unstepped_;
};

}  // namespace

void OptimizerAccess::adopt_names_of(const torch::nn::Module* model) {
  if (model == nullptr) return;
  std::unordered_map<const void*, std::string> names;
  for (const auto& item : model->named_parameters()) {
    names.emplace(item.value().unsafeGetTensorImpl(), item.key());
  }
  for (size_t p = 0; p < tensors_.size(); ++p) {
    const auto found = names.find(tensors_[p].unsafeGetTensorImpl());
    FUSEDBUN_REQUIRE(found != names.end(), ConfigError,
                     "the optimizer's parameter '" + parameters_[p].name +
                         "' is none of the model's: give the checkpoint the model that is trained");
    parameters_[p].name = found->second;
  }
}

std::unique_ptr<OptimizerAccess> open_optimizer(const CheckpointContents& contents) {
  std::unique_ptr<OptimizerAccess> access = std::visit(
      [](auto* optimizer) -> std::unique_ptr<OptimizerAccess> {
        FUSEDBUN_REQUIRE(optimizer != nullptr, ConfigError,
                         "a checkpoint needs an optimizer: CheckpointContents{.optimizer = &...}");
        if constexpr (std::is_same_v<decltype(optimizer), ShardedFusedbun*>) {
          return std::make_unique<ShardedAccess>(*optimizer);
        } else {
          return std::make_unique<PlainAccess>(*optimizer);
        }
      },
      contents.optimizer);
  access->adopt_names_of(contents.model);
  return access;
}

}  // namespace fusedbun::snapshot
