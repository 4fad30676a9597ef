#pragma once
// The memory of one bucket: rank-major, so that one reduce-scatter and one all-gather serve it.
//
//   gradients  [rank 0's segments | rank 1's | ...] in the type of the arithmetic. After the reduce-scatter
//              this rank's own portion holds the sums; the rest is free.
//   rows       the same layout in the parameters' type, for the way back. The same memory where the types are
//              equal: a portion's gradients are used up by the step before its new rows are written there.
//
// Thread safety: none; the engine holds its lock.
#include <ATen/core/Tensor.h>

#include <vector>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/plan/shard_plan.h"

namespace fusedbun {

class BucketMemory {
 public:
  BucketMemory(const plan::Bucket& bucket, int rank, at::Device device);

  /// Copies a gradient (any float type and layout, the parameter's shape) to its places. Returns on
  /// CPUs whether every g·g is finite; on a GPU true, and the answer is added to `device_nonfinite`
  /// (float32 scalar, > 0: not finite).
  bool take_gradient(int parameter, const at::Tensor& gradient, at::Tensor& device_nonfinite);
  void zero_gradient(int parameter);

  /// [rows, m] views of one segment of rank `rank`.
  at::Tensor gradient_rows(int rank, const plan::Segment& segment) const;
  at::Tensor parameter_rows(int rank, const plan::Segment& segment) const;
  /// The sums of this rank's portion, after the reduce-scatter.
  at::Tensor own_gradients() const;

  comm::Work reduce_scatter(comm::Communicator& communicator);
  comm::Work all_gather(comm::Communicator& communicator);

 private:
  struct Place {
    int rank;
    plan::Segment segment;
  };
  template <class Visit>
  void for_each_place(int parameter, Visit visit) const;
  at::Tensor segment_of(const at::Tensor& memory, int rank, const plan::Segment& segment) const;

  int rank_;
  comm::Counts counts_;
  std::vector<int64_t> offsets_;
  std::vector<std::pair<int, Place>> places_;  ///< sorted by parameter, then row
  at::Tensor gradients_;
  at::Tensor rows_;
};

}  // namespace fusedbun
