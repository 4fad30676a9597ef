// What the ranks must do together or not at all: the calls of the optimizer, their errors, and its end.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/core/segment_step.h"
#include "fusedbun/dist/comm/host_window.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/plan/hex.h"
#include "fusedbun/dist/step/engine.h"

namespace fusedbun {
namespace {

// On any device, and waits for it.
bool is_finite_squared(const at::Tensor& gradient) {
  const at::Tensor wide = gradient.detach().to(arithmetic_type(gradient.scalar_type()));
  return at::isfinite(wide.square()).all().item<bool>();
}

}  // namespace

// An error that is not the same on all ranks leaves them out of step: nothing in flight can be waited for, and the others
// are told.
void StepEngine::guarded(const std::function<void()>& action) {
  FUSEDBUN_REQUIRE(
      !is_broken_, ConfigError,
      "the optimizer was used after an error that left the ranks out of step: end this "
      "process, and start the job again from its last checkpoint");
  refused_ = false;
  const c10::DeviceGuard on_device(model_.device);
  try {
    action();
  } catch (const std::exception& error) {
    if (!refused_) break_off(error.what());
    throw;
  }
}

void StepEngine::break_off(const std::string& reason) noexcept {
  is_broken_ = true;
  for (const auto& bucket : model_.buckets) bucket->abandon();
  const std::string told = "rank " + std::to_string(model_.rank) + " left its step: " + reason;
  gradient_stream_->abort(told);
  control_stream_->abort(told);
}

plan::RankFacts StepEngine::facts_of(plan::OptimizerCall call) const {
  return {.equal = {.call = call,
                    .job_step = model_.job_step,
                    .passes = 0,
                    .divisor = sharded_.gradient_divisor.value_or(0),
                    .max_grad_norm = consensus_.max_grad_norm()},
          .used = std::vector<bool>(model_.registered.size()),
          .dirty = std::vector<bool>(model_.buckets.size())};
}

plan::Agreement StepEngine::agree(const StepOptions& options) {
  std::string problem = changes_.problem_of_groups();
  if (problem.empty()) problem = collector_.problem();
  if (collector_.in_no_sync()) {
    problem = "step() was called under no_sync(): leave the guard's scope before";
  }
  if (!(options.loss_scale > 0) || !std::isfinite(options.loss_scale)) {
    problem = "loss_scale = " + std::to_string(options.loss_scale) + ": it is a number above 0";
  } else if (options.loss_scale != 1 && sharded_.step_in_backward) {
    problem =
        "loss_scale = " + std::to_string(options.loss_scale) +
        ": step_in_backward has written the parameters before step() tells the scale; turn it "
        "off, or set gradient_divisor";
  }
  if (options.loss_scale != 1 && sharded_.dynamic_loss_scale) {
    problem = "loss_scale = " + std::to_string(options.loss_scale) +
              " was given to step(), which knows the scale: with dynamic_loss_scale give the loss "
              "to scale_loss() alone";
  }
  const bool has_gradients = std::ranges::any_of(collector_.used(), std::identity{});
  if (problem.empty()) problem = loss_scaler_.problem(model_.all_group_options(), has_gradients);
  ProgramChanges::Events events = sharded_.step_in_backward ? std::exchange(writes_in_backward_, {})
                                                            : changes_.find_writes(problem);
  for (int p = 0; p < model_.parameter_count(); ++p) {
    const at::Tensor& diagonal = update_.hessian_diagonal(p);
    if (!diagonal.defined()) continue;
    std::string& event = events[model_.name(p)];
    event += (event.empty() ? "got" : " and got") + std::string(" a Hessian diagonal (values ") +
             plan::to_hex(sampled_hash(diagonal)) + ")";
  }
  plan::RankFacts facts = facts_of(plan::OptimizerCall::step);
  facts.equal.writes = ProgramChanges::hash(events);
  const ProgramChanges::Events unfrozen = changes_.unfrozen();
  facts.equal.unfrozen = ProgramChanges::hash(unfrozen);
  events.insert(unfrozen.begin(), unfrozen.end());
  if (!unfrozen.empty() && sharded_.step_in_backward && problem.empty()) {
    problem = "parameter '" + unfrozen.begin()->first +
              "' was unfrozen, which step_in_backward cannot take in: make a new optimizer";
  }
  if (!sharded_.gradient_divisor) facts.equal.passes = collector_.passes();
  facts.equal.loss_scale = options.loss_scale * scale_on_host();
  facts.nonfinite = collector_.nonfinite() || own_device_is_nonfinite();
  facts.used = collector_.used();
  facts.dirty = collector_.dirty();

  progress_.enter(plan::Phase::agreement);
  StepConsensus::Outcome outcome = consensus_.agree(facts, problem, events);
  if (!outcome.refusal.empty()) refuse(outcome);
  if (facts.equal.passes > 1) {
    say_once(said_passes_, "the summed gradient is divided by ranks x " +
                               std::to_string(facts.equal.passes) +
                               " backward passes: a loss that is divided by the number of "
                               "micro-batches as well is divided twice");
  }
  if (unfrozen.empty()) return outcome.agreement;
  adopt_unfrozen();
  collector_.collect();
  return agree(options);
}

void StepEngine::agree_on_call(plan::OptimizerCall call) {
  finish_previous();
  if (sharded_.step_in_backward) say_where_backward_waits(call);
  const StepConsensus::Outcome outcome = consensus_.agree(facts_of(call), {}, {});
  if (!outcome.refusal.empty()) refuse(outcome);
}

// Another rank may wait for this one's gradients in the middle of a backward pass, where no agreement is heard.
void StepEngine::say_where_backward_waits(plan::OptimizerCall call) {
  for (const auto& bucket : model_.buckets) {
    bucket->step_aside(std::string(plan::name_of(call)) + " was called after step " +
                       std::to_string(model_.job_step));
  }
  // In the host window it comes to the agreement then; over messages this barrier stands where it has an exchange.
  if (!shares_memory_) gradient_stream_->barrier(current_stream(model_.device)).wait();
}

void StepEngine::wait_for_gradients(int bucket) {
  try {
    progress_.wait(collector_.sync(bucket), plan::Phase::reduce_scatter, bucket);
  } catch (const comm::RankAsideError& aside) {
    // With step_in_backward: it waits in an agreement about another call, and there both hear who called what.
    const auto outcome = consensus_.agree(facts_of(plan::OptimizerCall::backward), {}, {});
    throw ConfigError(outcome.refusal.empty() ? aside.what() : outcome.refusal);
  }
}

void StepEngine::refuse(const StepConsensus::Outcome& outcome) {
  // Parameters were written already under step_in_backward, so the ranks cannot go back.
  if (!outcome.out_of_step && !sharded_.step_in_backward) {
    drop_gradients();
    forget_gradients();
    update_.drop_hessian_diagonals();
    progress_.enter(plan::Phase::forward_backward);
    refused_ = true;
  }
  comm::wait_until_all_have_heard(*control_stream_);
  throw ConfigError(outcome.refusal);
}

double StepEngine::gradient_divisor() const {
  return sharded_.gradient_divisor.value_or(static_cast<double>(model_.world_size) *
                                            static_cast<double>(collector_.passes()));
}

// Some rank's gradients changed after they had left. All ranks send the union of these buckets again, whatever each one's
// number of passes, so the exchanges match.
void StepEngine::send_dirty_again(const std::vector<bool>& dirty) {
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) {
    if (!dirty[bucket]) continue;
    wait_for_gradients(
        bucket);  // its memory is free for new gradients once every rank has what was sent first
    collector_.take_again(bucket);
    start_grad_sync(bucket);
    say_once(
        said_cost_of_dirty_,
        "gradients changed after they had been sent (another backward pass, zero_grad), so their "
        "buckets travel twice: run passes whose gradients do not count under no_sync()");
  }
  if (device_ == nullptr || !std::ranges::any_of(dirty, std::identity{})) return;
  // As in own_device_is_nonfinite().
  device_->under_way().forget_gradients(device_api_of(model_.device).current_stream());
  if (!update_.steps_on_device()) return;
  for (const auto& bucket : model_.buckets) bucket->test_gradients();
}

