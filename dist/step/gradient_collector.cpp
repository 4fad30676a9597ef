#include "fusedbun/dist/step/gradient_collector.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <sstream>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/step/step_trace.h"
#include "fusedbun/dist/step/tensor_kernels.h"

namespace fusedbun {

class GradientCollector::AfterAccumulation : public torch::autograd::PostAccumulateGradHook {
 public:
  AfterAccumulation(GradientCollector& collector, int parameter)
      : collector_(collector), parameter_(parameter) {}
  void operator()(const at::Tensor& tensor) override {
    const c10::DeviceGuard on_device(tensor.device());
    collector_.after_accumulation(parameter_, tensor);
  }

 private:
  GradientCollector& collector_;  // outlives the hook: its destructor takes its hooks off
  int parameter_;
};

/// Which graph tasks ran inside which others. Autograd numbers each call of backward(), a call inside a backward pass too, and
/// does not tell whose part it is. But a task is destroyed where it was called, and there the task around it is the current one: so
/// each task is given a callback to keep, whose end asks for the current task.
///
/// Thread safety: any thread.
class GradientCollector::Nesting : public std::enable_shared_from_this<Nesting> {
 public:
  /// Called inside of a backward pass: it will be known of the current task which one it is a part of.
  void watch_current() {
    {
      const std::lock_guard lock(mutex_);
      if (!watched_.insert(current()).second) return;
    }
    torch::autograd::Engine::get_default_engine().queue_callback(
        [end = std::make_shared<End>(shared_from_this(), current())] {});
  }

  /// The pass that the program has called and that `task` is a part of, or is. The pass is over.
  int outermost(int task) const {
    const std::lock_guard lock(mutex_);
    for (auto outer = outer_.find(task); outer != outer_.end(); outer = outer_.find(task)) {
      task = outer->second;
    }
    return task;
  }

  /// No pass is under way.
  void forget() {
    const std::lock_guard lock(mutex_);
    watched_.clear();
    outer_.clear();
  }

 private:
  static constexpr int kNone = -1;
  static int current() { return torch::autograd::get_current_graph_task_id(); }

  struct End {
    End(std::shared_ptr<Nesting> nesting_, int task_) : nesting(std::move(nesting_)), task(task_) {}
    End(const End&) = delete;  // one per task
    ~End() { nesting->ended(task); }
    std::shared_ptr<Nesting> nesting;
    int task;
  };

  void ended(int task) {
    const int around = current();
    if (around == kNone || around == task) return;
    {
      const std::lock_guard lock(mutex_);
      outer_[task] = around;
    }
    watch_current();  // it may be nested itself
  }

