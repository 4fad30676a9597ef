#pragma once
// FlatGradientBucket: a bucket in host memory that copies gradients into one piece of memory, rank-major: [rank 0's segments | rank 1's | ...], so that
// what a rank will add up is one portion.
//
// Thread safety: none.
#include <ATen/core/Tensor.h>

#include <vector>

#include "fusedbun/dist/step/gradient_bucket.h"

namespace fusedbun {

class FlatGradientBucket : public GradientBucket {
 public:
  bool add_gradient(int parameter, const at::Tensor& gradient) override;
  void add_zero_gradient(int parameter) override;

 protected:
  /// `gradients` is one-dimensional; the portion of rank r starts at element begins[r].
  FlatGradientBucket(const plan::Bucket& bucket, int rank, std::vector<int64_t> begins,
                     at::Tensor gradients);

  /// The elements of a segment of `rank`, [rows, m], and those of its portion, in `memory` that is laid out as the gradients are.
  at::Tensor segment_of(const at::Tensor& memory, int rank, const plan::Segment& segment) const;
  /// Where the segment begins.
  void* place_of(const at::Tensor& memory, int rank, const plan::Segment& segment) const;
  at::Tensor portion_of(const at::Tensor& memory, int rank) const;

  const std::vector<int64_t> begins_;  ///< [rank]
  const at::Tensor gradients_;         ///< of this rank
};

}  // namespace fusedbun
