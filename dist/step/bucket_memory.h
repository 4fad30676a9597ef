#pragma once
// The memory of one bucket, and how it travels. Gradients lie rank-major, [rank 0's segments | rank 1's | ...], in the type of
// the arithmetic, so each rank's rows are one piece.
//
// Three ways, one shape (the engine does not know which):
//   MessageBucket   (GPUs, one rank) reduce-scatter and all-gather through a communicator: this rank's portion comes back as one
//                   sum, its new rows travel in the same memory
//   PortionsBucket  (CPUs) an all_to_all brings every rank's gradients of this rank's rows, as they are or as bfloat16; the step
//                   adds them up while it reads them; new rows as above
//   WindowBucket    ranks of one host: every rank's gradients are read where they were written, and the parameters are one
//                   replica for all, so new rows need no way back
//
// Thread safety: none; the engine holds its lock.
#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/comm/host_window.h"
#include "fusedbun/dist/plan/shard_plan.h"
#include "fusedbun/dist/step/parameter_matrix.h"

namespace fusedbun {

class BucketMemory {
 public:
  virtual ~BucketMemory() = default;
  BucketMemory(const BucketMemory&) = delete;  // others' memory is in reach of its own

  /// Copies a gradient (any float type and layout, the parameter's shape) to its places. Returns on CPUs whether every
  /// g·g is finite; on a GPU true, and the answer is added to `device_nonfinite` (float32 scalar, > 0: not finite).
  bool take_gradient(int parameter, const at::Tensor& gradient, at::Tensor& device_nonfinite);
  void zero_gradient(int parameter);

  /// All gradients of this rank are here; `round` counts the job steps from 1.
  virtual comm::Work send_gradients(uint32_t round) = 0;
  /// After that Work: the gradients [rows, m] of a segment of this rank, to be added up in this order.
  virtual std::vector<at::Tensor> gradients_of(const plan::Segment& own) const = 0;
  /// The 2-norm of the sum over this rank's portion. From then on gradients_of gives that sum.
  virtual double norm_of_sum() = 0;

  /// This rank's rows are in `matrices` (by parameter).
  virtual comm::Work send_rows(std::span<const ParameterMatrix> matrices, uint32_t round) = 0;
  /// After that Work: brings the others' rows of parameters that were `used` into `matrices`.
  virtual void receive_rows(std::span<ParameterMatrix> matrices, const std::vector<bool>& used) = 0;

  /// This rank cannot go on: whoever waits for it through this memory is told.
  virtual void abandon() noexcept {}

 protected:
  BucketMemory(const plan::Bucket& bucket, int rank, at::Tensor gradients);
  /// [rows, m] of `memory`, which is laid out as the bucket.
  at::Tensor segment_of(const at::Tensor& memory, int rank, const plan::Segment& segment) const;
  at::Tensor portion_of(const at::Tensor& memory, int rank) const;

  plan::Bucket bucket_;
  int rank_;
  at::Tensor gradients_;  ///< [elements] written by this rank
};

/// sum = parts[0] + parts[1] + ... in that order, one-dimensional, in the type of `sum` (float32 or float64), which may lie where one of them
/// lies; piece by piece, so that each stays in cache. Returns the 2-norm of the sum.
double add_up(const std::vector<at::Tensor>& parts, const at::Tensor& sum);

/// The type in which gradients of a bucket lie, and that of its parameters.
at::ScalarType gradient_type(const plan::Bucket& bucket);
at::ScalarType parameter_type(const plan::Bucket& bucket);

std::unique_ptr<BucketMemory> make_message_bucket(const plan::Bucket& bucket,
                                                  comm::Communicator& communicator,
                                                  at::Device device);

/// On CPUs. `wire` is the gradients' type or, where that is float32, bfloat16.
std::unique_ptr<BucketMemory> make_portions_bucket(const plan::Bucket& bucket,
                                                   comm::Communicator& communicator,
                                                   at::ScalarType wire);

/// Where a bucket lies in a window.
struct WindowPlace {
  int64_t gradient_offset = 0;  ///< bytes from the start of each rank's region
  int first_event = 0;          ///< of two: gradients written, rows written
};
std::unique_ptr<BucketMemory> make_window_bucket(const plan::Bucket& bucket, int rank,
                                                 std::shared_ptr<comm::HostWindow> window,
                                                 const WindowPlace& place);

}  // namespace fusedbun
