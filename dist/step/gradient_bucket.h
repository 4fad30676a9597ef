#pragma once
// The memory of one bucket, and how it travels.
//
// Three ways, one shape (the engine does not know which):
//   CollectiveBucket   (GPUs) gradients are copied rank-major, [rank 0's segments | rank 1's | ...], so each rank's rows are one piece:
//                   a reduce-scatter brings this rank's portion as one sum, an all-gather its new rows in the same memory
//   PointToPointBucket  (CPUs) messages from the gradients, and from and into the parameters, where they lie; the step adds up every
//                   rank's gradients of this rank's rows, as they are or as bfloat16, while it reads them
//   SharedMemoryBucket    ranks of one host: gradients are copied as for CollectiveBucket, into memory that all ranks read, and the parameters
//                   are one replica for all, so new rows need no way back
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

class GradientBucket {
 public:
  virtual ~GradientBucket() = default;
  GradientBucket(const GradientBucket&) = delete;  // others' memory is in reach of its own

  /// A gradient (any float type and layout, the parameter's shape) is final: until release_gradients() it is kept or a copy of
  /// it is, and nobody may write it. Returns on CPUs whether every g·g is finite; on a GPU true, and the answer is added to
  /// `device_nonfinite` (float32 scalar, > 0: not finite).
  virtual bool add_gradient(int parameter, const at::Tensor& gradient,
                            at::Tensor& device_nonfinite) = 0;
  /// The same with a gradient of zeros.
  virtual void add_zero_gradient(int parameter) = 0;

  /// All gradients of this rank are here; `round` counts the job steps from 1.
  virtual comm::Work start_grad_sync(uint32_t round) = 0;
  /// After that Work: the gradients [rows, m] of a segment of this rank, to be added up in this order.
  virtual std::vector<at::Tensor> reduced_gradients(const plan::Segment& own) const = 0;
  /// The 2-norm of the sum over this rank's portion. From then on reduced_gradients gives that sum.
  virtual double reduce_and_norm() = 0;
  /// After that Work: gradients are not needed any more.
  virtual void release_gradients() {}

  /// This rank's rows are in `matrices` (by parameter); the others' rows of parameters that were `used` come there.
  virtual comm::Work start_param_sync(std::span<const ParameterMatrix> matrices,
                                      const std::vector<bool>& used, uint32_t round) = 0;
  /// After that Work: what came elsewhere is brought into `matrices`.
  virtual void finish_param_sync(std::span<ParameterMatrix> matrices,
                                 const std::vector<bool>& used) = 0;

  /// This rank cannot go on: whoever waits for it through this memory is told.
  virtual void abandon() noexcept {}

 protected:
  GradientBucket(const plan::Bucket& bucket, int rank) : bucket_(bucket), rank_(rank) {}

  plan::Bucket bucket_;
  int rank_;
};

/// The type in which gradients of a bucket are added up, and that of its parameters.
at::ScalarType gradient_type(const plan::Bucket& bucket);
at::ScalarType parameter_type(const plan::Bucket& bucket);

/// The elements of a segment in the parameter's whole, contiguous matrix or gradient, one-dimensional.
at::Tensor elements_of(const at::Tensor& whole, const RowRange& range);

/// Calls visit(rank, i) for every segment bucket.segments[rank][i] of the parameter.
template <class Visit>
void for_each_segment(const plan::Bucket& bucket, int parameter, Visit visit) {
  for (size_t rank = 0; rank < bucket.segments.size(); ++rank) {
    for (size_t i = 0; i < bucket.segments[rank].size(); ++i) {
      if (bucket.segments[rank][i].parameter == parameter) visit(static_cast<int>(rank), i);
    }
  }
}

/// sum = parts[0] + parts[1] + ... in that order, one-dimensional, in the type of `sum` (float32 or float64), which may lie where
/// one of them lies; piece by piece, so that each stays in cache. Returns the sum of squares of the sum.
double add_up(const std::vector<at::Tensor>& parts, const at::Tensor& sum);

std::unique_ptr<GradientBucket> make_collective_bucket(const plan::Bucket& bucket,
                                                       comm::Communicator& communicator,
                                                       at::Device device);

/// `wire` is the gradients' type or, where that is float32, bfloat16. Segments of fewer bytes than `in_place_bytes` are packed.
std::unique_ptr<GradientBucket> make_point_to_point_bucket(const plan::Bucket& bucket,
                                                           comm::Communicator& communicator,
                                                           at::ScalarType wire,
                                                           int64_t in_place_bytes);

/// Where a bucket lies in a window.
struct WindowPlace {
  int64_t gradient_offset = 0;  ///< bytes from the start of each rank's region
  int first_event = 0;          ///< of two: gradients written, rows written
};
std::unique_ptr<GradientBucket> make_shared_memory_bucket(const plan::Bucket& bucket, int rank,
                                                          std::shared_ptr<comm::HostWindow> window,
                                                          const WindowPlace& place);

}  // namespace fusedbun
