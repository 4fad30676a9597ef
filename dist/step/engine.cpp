// The order of one step. Each phase stands where it stands for a reason, which is said there.
#include "fusedbun/dist/step/engine.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/plan/agreement.h"
#include "fusedbun/dist/step/device_bucket.h"

namespace fusedbun {

void StepEngine::step(const StepOptions& options) {
  guarded([&] { perform_step(options); });
}

void StepEngine::perform_step(const StepOptions& options) {
  at::NoGradGuard no_grad;
  // First complete the last step: changed hyperparameters hold from here on, and rows need the columns. With
  // step_in_backward this step has begun in the hooks, and bucket 0 has done it; a model without elements has none.
  const bool is_under_way = sharded_.step_in_backward && model_.bucket_count() > 0;
  if (!is_under_way) {
    finish_previous();
    follow_loaded();
  }
  hear(/*all=*/false);
  collector_.collect();
  // The agreement comes before the first wait, so a rank that does not step is named and not waited for, and before the first
  // write, so a step is done or refused on all ranks together.
  const plan::Agreement agreement = agree(options);
  send_dirty_again(agreement.dirty);
  const ShardUpdate::GradientScaling scaling = scale_gradients(options);
  // Where a GPU decides, it skips by itself what goes on here.
  const bool skip = agreement.nonfinite &&
                    std::ranges::any_of(model_.all_group_options(), [](const Options& group) {
                      return group.nonfinite == Nonfinite::skip;
                    });
  if (skip) {
    drop_gradients();
  } else {
    update_parameters(agreement.used, scaling, is_under_way);
  }
  if (sharded_.clip_by_previous_norm) close_norm(scaling.divisor);
  if (!update_.steps_on_device()) {
    tell({model_.job_step, outcome_.norm, skip}, loss_scaler_.state().scale);
    loss_scaler_.decide(skip);
  }
  // Header and columns are sent last and read in the next step, off the critical path.
  const uint64_t scaled_by[] = {std::bit_cast<uint64_t>(scaling.divisor),
                                std::bit_cast<uint64_t>(consensus_.max_grad_norm())};
  progress_.set_state_digest(consensus_.close_step(outcome_, scaled_by, update_.step_counts()));
  collector_.end_step();
  loss_scaler_.end_step();
  update_.drop_hessian_diagonals();
  if (consensus_.is_to_hold()) {
    progress_.enter(plan::Phase::paused);
    consensus_.hold();
  }
  progress_.enter(plan::Phase::forward_backward);
}

void StepEngine::update_parameters(const std::vector<bool>& used,
                                   const ShardUpdate::GradientScaling& scaling, bool is_under_way) {
  if (!is_under_way) begin_update(used, scaling);
  // In the plan's order: a bucket's new rows are sent while the next one is stepped.
  while (updated_buckets_ < model_.bucket_count()) update_bucket(updated_buckets_);
  finish_update();
  updated_buckets_ = 0;
}

void StepEngine::hear(bool all) {
  if (!update_.steps_on_device()) return;
  outcome_ = {};
  for (const DeviceUpdate::Heard& step : update_.hear(all)) {
    tell({step.job_step, step.outcome.norm, step.outcome.skip != 0}, step.outcome.loss_scaled_by);
    loss_scaler_.hear(step.outcome.loss_scale);
  }
}

void StepEngine::tell(const StepConsensus::StepOutcome& outcome, float loss_scaled_by) {
  constexpr size_t kKept = 64;
  outcome_ = outcome;
  if (outcome.skipped) consensus_.count_skipped();
  if (outcomes_.size() == kKept) outcomes_.erase(outcomes_.begin());
  outcomes_.push_back({outcome.job_step, outcome.skipped, outcome.norm, loss_scaled_by});
}

void StepEngine::finish_previous() {
  progress_.enter(plan::Phase::step_message);
  consensus_.finish_previous();
  update_.absorb_columns();
}

// Called from hooks during backward, and from collect().
void StepEngine::on_bucket_full(int bucket) {
  try {
    if (sharded_.step_in_backward && bucket == 0) {
      finish_previous();
      follow_loaded();
      std::string problem;
      writes_in_backward_ = changes_.find_writes(problem);
      FUSEDBUN_REQUIRE(problem.empty(), ConfigError, problem);
    }
    start_grad_sync(bucket);
    if (sharded_.step_in_backward) update_previous_bucket(bucket);
  } catch (const std::exception& error) {
    // It may leave through backward(), where nothing else tells the other ranks.
    break_off(error.what());
    throw;
  }
}

// step_in_backward: bucket `started` has left, so the one before it is stepped meanwhile.
void StepEngine::update_previous_bucket(int started) {
  collector_.require_all_gradients(started);
  if (started == 0) {
    collector_.forget_zeroed();
    return begin_update(std::vector<bool>(model_.registered.size(), true),
                        scaling_by_previous_norm());
  }
  update_bucket(started - 1);
  progress_.enter(plan::Phase::forward_backward);
}

// ---- gradients -----------------------------------------------------------------------------------

void StepEngine::drop_gradients() {
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) {
    wait_for_gradients(bucket);
    update_.release_gradients(bucket);
  }
}

