#pragma once
// A linear layer as the models use it.
//
// Thread safety: as torch::nn::Module.
#include <torch/nn/modules/linear.h>

namespace fusedbun::model {

torch::nn::Linear linear(int64_t in, int64_t out, bool bias);

/// layer(x). torch::nn::Linear adds the bias in a pass of its own, and where it is of another type than the product, as under autocast,
/// through copies of the whole output in float32; so short types take one call for both.
torch::Tensor project(torch::nn::Linear& layer, const torch::Tensor& x);

}  // namespace fusedbun::model
