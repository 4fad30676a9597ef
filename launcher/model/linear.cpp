#include "fusedbun/launcher/model/linear.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

namespace fusedbun::model {

torch::nn::Linear linear(int64_t in, int64_t out, bool bias) {
  return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(bias));
}

torch::Tensor project(torch::nn::Linear& layer, const torch::Tensor& x) {
  const bool is_short = layer->weight.scalar_type() != at::kFloat ||
                        at::autocast::is_autocast_enabled(x.device().type());
  return is_short ? at::linear(x, layer->weight, layer->bias) : layer->forward(x);
}

}  // namespace fusedbun::model