// A GPU whose kernels step the rows keeps it to itself; else the host asks, and waits.
bool StepEngine::own_device_is_nonfinite() {
  if (!model_.on_gpu() || update_.steps_on_device()) return false;
  const CudaStream stream = device_api_of(model_.device).current_stream();
  const std::vector<bool>& dirty = collector_.dirty();
  bool finite = true;
  if (std::ranges::any_of(dirty, std::identity{})) {
    // What it has found so far is of gradients that do not count any more, too; those that do are taken after the agreement.
    device_->under_way().forget_gradients(stream);
    for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) {
      if (!dirty[bucket]) {
        model_.buckets[bucket]->test_gradients();
        continue;
      }
      for (const int parameter : model_.plan.buckets[bucket].parameters) {
        const at::Tensor& gradient = model_.registered[parameter].tensor.grad();
        finite = finite && (!gradient.defined() || is_finite_squared(gradient));
      }
    }
  }
  const bool is_found = device_->under_way().read_own(stream).nonfinite > 0;  // and forgotten
  return !finite || is_found;
}

// A GPU whose kernels step the rows knows the dynamic scale alone.
double StepEngine::scale_on_host() const {
  return update_.steps_on_device() ? 1 : loss_scaler_.state().scale;
}

ShardUpdate::GradientScaling StepEngine::scale_gradients(const StepOptions& options) {
  ShardUpdate::GradientScaling scaling{
      .divisor = gradient_divisor() * options.loss_scale * scale_on_host(),
      .loss_scale = sharded_.dynamic_loss_scale};
  scaling.norm_divisor = scaling.divisor;
  if (!update_.steps_on_device()) outcome_.norm = 0;
  if (consensus_.max_grad_norm() == 0 || sharded_.step_in_backward) return scaling;
  scaling.max_norm = consensus_.max_grad_norm();
  double own_squares = 0;
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) {
    wait_for_gradients(bucket);
    const double norm = model_.buckets[bucket]->reduce_and_norm() / scaling.divisor;
    own_squares += norm * norm;
  }
  if (update_.steps_on_device()) return scaling;
  if (model_.on_gpu()) {
    const CudaStream stream = device_api_of(model_.device).current_stream();
    own_squares = device_->under_way().read_own(stream).squares / scaling.divisor / scaling.divisor;
  }
  progress_.enter(plan::Phase::agreement);
  outcome_.norm = consensus_.global_norm(own_squares);
  scaling.clip = plan::clip_factor(outcome_.norm, consensus_.max_grad_norm());
  return scaling;
}

