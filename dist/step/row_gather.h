#pragma once
// RowGather: how the owners' new rows of a bucket reach the other ranks, where ranks do not share memory.
//
// Thread safety: none.
#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/plan/shard_plan.h"
#include "fusedbun/dist/step/parameter_matrix.h"

namespace fusedbun {

class RowGather {
 public:
  /// `rows`: [elements] laid out as the bucket, in the parameters' type. `bucket` outlives the object.
  RowGather(const plan::Bucket& bucket, comm::Communicator& communicator, at::Tensor rows);

  /// This rank's rows are in `matrices` (by parameter).
  comm::Work send(std::span<const ParameterMatrix> matrices);
  /// After that Work: brings the others' rows of parameters that were `used` into `matrices`.
  void receive(std::span<ParameterMatrix> matrices, const std::vector<bool>& used) const;

 private:
  at::Tensor segment_of(int rank, const plan::Segment& segment) const;

  const plan::Bucket& bucket_;
  comm::Communicator& communicator_;
  at::Tensor rows_;
};

/// The tensor's memory as a communicator takes it; types that it does not add up are bytes.
comm::Buffer buffer_of(const at::Tensor& memory);

}  // namespace fusedbun
