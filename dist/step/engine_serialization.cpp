// The optimizer's state leaves and comes back: for checkpoints, which any number of ranks may read (state_to_save, restore),
// and in a LibTorch archive of this rank's shard, which is read back under the same plan only (save, load).
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <c10/core/DeviceGuard.h>
#include <torch/serialize/archive.h>

#include <cmath>
#include <limits>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/step/engine.h"

namespace fusedbun {
ShardedFusedbun::ReplicatedState StepEngine::state_to_save() {
  const c10::DeviceGuard on_device(model_.device);
  at::NoGradGuard no_grad;
  ShardedFusedbun::ReplicatedState state;
  guarded([&] {
    // Compares the headers of the last step: ranks that have diverged do not save.
    agree_on_call(plan::OptimizerCall::save);
    hear(/*all=*/true);
    update_.absorb_columns();
    for (ParameterMatrix& matrix : model_.matrices) matrix.refresh();
    state = {
        .job_step = model_.job_step,
        .skipped_steps = consensus_.skipped_steps(),
        .step_counts = update_.step_counts(),
        .sums_of_squares = sums_of_squares(),
        .groups = model_.all_group_options(),
        .gradient_norm = previous_norm(),
        .loss_scale = loss_scaler_.rules() ? std::optional(loss_scaler_.state()) : std::nullopt,
        .changes = consensus_.saved_changes()};
    // The next step would add the values up anew, and so shall the one after a load.
    for (size_t p = 0; p < model_.matrices.size(); ++p) {
      if (model_.matrices[p].foreign_write() == TensorSnapshot::Difference::none) continue;
      state.sums_of_squares[p] = std::numeric_limits<double>::quiet_NaN();
    }
  });
  return state;
}

std::vector<double> StepEngine::sums_of_squares() {
  std::vector<double> sums = update_.sums_of_squares();
  if (!update_.steps_on_device()) return sums;
  for (double& sum : sums) sum = std::abs(sum);  // a NaN without its sign
  // Every owner of some rows knows the sum of all; as integers, because floats that are not negative order as their bits.
  const std::span<int64_t> bits(reinterpret_cast<int64_t*>(sums.data()), sums.size());
  control_stream_->all_reduce(comm::Buffer::of(bits), comm::ReduceOp::max).wait();
  return sums;
}

double StepEngine::previous_norm() {
  if (!sharded_.clip_by_previous_norm) return 0;
  if (!update_.steps_on_device()) return previous_.norm;
  const double own =
      device_->under_way().read_squares(device_api_of(model_.device).current_stream());
  return consensus_.global_norm(own) / previous_.divisor;
}

void StepEngine::restore_previous_norm(double norm) {
  if (!sharded_.clip_by_previous_norm) return;
  previous_ = {.norm = norm};
  if (!update_.steps_on_device()) return;
  // The ranks add theirs up.
  device_->under_way().set_squares(model_.rank == 0 ? norm * norm : 0,
                                   device_api_of(model_.device).current_stream());
}

void StepEngine::restore(
    const ShardedFusedbun::ReplicatedState& state,
    const std::function<void(const ShardedFusedbun::OwnedRows& rows)>& read_rows) {
  const c10::DeviceGuard on_device(model_.device);
  at::NoGradGuard no_grad;
  FUSEDBUN_REQUIRE(!consensus_.has_control(), ConfigError,
                   "a checkpoint is loaded before the job serves its control plane, so that "
                   "changes go on where they were: call job.resume() before job.serve()");
  guarded([&] {
    agree_on_call(plan::OptimizerCall::load);
    hear(/*all=*/true);
    drop_begun_backward();
    return_to_replicas();
    comm::rethrow_on_all_ranks(*control_stream_, [&] {
      for (const ShardedFusedbun::OwnedRows& rows : update_.owned_rows()) read_rows(rows);
    });
    gather_parameters();
    consensus_.restore(state.job_step, state.skipped_steps, state.changes);
    update_.restore(state.step_counts, state.sums_of_squares);
    restore_previous_norm(state.gradient_norm);
    if (state.loss_scale) loss_scaler_.restore(*state.loss_scale);
    for (size_t g = 0; g < state.groups.size(); ++g) model_.group_options(g) = state.groups[g];
    finished_at_ = -1;
  });
}

void StepEngine::save(torch::serialize::OutputArchive& archive) {
  const c10::DeviceGuard on_device(model_.device);
  at::NoGradGuard no_grad;
  hear(/*all=*/true);
  archive.write("plan", c10::IValue(static_cast<int64_t>(plan::digest(model_.plan))));
  archive.write("rank", c10::IValue(static_cast<int64_t>(model_.rank)));
  for (size_t g = 0; g < model_.groups.size(); ++g) {
    torch::serialize::OutputArchive group;
    model_.groups[g].options().serialize(group);
    archive.write("group." + std::to_string(g), group);
  }
  // Of this rank alone, which the same rank reads back.
  const double squares =
      sharded_.clip_by_previous_norm && update_.steps_on_device()
          ? device_->under_way().read_squares(device_api_of(model_.device).current_stream())
          : 0;
  archive.write("previous_norm", at::tensor({previous_.norm, previous_.divisor, squares}),
                /*is_buffer=*/true);
  if (loss_scaler_.rules()) {
    const LossScaleState& scale = loss_scaler_.state();
    archive.write(
        "loss_scale",
        at::tensor({static_cast<double>(scale.scale), static_cast<double>(scale.good_steps),
                    static_cast<double>(scale.skipped_in_a_row)}),
        /*is_buffer=*/true);
  }
  consensus_.save(archive);
  update_.save(archive);
}

void StepEngine::load(torch::serialize::InputArchive& archive) {
  const c10::DeviceGuard on_device(model_.device);
  at::NoGradGuard no_grad;
  hear(/*all=*/true);
  finish_previous();
  c10::IValue plan_digest, rank;
  archive.read("plan", plan_digest);
  archive.read("rank", rank);
  const std::string here = "rank " + std::to_string(model_.rank) + ": ";
  FUSEDBUN_REQUIRE(
      plan_digest.toInt() == static_cast<int64_t>(plan::digest(model_.plan)) &&
          rank.toInt() == model_.rank,
      DataError,
      here + "the saved state is that of rank " + std::to_string(rank.toInt()) +
          " under a plan of its own; it is read back by the same rank of the same model and world "
          "size");
  // Everything is read and compared before anything is changed.
  std::vector<Options> saved;
  for (size_t g = 0; g < model_.groups.size(); ++g) {
    torch::serialize::InputArchive group;
    archive.read("group." + std::to_string(g), group);
    FusedbunOptions options(model_.group_options(g));
    options.serialize(group);
    const std::string different = structural_difference(options.values(), model_.group_options(g));
    FUSEDBUN_REQUIRE(different.empty(), DataError,
                     here + "the state of parameter group " + std::to_string(g) +
                         " was saved under other structural options (" + different +
                         "): make the optimizer with the options of the save");
    saved.push_back(options.values());
  }
  consensus_.load(archive);
  update_.load(archive);
  at::Tensor previous;
  if (archive.try_read("previous_norm", previous, /*is_buffer=*/true)) {
    const double* const saved_norm = previous.const_data_ptr<double>();
    previous_ = {.norm = saved_norm[0], .divisor = saved_norm[1]};
    if (update_.steps_on_device())
      device_->under_way().set_squares(saved_norm[2],
                                       device_api_of(model_.device).current_stream());
  }
  if (at::Tensor scale; archive.try_read("loss_scale", scale, /*is_buffer=*/true)) {
    const double* const saved_scale = scale.const_data_ptr<double>();
    loss_scaler_.restore({.scale = static_cast<float>(saved_scale[0]),
                          .good_steps = static_cast<int64_t>(saved_scale[1]),
                          .skipped_in_a_row = static_cast<int64_t>(saved_scale[2])});
  }
  is_loaded_ = true;
  for (size_t g = 0; g < saved.size(); ++g) model_.group_options(g) = saved[g];
}

}  // namespace fusedbun
