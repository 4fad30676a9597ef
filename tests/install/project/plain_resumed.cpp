// The loop of plain.cpp, which goes on where it was stopped.
#include <torch/nn.h>

#include <cstdio>
#include <cstdlib>

#include "fusedbun/dist/snapshot/checkpointer.h"

namespace nn = torch::nn;

// Every step draws 64 samples of a function of 8 numbers; rank r of w trains on each w-th of them.
torch::Tensor target(const torch::Tensor& x) { return torch::sin(x).sum(1, /*keepdim=*/true); }

int main(int argc, char** argv) {
  const int steps = argc > 1 ? std::atoi(argv[1]) : 200;
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(8, 64), nn::Tanh(), nn::Linear(64, 64), nn::Tanh(), nn::Linear(64, 1));
  const auto options = fusedbun::FusedbunOptions::recommended(3e-3).Lambda(0);
  const int rank = 0, world_size = 1;
  fusedbun::Fusedbun optimizer(model->parameters(), options);

  fusedbun::Checkpointer checkpointer({.folder = "plain-checkpoints"});
  const fusedbun::CheckpointContents contents{.optimizer = &optimizer, .model = model.get()};
  checkpointer.load(contents);  // the newest checkpoint, if there is one

  const auto validation = torch::randn({1024, 8});
  for (int64_t step = optimizer.job_step(); step < steps; ++step) {
    torch::manual_seed(step);  // samples by number, so that a run that goes on sees those it would have seen
    const auto samples = torch::randn({64, 8}).slice(0, rank, 64, world_size);
    optimizer.zero_grad();
    torch::mse_loss(model->forward(samples), target(samples)).backward();
    optimizer.step();
    if (optimizer.job_step() % 50 == 0) checkpointer.save(contents);  // writes while training goes on
  }
  checkpointer.wait();  // one at a time: the last one is to be saved, whatever the disk is doing
  checkpointer.save(contents);

  const torch::NoGradGuard no_grad;
  const auto loss = torch::mse_loss(model->forward(validation), target(validation));
  std::printf("rank %d of %d: loss %.9f\n", rank, world_size, loss.item<double>());
}