void StepEngine::say_once(bool& said, const std::string& sentence) const {
  if (!said && sharded_.notice) sharded_.notice(sentence);
  said = true;
}

void StepEngine::finish() {
  // The destructor calls it again.
  if (finished_at_ == model_.job_step && collector_.last_started() < 0) return;
  at::NoGradGuard no_grad;
  guarded([&] {
    agree_on_call(plan::OptimizerCall::finish);
    drop_begun_backward();
    hear(/*all=*/true);
    if (model_.on_gpu()) {  // its memory may go then
      DeviceApi& api = device_api_of(model_.device);
      api.record(api.current_stream())->wait();
    }
    progress_.enter(plan::Phase::idle);
  });
  finished_at_ = model_.job_step;
}

// Its exchanges are in flight, with each rank at another bucket.
void StepEngine::drop_begun_backward() {
  const int last = consensus_.highest(collector_.last_started());
  collector_.start_through(last);
  for (int bucket = 0; bucket <= last; ++bucket) wait_for_gradients(bucket);
  forget_gradients();
  if (last >= 0) restore_previous_norm(0);  // some of its squares were added already
}

void StepEngine::forget_gradients() {
  collector_.forget_step();
  if (device_ != nullptr)
    device_->under_way().forget_gradients(device_api_of(model_.device).current_stream());
}

StepEngine::~StepEngine() {
  try {
    if (is_broken_) {
      // Everything in flight was given up.
    } else if (std::uncaught_exceptions() == 0) {
      finish();
    } else if (!refused_) {
      // An error of this rank alone. After a refusal, which all ranks have heard, nothing is in flight.
      break_off("an error ended it");
    }
  } catch (const std::exception&) {
    // A peer is gone; the caller of step() has been told, and a destructor cannot throw.
  }
}

}  // namespace fusedbun