  mutable std::mutex mutex_;
  std::set<int> watched_;
  std::map<int, int> outer_;  ///< task -> the one that it was called in
};

GradientCollector::GradientCollector(const ShardedOptions& options, ShardedModel& model,
                                     std::function<void(int bucket)> start)
    : options_(options),
      model_(model),
      start_(std::move(start)),
      order_(model.plan),
      nesting_(std::make_shared<Nesting>()) {}

GradientCollector::~GradientCollector() {
  for (size_t p = 0; p < hook_positions_.size(); ++p) {
    model_.registered[p].tensor.remove_hook(hook_positions_[p]);
    torch::autograd::impl::set_post_acc_grad_hooks(model_.registered[p].tensor, nullptr);
  }
}

void GradientCollector::extend() {
  const size_t first = hook_positions_.size(), count = model_.registered.size();
  seen_.resize(count);
  standing_.resize(count);
  stands_unguarded_.resize(count);
  taken_.resize(count);
  has_gradient_.resize(count);
  for (size_t p = finite_.size(); p < count; ++p) {
    finite_.emplace_back(model_.plan.buckets_of[p].size(), true);
  }
  stale_.resize(count);
  set_by_hand_.resize(count);
  was_unfrozen_.resize(count);
  dirty_.resize(model_.plan.buckets.size());
  syncs_.resize(model_.plan.buckets.size());
  order_.extend(model_.plan);
  for (size_t p = first; p < count; ++p) {
    const at::Tensor& tensor = model_.registered[p].tensor;
    const int parameter = static_cast<int>(p);
    hook_positions_.push_back(tensor.register_hook([this, parameter](const at::Tensor&) {
      const c10::DeviceGuard on_device(model_.device);
      before_accumulation(parameter);
    }));
    torch::autograd::impl::set_post_acc_grad_hooks(
        tensor, std::make_unique<AfterAccumulation>(*this, parameter));
  }
}

void GradientCollector::note_unfrozen(int first) {
  std::fill(was_unfrozen_.begin() + first, was_unfrozen_.end(), true);
}

// ---- during backward ---------------------------------------------------------------------------

// What stood in p.grad before this pass adds to it? Optimizer::zero_grad is not virtual, so its work is recognised by
// what it leaves: nothing, or zeros in a tensor that the program wrote.
void GradientCollector::before_accumulation(int parameter) {
  const std::lock_guard lock(mutex_);
  if (options_.release == GradientRelease::in_hook && order_.is_ready(parameter)) return;
  forget_zeroed(parameter);
}

void GradientCollector::forget_zeroed(int parameter) {
  const at::Tensor& gradient = model_.registered[parameter].tensor.grad();
  if (!gradient.defined()) return forget_passes(parameter);
  const auto& [tensor, version] = seen_[parameter];
  const bool untouched = tensor == gradient.unsafeGetTensorImpl() && version == gradient._version();
  if (!untouched && is_all_zero(gradient)) forget_passes(parameter);
}

void GradientCollector::forget_zeroed() {
  for (int p = 0; p < model_.parameter_count(); ++p) {
    if (!order_.is_ready(p)) forget_zeroed(p);
  }
}

void GradientCollector::forget_passes(int parameter) {
  standing_[parameter].clear();
  stands_unguarded_[parameter] = false;
}

void GradientCollector::count_pass(int parameter) {
  if (no_sync_depth_ == 0) {
    stands_unguarded_[parameter] = true;
    return;
  }
  const int pass = torch::autograd::get_current_graph_task_id();
  // The newest is the likeliest.
  const auto known = std::find(guarded_passes_.rbegin(), guarded_passes_.rend(), pass);
  auto index = static_cast<size_t>(guarded_passes_.rend() - known) - 1;
  if (known == guarded_passes_.rend()) {
    index = guarded_passes_.size();
    guarded_passes_.push_back(pass);
    nesting_->watch_current();
  }
  std::vector<bool>& standing = standing_[parameter];
  standing.resize(std::max(standing.size(), index + 1));
  standing[index] = true;
}

void GradientCollector::after_accumulation(int parameter, const at::Tensor& tensor) {
  const std::lock_guard lock(mutex_);
  if (model_.plan.buckets_of[parameter].empty()) return;
  const at::Tensor& gradient = tensor.grad();
  count_pass(parameter);
  seen_[parameter] = {gradient.unsafeGetTensorImpl(), gradient._version()};
  if (order_.is_ready(parameter)) {
    const bool used_up = options_.release == GradientRelease::in_hook || options_.step_in_backward;
    if (used_up) {
      return note_problem(
          "parameter '" + model_.name(parameter) +
          "' got a second gradient in one step, but the first was used up in its hook: run all "
          "backward passes but the last before a step under no_sync(), or, if one pass gives it "
          "two "
          "(it is in two blocks that are recomputed by activation checkpointing), turn off " +
          (options_.step_in_backward ? "step_in_backward" : "GradientRelease::in_hook"));
    }
    // The bucket may be on its way with what stood here before; step() sends it again if it is.
    stale_[parameter] = true;
    taken_[parameter] = TensorSnapshot(gradient, TensorSnapshot::Sampling::nonzero);
    return;
  }
  if (no_sync_depth_ > 0) return;
  take(parameter, gradient);
  if (options_.release == GradientRelease::in_hook) tensor.mutable_grad().reset();
}

void GradientCollector::take(int parameter, const at::Tensor& gradient) {
  if (!is_takeable(parameter, gradient)) return;
  const plan::BucketRange& buckets = model_.plan.buckets_of[parameter];
  // Converted once, and not by each bucket.
  const at::Tensor taken = as_taken(model_.plan.buckets[buckets.begin], gradient);
  for (int bucket = buckets.begin; bucket < buckets.end; ++bucket) {
    add_to_bucket(parameter, bucket, taken);
  }
  stale_[parameter] = false;
  has_gradient_[parameter] = true;
  taken_[parameter] = TensorSnapshot(gradient, TensorSnapshot::Sampling::nonzero);
  start(order_.ready(parameter));
}

bool GradientCollector::is_takeable(int parameter, const at::Tensor& gradient) {
  if (gradient.layout() != at::kStrided) {
    note_problem("parameter '" + model_.name(parameter) +
                 "' has a sparse gradient: Fusedbun takes dense ones");
    return false;
  }
  const at::IntArrayRef shape = model_.plan.parameters[parameter].shape;
  if (gradient.sizes() != shape ||
      gradient.device() != model_.registered[parameter].tensor.device()) {
    std::ostringstream text;
    text << "the gradient of parameter '" << model_.name(parameter) << "' has the shape "
         << gradient.sizes() << " on " << gradient.device() << ", but the parameter had " << shape
         << " on " << model_.device << " when the optimizer was made: make a new optimizer";
    note_problem(text.str());
    return false;
  }
  return true;
}

void GradientCollector::add_to_bucket(int parameter, int bucket, const at::Tensor& gradient) {
  at::NoGradGuard no_grad;
  const auto begin = comm::Clock::now();
  finite_[parameter][bucket - model_.plan.buckets_of[parameter].begin] =
      model_.buckets[bucket]->add_gradient(parameter, gradient);
  if (options_.trace != nullptr) {
    options_.trace->add({.name = "take gradient",
                         .bucket = bucket,
                         .job_step = model_.job_step,
                         .begin = begin,
                         .end = comm::Clock::now()});
  }
}

void GradientCollector::start(const std::vector<int>& buckets) {
  for (const int bucket : buckets) {
    for (const int parameter : model_.plan.buckets[bucket].parameters) {
      if (!has_gradient_[parameter]) {
        model_.buckets[bucket]->add_zero_gradient(parameter);
      } else if (stale_[parameter]) {  // a later pass came before the bucket was full
        add_to_bucket(parameter, bucket, model_.registered[parameter].tensor.grad());
        stale_[parameter] = !is_last_of(parameter, bucket);
      }
    }
    start_(bucket);
  }
}

// The buckets of a spread parameter follow one another and are full at the same moment, so they start together.
bool GradientCollector::is_last_of(int parameter, int bucket) const {
  return bucket + 1 == model_.plan.buckets_of[parameter].end;
}

void GradientCollector::start_sync(int bucket) {
  Sync& sync = syncs_[bucket];
  ++sync.round;
  sync.exchange = {model_.buckets[bucket]->start_grad_sync(sync.round), comm::Clock::now()};
}

// ---- in step() ---------------------------------------------------------------------------------

void GradientCollector::collect() {
  for (int p = 0; p < model_.parameter_count(); ++p) collect_parameter(p);
  start(order_.flush());
}

void GradientCollector::collect_parameter(int parameter) {
  if (model_.plan.buckets_of[parameter].empty()) return;
  const at::Tensor& gradient = model_.registered[parameter].tensor.grad();
  if (order_.is_ready(parameter)) return compare_with_taken(parameter, gradient);
  forget_zeroed(parameter);
  if (!gradient.defined()) return;
  const bool is_explained = !standing_[parameter].empty() || stands_unguarded_[parameter];
  set_by_hand_[parameter] = !is_explained && !was_unfrozen_[parameter];
  take(parameter, gradient);
}

void GradientCollector::compare_with_taken(int parameter, const at::Tensor& gradient) {
  const plan::BucketRange& buckets = model_.plan.buckets_of[parameter];
  const bool has_started = order_.has_left(buckets.begin);
  if (options_.release == GradientRelease::in_hook) {
    // What step() itself took still stands there; it may look twice.
    const bool is_new = taken_[parameter].difference(gradient) != TensorSnapshot::Difference::none;
    if (gradient.defined() && is_new && problem_.empty()) {
      note_problem("p.grad of parameter '" + model_.name(parameter) +
                   "' was set after its hook had used up its gradient: with "
                   "GradientRelease::in_hook the hook's gradient counts");
    }
    return;
  }
  bool is_stale = stale_[parameter];
  if (!gradient.defined()) {  // thrown away: as if no pass had reached it
    forget_passes(parameter);
    has_gradient_[parameter] = false;
    is_stale = true;
  } else if (taken_[parameter].difference(gradient) != TensorSnapshot::Difference::none) {
    if (is_all_zero(gradient)) {
      forget_passes(parameter);
    } else if (has_started) {
      return note_problem(
          "the gradient of parameter '" + model_.name(parameter) +
          "' was written after backward() had sent it to the other ranks: clip with "
          "ShardedOptions::max_grad_norm, unscale with step({.loss_scale = s}), scale with "
          "gradient_divisor or the loss; or run every backward pass under no_sync() and write "
          "p.grad before step()");
    }
    is_stale = true;
  }
  if (!is_stale) return;
  if (options_.step_in_backward) {
    return note_problem("the gradient of parameter '" + model_.name(parameter) +
                        "' was dropped after step_in_backward had used it");
  }
  stale_[parameter] = true;
  if (!has_started) return;
  for (int bucket = buckets.begin; bucket < buckets.end; ++bucket) dirty_[bucket] = true;
  // It is taken after the agreement, which must know this before.
  if (has_gradient_[parameter] && is_takeable(parameter, gradient)) {
    finite_[parameter].assign(buckets.size(),
                              model_.on_gpu() || squares_are_finite(gradient.contiguous()));
  }
}

void GradientCollector::take_again(int bucket) {
  for (const int parameter : model_.plan.buckets[bucket].parameters) {
    if (!stale_[parameter]) continue;
    stale_[parameter] = !is_last_of(parameter, bucket);
    if (has_gradient_[parameter]) {
      add_to_bucket(parameter, bucket, model_.registered[parameter].tensor.grad());
    } else {
      model_.buckets[bucket]->add_zero_gradient(parameter);
    }
  }
}

// Zeros would stand for a gradient that another rank may have; only an agreement could tell.
void GradientCollector::require_all_gradients(int bucket) const {
  for (const int parameter : model_.plan.buckets[bucket].parameters) {
    FUSEDBUN_REQUIRE(has_gradient_[parameter], ConfigError,
                     "step_in_backward needs a gradient for every parameter in every step, and '" +
                         model_.name(parameter) + "' had none on rank " +
                         std::to_string(model_.rank) + ": freeze it, or turn step_in_backward off");
  }
}

void GradientCollector::start_through(int last) {
  while (last_started() < last) start({order_.flush_one()});
}

bool GradientCollector::nonfinite() const {
  for (size_t p = 0; p < finite_.size(); ++p) {
    if (has_gradient_[p] && !std::ranges::all_of(finite_[p], std::identity{})) return true;
  }
  return false;
}

int64_t GradientCollector::passes() const {
  std::set<int> standing;
  bool unguarded = false;
  for (size_t p = 0; p < standing_.size(); ++p) {
    for (size_t pass = 0; pass < standing_[p].size(); ++pass) {
      if (standing_[p][pass]) standing.insert(nesting_->outermost(guarded_passes_[pass]));
    }
    unguarded = unguarded || stands_unguarded_[p];
  }
  const auto guarded = std::ssize(standing);
  if (guarded == 0) return 1;
  // A gradient set by hand beside accumulated ones is a pass that autograd did not run.
  for (size_t p = 0; p < set_by_hand_.size() && !unguarded; ++p) {
    unguarded = set_by_hand_[p] && !is_all_zero(model_.registered[p].tensor.grad());
  }
  return guarded + (unguarded ? 1 : 0);
}

void GradientCollector::note_problem(const std::string& sentence) {
  if (problem_.empty()) problem_ = sentence;
}

void GradientCollector::forget_step() {
  const size_t count = model_.registered.size();
  order_.begin_step(model_.plan);
  has_gradient_.assign(count, false);
  for (std::vector<bool>& finite : finite_) finite.assign(finite.size(), true);
  stale_.assign(count, false);
  set_by_hand_.assign(count, false);
  was_unfrozen_.assign(count, false);
  dirty_.assign(model_.plan.buckets.size(), false);
  problem_.clear();
}

void GradientCollector::end_step() {
  if (options_.release != GradientRelease::never) {
    for (RegisteredParameter& parameter : model_.registered)
      parameter.tensor.mutable_grad().reset();
    for (std::vector<bool>& standing : standing_) standing.clear();
    stands_unguarded_.assign(stands_unguarded_.size(), false);
    guarded_passes_.clear();
    nesting_->forget();
  }
  forget_step();
}

}  // namespace fusedbun
