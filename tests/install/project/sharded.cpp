// A LibTorch training loop with Fusedbun in one process. sharded.cpp is the same loop with two lines changed.
#include <torch/nn.h>

#include <cstdio>

#include "fusedbun/dist/job/job.h"

namespace nn = torch::nn;

// Every step draws 64 samples of a function of 8 numbers; rank r of w trains on each w-th of them.
torch::Tensor target(const torch::Tensor& x) { return torch::sin(x).sum(1, /*keepdim=*/true); }

int main() {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(8, 64), nn::Tanh(), nn::Linear(64, 64), nn::Tanh(), nn::Linear(64, 1));
  const auto options = fusedbun::FusedbunOptions::recommended(3e-3).Lambda(0);
  fusedbun::Job job; const int rank = job.rank(), world_size = job.world_size();
  fusedbun::ShardedFusedbun optimizer(job.channels(), model->named_parameters(), options);

  const auto validation = torch::randn({1024, 8});
  for (int step = 0; step < 200; ++step) {
    const auto samples = torch::randn({64, 8}).slice(0, rank, 64, world_size);
    optimizer.zero_grad();
    torch::mse_loss(model->forward(samples), target(samples)).backward();
    optimizer.step();
  }

  const torch::NoGradGuard no_grad;
  const auto loss = torch::mse_loss(model->forward(validation), target(validation));
  std::printf("rank %d of %d: loss %.9f\n", rank, world_size, loss.item<double>());
}
