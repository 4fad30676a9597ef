#pragma once
// GradientCollector: from autograd to the buckets. It decides which gradient of a parameter counts, how many backward passes
// it is made of, and when a bucket's exchange starts.
//
// The rule: the gradient that is stepped is the one in p.grad when step() is called.
//   backward    a hook gives a finished gradient to its bucket; full buckets start in the plan's order while backward runs
//   again       another pass reaches a parameter whose bucket has started (a GAN's generator, two losses), or p.grad is
//               dropped or zeroed: the bucket is *dirty*, and step() sends the union of all ranks' dirty buckets again
//   by hand     a gradient that the program wrote after its bucket had started is refused: the other ranks have the old one,
//               and what is right for one rank's gradient (a clip) is not right for the average
//   no_sync     passes only accumulate in p.grad; the next pass outside, or step(), takes the sum
//   nested      a backward pass that runs inside another one is a part of it, however many there are: activation checkpointing
//               (torch.utils.checkpoint with use_reentrant=True) runs one for each block that it recomputes
// With GradientRelease::in_hook and with step_in_backward the hook's gradient is used up at once, so it is the one that counts,
// and a second one is refused.
//
// Hooks never throw for what the other ranks cannot see (a sparse gradient, a second one): problem() tells, and step() refuses
// on all ranks together.
//
// Thread safety: hooks may run on autograd's threads; everything else on the training thread, not during backward.
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "fusedbun/core/tensor_snapshot.h"
#include "fusedbun/dist/comm/work.h"
#include "fusedbun/dist/plan/bucket_launch_order.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"
#include "fusedbun/dist/step/sharded_model.h"
#include "fusedbun/dist/step/step_progress.h"

namespace fusedbun {

class GradientCollector {
 public:
  /// `start(bucket)` is called when a bucket is to be sent, in the plan's order, by whichever thread completes it; it calls
  /// start_sync(). The model outlives the collector.
  GradientCollector(const ShardedOptions& options, ShardedModel& model,
                    std::function<void(int bucket)> start);
  ~GradientCollector();
  GradientCollector(const GradientCollector&) = delete;  // hooks hold its address

  /// Takes in the parameters and buckets that were added to the model, also in the middle of a step.
  void extend();
  /// The parameters from `first` on were unfrozen since the last step: the passes in their p.grad ran before they had hooks, and
  /// are those that the other parameters' hooks have counted.
  void note_unfrozen(int first);

  void enter_no_sync() { ++no_sync_depth_; }
  void leave_no_sync() { --no_sync_depth_; }
  bool in_no_sync() const { return no_sync_depth_ > 0; }

  /// Looks at every p.grad, takes what no hook brought, starts the buckets that have not started, and notes which hold another
  /// gradient than p.grad. Waits for nobody. After it the next functions answer.
  void collect();
  bool nonfinite()
      const;  ///< a gradient of this rank has a NaN or inf in g·g; on a GPU the device knows
  const std::vector<bool>& used() const { return has_gradient_; }  ///< [parameter]
  const std::vector<bool>& dirty() const { return dirty_; }        ///< [bucket]
  /// Backward passes whose gradients stand in p.grad: those under no_sync(), and one for all outside of it; at least 1.
  int64_t passes() const;
  /// Asked in the middle of a backward pass, passes() would still count what was zeroed in parameters that the pass has not
  /// reached yet; after this it does not.
  void forget_zeroed();
  /// The first thing that all ranks must stop for, in one sentence; empty: none.
  const std::string& problem() const { return problem_; }

  bool has_gradient(int parameter) const { return has_gradient_[parameter]; }
  /// The last bucket whose exchange has started in this step; -1: none.
  int last_started() const { return order_.started() - 1; }
  /// Starts the buckets up to `last` that have not started, with zeros for what is missing.
  void start_through(int last);
  /// Starts the exchange of a bucket's gradients, or starts it again after the first was waited for.
  void start_sync(int bucket);
  /// What changed after the bucket had started; its exchange was waited for, and start_sync() follows.
  void take_again(int bucket);
  InFlight& sync(int bucket) { return syncs_[bucket].exchange; }
  /// Counts a bucket's exchanges of gradients from 1.
  uint32_t round(int bucket) const { return syncs_[bucket].round; }
  /// step_in_backward: throws ConfigError unless all parameters of the bucket have a gradient on this rank.
  void require_all_gradients(int bucket) const;

  /// The step is done or skipped: p.grad goes as ShardedOptions::release says.
  void end_step();
  /// The step was refused: p.grad stays, and the next step looks at it anew.
  void forget_step();

 private:
  class AfterAccumulation;
  class Nesting;
  struct Sync {
    InFlight exchange;
    uint32_t round = 0;
  };

  void before_accumulation(int parameter);
  void after_accumulation(int parameter, const at::Tensor& tensor);
  void count_pass(int parameter);
  void take(int parameter, const at::Tensor& gradient);
  bool is_takeable(int parameter, const at::Tensor& gradient);
  void add_to_bucket(int parameter, int bucket, const at::Tensor& gradient);
  void start(const std::vector<int>& buckets);
  bool is_last_of(int parameter, int bucket) const;
  void collect_parameter(int parameter);
  void compare_with_taken(int parameter, const at::Tensor& gradient);
  void note_problem(const std::string& sentence);
  void forget_passes(int parameter);
  void forget_zeroed(int parameter);

  const ShardedOptions& options_;
  ShardedModel& model_;
  const std::function<void(int)> start_;
  plan::BucketLaunchOrder order_;

  mutable std::mutex mutex_;  ///< guards what hooks touch
  int no_sync_depth_ = 0;
  std::vector<unsigned> hook_positions_;   ///< [parameter] of the hook before accumulation
  std::vector<bool> has_gradient_;         ///< [parameter] its buckets hold one, or will
  std::vector<std::vector<bool>> finite_;  ///< [parameter][its bucket]
  std::vector<bool> stale_;  ///< [parameter] its buckets hold another gradient than p.grad
  std::vector<bool> dirty_;  ///< [bucket] started with a gradient that is stale
  std::vector<TensorSnapshot> taken_;  ///< [parameter] p.grad when it was taken
  /// [parameter] p.grad after its last accumulation: the tensor (compared, never used) and its version.
  std::vector<std::pair<const void*, uint32_t>> seen_;
  /// Under no_sync, autograd's numbers of backward passes, of nested ones too; and [parameter] which of them stand in p.grad.
  std::vector<int> guarded_passes_;
  std::shared_ptr<Nesting> nesting_;  ///< which of them are parts of which
  std::vector<std::vector<bool>> standing_;
  std::vector<bool> stands_unguarded_;  ///< [parameter] a pass outside no_sync stands in p.grad
  std::vector<bool> set_by_hand_;       ///< [parameter] no pass that was seen explains p.grad
  std::vector<bool> was_unfrozen_;      ///< [parameter] since the last step
  std::vector<Sync> syncs_;             ///< [bucket]
  std::string problem_;
};

}  // namespace fusedbun
