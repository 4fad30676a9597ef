#pragma once
// FlatGradients: a bucket whose gradients are copied into memory of its own, rank-major, in the type in which they are added up.
//
// Thread safety: none.
#include <ATen/core/Tensor.h>

#include "fusedbun/dist/step/gradient_bucket.h"

namespace fusedbun {

class FlatGradients : public GradientBucket {
 public:
  bool add_gradient(int parameter, const at::Tensor& gradient,
                    at::Tensor& device_nonfinite) override;
  void add_zero_gradient(int parameter) override;

 protected:
  FlatGradients(const plan::Bucket& bucket, int rank, at::Tensor gradients);

  /// [rows, m] of `memory`, which is laid out as the bucket.
  at::Tensor segment_of(const at::Tensor& memory, int rank, const plan::Segment& segment) const;
  at::Tensor portion_of(const at::Tensor& memory, int rank) const;

  at::Tensor gradients_;  ///< [elements] written by this rank
};

}  // namespace fusedbun
