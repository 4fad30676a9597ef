#pragma once
// GradientBucket: the gradients and new rows of some parameters, on their way between the ranks.
//
// The engine uses this interface alone; plan::choose_transport says which of the three it gets:
//   CollectiveBucket    (collective_bucket.h)      reduce-scatter and all-gather of one piece of memory per bucket: GPUs
//   PointToPointBucket  (point_to_point_bucket.h)  messages from and to the tensors themselves: CPUs
//   SharedMemoryBucket  (shared_memory_bucket.h)   the ranks of one host read one another's memory
//
// One step of a bucket, on every rank:
//   add_gradient or add_zero_gradient, for each parameter, once or more   the last one counts
//   start_grad_sync, wait                                                 again, with a larger round, if gradients were added again
//   reduce_and_norm                                                       if gradients are clipped, after the last sync
//   reduced_gradients, rows_to_step                                       read and written by the update
//   start_update_sync, release_gradients, wait, relay_rows, wait,
//   finish_param_sync                                                     or, where the step is skipped, release_gradients alone
// Rows that no step has written (a restored checkpoint's) travel with start_param_sync in place of start_update_sync.
//
// Invariant: on CPUs the sum has the same bits in all three. Gradients are taken in the parameter's type (one of another type is
// converted to it) and added up in rank order in the arithmetic's type: float64 for float64 parameters, else float32.
//
// Thread safety: none; the engine holds its lock.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "fusedbun/core/gpu/step_table.h"
#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/plan/shard_plan.h"
#include "fusedbun/dist/step/parameter_matrix.h"

namespace fusedbun {

class GradientBucket {
 public:
  virtual ~GradientBucket() = default;
  GradientBucket(const GradientBucket&) = delete;  // peers write to and read from its memory

  /// Takes a gradient (any floating point type and strides, the parameter's shape), in place of what the parameter had in this step;
  /// of a parameter that is spread over several buckets the rows that travel in this one.
  /// Called before start_grad_sync or after its Work was waited for. The bucket keeps a reference or a copy: the gradient must not be
  /// written before release_gradients(), except to be added again. Returns on CPUs whether every g·g of them is finite; on a GPU true: the
  /// device tests them on their way (StepControl::nonfinite).
  virtual bool add_gradient(int parameter, const at::Tensor& gradient) = 0;
  /// The same with a gradient of zeros.
  virtual void add_zero_gradient(int parameter) = 0;

  /// Sends the gradients of all parameters. Collective. `round` counts all rounds of the job from 1 on and only grows.
  virtual comm::Work start_grad_sync(uint32_t round) = 0;
  /// The gradients [rows, m] of a segment of this rank, to be added up in this order; all of one type. After start_grad_sync's Work.
  virtual std::vector<at::Tensor> reduced_gradients(const plan::Segment& own) const = 0;
  /// On a GPU: where its kernels read that gradient.
  virtual device::Gradient gradient_on_device(const plan::Segment& own) const;
  /// The 2-norm of the sum over this rank's portion. From then on reduced_gradients returns that sum. After the last sync of a step. On a
  /// GPU the squares are added on the device (StepsUnderWay::squares), and 0 is returned.
  virtual double reduce_and_norm() = 0;
  /// On a GPU: looks at the gradients of this step once more, whether every g·g is finite. On CPUs add_gradient has told.
  virtual void test_gradients() {}
  /// Lets references to gradients go. After start_grad_sync's Work.
  virtual void release_gradients() {}

  /// What a step changes of float32 rows travels rounded to bfloat16, and every rank adds the same to the rows that it has.
  virtual bool rounds_updates() const { return false; }
  /// Where the update of a segment of this rank finds its old values and leaves the new ones: in `rows`, the parameter's own, or, if
  /// updates are rounded, in a copy of them.
  virtual at::Tensor rows_to_step(const plan::Segment&, const at::Tensor& rows) { return rows; }

  /// Sends this rank's rows from `matrices` (by parameter), and receives the others' rows, of parameters that were `used`. Collective;
  /// `round` is that of the last start_grad_sync.
  virtual comm::Work start_param_sync(std::span<const ParameterMatrix> matrices,
                                      const std::vector<bool>& used, uint32_t round) = 0;
  /// The same with what the update left in rows_to_step(). Where updates are rounded, this rank's rows are complete when it returns.
  virtual comm::Work start_update_sync(std::span<const ParameterMatrix> matrices,
                                       const std::vector<bool>& used, uint32_t round) {
    return start_param_sync(matrices, used, round);
  }
  /// Passes on what has come from another host to the ranks of this one, and receives what they pass on. Collective. After the Work of the
  /// two above; nothing to wait for where rows go straight to every rank.
  virtual comm::Work relay_rows(std::span<const ParameterMatrix>, const std::vector<bool>&) {
    return {};
  }
  /// Takes what arrived in the bucket's own memory into `matrices`. After the Works of the three above.
  virtual void finish_param_sync(std::span<ParameterMatrix> matrices,
                                 const std::vector<bool>& used) = 0;

  /// Until its next start_grad_sync this rank does something else (`call`), for which it may need the others: peers that wait for its
  /// gradients through the bucket's memory fail with comm::RankAsideError.
  virtual void step_aside(const std::string&) noexcept {}
  /// This rank cannot go on: peers that wait for it through the bucket's memory fail.
  virtual void abandon() noexcept {}

 protected:
  GradientBucket(const plan::Bucket& bucket, int rank);

  /// Segment bucket_.segments[rank][index].
  struct SegmentPlace {
    int rank;
    size_t index;
  };
  /// All segments of a parameter in this bucket, in rank order.
  const std::vector<SegmentPlace>& segments_of(int parameter) const {
    return segments_of_.at(parameter);
  }

  /// Where a segment of this rank stands in bucket_.segments[rank_].
  size_t index_of(const plan::Segment& own) const;

  const plan::Bucket bucket_;
  const int rank_;

 private:
  std::map<int, std::vector<SegmentPlace>> segments_of_;  ///< by parameter
};

/// The type of the bucket's parameters, and the one in which their gradients are added up.
at::ScalarType parameter_type(const plan::Bucket& bucket);
at::ScalarType sum_type(const plan::Bucket& bucket);

/// A gradient as buckets take it: contiguous, of the parameters' type; itself if it is that already.
at::Tensor as_taken(const plan::Bucket& bucket, const at::Tensor& gradient);

/// The elements of a segment in the parameter's whole gradient; both one-dimensional.
at::Tensor elements_of(const at::Tensor& flat, const RowRange& range);

}  // namespace fusedbun