// ---- the update ----------------------------------------------------------------------------------

void StepEngine::begin_update(const std::vector<bool>& used,
                              const ShardUpdate::GradientScaling& scaling) {
  if (update_.must_hear_before(used)) hear(/*all=*/true);
  follow_parameters();
  update_.begin(used, scaling, consensus_.effective_lr());
}

void StepEngine::update_bucket(int bucket) {
  wait_for_gradients(bucket);
  progress_.enter(plan::Phase::update, bucket);
  if (sharded_.clip_by_previous_norm) add_norm_of(bucket, gradient_divisor());
  update_.update_bucket(bucket);
  if (!update_.needs_columns_first(bucket)) start_param_sync(bucket);
  updated_buckets_ = bucket + 1;
}

void StepEngine::finish_update() {
  update_.send_columns();
  bool columns_are_here = false;
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) {
    if (!update_.needs_columns_first(bucket)) continue;
    if (!columns_are_here) {
      progress_.enter(plan::Phase::step_message);
      update_.absorb_columns();
      update_.prepare_finish();
      columns_are_here = true;
    }
    progress_.enter(plan::Phase::update, bucket);
    update_.finish_bucket(bucket);
    start_param_sync(bucket);
  }
  update_.send_squares();
  // While the first buckets are passed on among the ranks of a host, the last ones still come from other hosts.
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) relay_rows(bucket);
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) finish_param_sync(bucket);
  update_.end();
}

void StepEngine::start_grad_sync(int bucket) {
  free_slot_of(bucket);
  collector_.start_sync(bucket);
}

void StepEngine::start_param_sync(int bucket) {
  free_slot_of(bucket);
  rows_arrive_[bucket] = true;
  param_syncs_[bucket] = {model_.buckets[bucket]->start_update_sync(model_.matrices, update_.used(),
                                                                    collector_.round(bucket)),
                          comm::Clock::now()};
  update_.release_gradients(bucket);
}

void StepEngine::relay_rows(int bucket) {
  if (!rows_arrive_[bucket] || model_.on_gpu()) return;
  progress_.wait(param_syncs_[bucket], plan::Phase::all_gather, bucket);
  param_syncs_[bucket] = {model_.buckets[bucket]->relay_rows(model_.matrices, update_.used()),
                          comm::Clock::now()};
}

void StepEngine::finish_param_sync(int bucket) {
  if (!rows_arrive_[bucket]) return;
  rows_arrive_[bucket] = false;
  progress_.wait(param_syncs_[bucket], plan::Phase::all_gather, bucket);
  model_.buckets[bucket]->finish_param_sync(model_.matrices, update_.used());
}

void StepEngine::free_slot_of(int bucket) {
  if (!model_.on_gpu() || model_.world_size == 1) return;
  constexpr int kSlots = DeviceBucketRing::kSlots;
  for (int other = bucket % kSlots; other < model_.bucket_count(); other += kSlots) {
    if (other == bucket) continue;
    wait_for_gradients(other);
    finish_param_sync(other);
  }
}

// ---- clipping by the norm of the step before -----------------------------------------------------

ShardUpdate::GradientScaling StepEngine::scaling_by_previous_norm() const {
  ShardUpdate::GradientScaling scaling{.divisor = gradient_divisor()};
  if (!sharded_.clip_by_previous_norm) return scaling;
  scaling.max_norm = consensus_.max_grad_norm();
  scaling.norm_divisor = previous_.divisor;
  scaling.clip = plan::clip_factor(previous_.norm, scaling.max_norm);
  return scaling;
}

void StepEngine::add_norm_of(int bucket, double divisor) {
  const double norm = model_.buckets[bucket]->reduce_and_norm() / divisor;
  previous_.own_squares += norm * norm;
}

void StepEngine::close_norm(double divisor) {
  previous_.divisor = divisor;
  if (update_.steps_on_device()) return;  // the next step's decision makes a norm of its squares
  outcome_.norm = consensus_.max_grad_norm() > 0 ? previous_.norm : 0;
  double own_squares = std::exchange(previous_.own_squares, 0);
  if (model_.on_gpu()) {
    const CudaStream stream = device_api_of(model_.device).current_stream();
    own_squares = device_->under_way().read_own(stream).squares / divisor / divisor;
  }
  progress_.enter(plan::Phase::agreement);
  previous_.norm = consensus_.global_norm(own_squares);
}

}  // namespace fusedbun
