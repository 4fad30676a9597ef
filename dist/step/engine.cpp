// The order of one step. Each phase stands where it stands for a reason, which is said there.
#include "fusedbun/dist/step/engine.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <bit>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/step/step_trace.h"

namespace fusedbun {

void StepEngine::step(const StepOptions& options) {
  FUSEDBUN_REQUIRE(!collector_.in_no_sync(), ConfigError,
                   "step() was called under no_sync(): leave the guard's scope before");
  guarded([&] { perform_step(options); });
}

void StepEngine::perform_step(const StepOptions& options) {
  at::NoGradGuard no_grad;
  // First what the last step left: changed hyperparameters hold from here on, and rows need the columns. With
  // step_in_backward this step is under way already, and bucket 0 has done it.
  if (!sharded_.step_in_backward) finish_previous();
  // All buckets leave before anybody waits for one: a rank that waits earlier may wait for a rank that waits for it.
  collector_.collect();
  // The agreement comes before the first write, so a step is done or refused on all ranks together.
  const plan::Agreement agreement = agree(options);
  send_dirty_again(agreement.dirty);
  const ShardUpdate::GradientScaling scaling = scale_gradients(options);
  const bool skip = agreement.nonfinite &&
                    std::ranges::any_of(model_.all_group_options(), [](const Options& group) {
                      return group.nonfinite == Nonfinite::skip;
                    });
  if (skip) {
    drop_gradients();
  } else {
    if (!sharded_.step_in_backward) begin_update(agreement.used, scaling);
    // In the plan's order: a bucket's new rows travel while the next one is stepped.
    while (updated_buckets_ < model_.bucket_count()) update_bucket(updated_buckets_);
    finish_update();
  }
  updated_buckets_ = 0;
  // Header and columns leave last and are read in the next step, so nobody waits for them.
  const uint64_t scaled_by[] = {std::bit_cast<uint64_t>(scaling.divisor),
                                std::bit_cast<uint64_t>(consensus_.max_grad_norm())};
  board_.set_state_digest(
      consensus_.close_step(gradient_norm_, scaled_by, update_.step_counts(), skip));
  collector_.end_step();
  enter(plan::Phase::forward_backward);
}

void StepEngine::finish_previous() {
  enter(plan::Phase::step_message);
  consensus_.finish_previous();
  update_.absorb_columns();
}

// Called from hooks during backward, and from collect().
void StepEngine::on_bucket_full(int bucket) {
  if (sharded_.step_in_backward && bucket == 0) {
    finish_previous();
    std::string problem;
    writes_in_backward_ = changes_.find_writes(problem);
    FUSEDBUN_REQUIRE(problem.empty(), ConfigError, problem);
  }
  collector_.start_sync(bucket);
  if (sharded_.step_in_backward) update_previous_bucket(bucket);
}

// step_in_backward: bucket `started` has left, so the one before it is stepped meanwhile.
void StepEngine::update_previous_bucket(int started) {
  // Zeros would stand for a gradient that another rank may have; only an agreement could tell.
  for (const int parameter : model_.plan.buckets[started].parameters) {
    FUSEDBUN_REQUIRE(collector_.has_gradient(parameter), ConfigError,
                     "step_in_backward needs a gradient for every parameter in every step, and '" +
                         model_.name(parameter) + "' had none on rank " +
                         std::to_string(model_.rank) + ": freeze it, or turn step_in_backward off");
  }
  if (started == 0) {
    return begin_update(std::vector<bool>(model_.registered.size(), true),
                        {.divisor = gradient_divisor()});
  }
  update_bucket(started - 1);
  enter(plan::Phase::forward_backward);
}

// ---- gradients -----------------------------------------------------------------------------------

// Some rank's gradients changed after they had left. All ranks send the union of these buckets again, whatever each one's
// number of passes, so the exchanges match.
void StepEngine::send_dirty_again(const std::vector<bool>& dirty) {
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) {
    if (!dirty[bucket]) continue;
    wait_for_gradients(bucket);
    collector_.start_sync(bucket);
    say_once(
        said_cost_of_dirty_,
        "gradients changed after they had been sent (another backward pass, zero_grad), so their "
        "buckets travel twice: run passes whose gradients do not count under no_sync()");
  }
}

ShardUpdate::GradientScaling StepEngine::scale_gradients(const StepOptions& options) {
  ShardUpdate::GradientScaling scaling{.divisor = gradient_divisor() * options.loss_scale};
  gradient_norm_ = 0;
  if (consensus_.max_grad_norm() == 0 || sharded_.step_in_backward) return scaling;
  double own_squares = 0;
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) {
    wait_for_gradients(bucket);
    const double norm = model_.buckets[bucket]->reduce_and_norm() / scaling.divisor;
    own_squares += norm * norm;
  }
  enter(plan::Phase::agreement);
  gradient_norm_ = consensus_.global_norm(own_squares);
  scaling.clip = plan::clip_factor(gradient_norm_, consensus_.max_grad_norm());
  return scaling;
}

void StepEngine::drop_gradients() {
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) {
    wait_for_gradients(bucket);
    update_.release_gradients(bucket);
  }
}

// ---- the update ----------------------------------------------------------------------------------

void StepEngine::begin_update(const std::vector<bool>& used,
                              const ShardUpdate::GradientScaling& scaling) {
  follow_parameters();
  update_.begin(used, scaling, consensus_.effective_lr());
}

void StepEngine::update_bucket(int bucket) {
  wait_for_gradients(bucket);
  enter(plan::Phase::update, bucket);
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
      enter(plan::Phase::step_message);
      update_.absorb_columns();
      columns_are_here = true;
    }
    enter(plan::Phase::update, bucket);
    update_.finish_bucket(bucket);
    start_param_sync(bucket);
  }
  update_.send_squares();
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) {
    wait(param_syncs_[bucket].work, param_syncs_[bucket].started_at, plan::Phase::all_gather,
         bucket);
    model_.buckets[bucket]->finish_param_sync(model_.matrices, update_.used());
  }
  update_.end();
}

void StepEngine::start_param_sync(int bucket) {
  param_syncs_[bucket] = {model_.buckets[bucket]->start_param_sync(model_.matrices, update_.used(),
                                                                   collector_.sync(bucket).round),
                          comm::Clock::now()};
  update_.release_gradients(bucket);
}

// ---- waiting -------------------------------------------------------------------------------------

void StepEngine::wait_for_gradients(int bucket) {
  GradientCollector::Sync& sync = collector_.sync(bucket);
  wait(sync.work, sync.started_at, plan::Phase::reduce_scatter, bucket);
}

void StepEngine::wait(comm::Work& work, comm::Clock::time_point started_at, plan::Phase phase,
                      int bucket) {
  if (!work.pending()) return;
  enter(phase, bucket);
  if (sharded_.trace == nullptr || !model_.device.is_cpu()) return wait_for(work, model_.device);
  sharded_.trace->add({.track = StepTrace::Track::wire,
                       .name = plan::name_of(phase),
                       .bucket = bucket,
                       .job_step = model_.job_step,
                       .begin = started_at,
                       .end = work.wait()});
}

void StepEngine::enter(plan::Phase phase, int bucket) {
  board_.put({.job_step = model_.job_step, .phase = phase, .bucket = bucket});
  if (sharded_.trace != nullptr) sharded_.trace->enter(board_.position());
}

}  // namespace fusedbun
