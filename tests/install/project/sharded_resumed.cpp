// The loop of sharded.cpp, which goes on where it was stopped, on this or another number of ranks.
#include <torch/nn.h>

#include <cstdio>
#include <cstdlib>

#include "fusedbun/dist/job/job.h"

namespace nn = torch::nn;

// Every step draws 64 samples of a function of 8 numbers; rank r of w trains on each w-th of them.
torch::Tensor target(const torch::Tensor& x) { return torch::sin(x).sum(1, /*keepdim=*/true); }

int main(int argc, char** argv) {
  const int steps = argc > 1 ? std::atoi(argv[1]) : 200;
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(8, 64), nn::Tanh(), nn::Linear(64, 64), nn::Tanh(), nn::Linear(64, 1));
  const auto options = fusedbun::FusedbunOptions::recommended(3e-3).Lambda(0);
  fusedbun::Job job({.run_dir = "resumed-run"}); const int rank = job.rank(), world_size = job.world_size();
  fusedbun::ShardedFusedbun optimizer(job.channels(), model->named_parameters(), options);

  const fusedbun::CheckpointContents contents{.optimizer = &optimizer, .model = model.get()};
  job.resume(contents);  // from the newest checkpoint, if there is one

  const auto validation = torch::randn({1024, 8});
  for (int64_t step = optimizer.job_step(); step < steps; ++step) {
    torch::manual_seed(step);  // samples by number, so that a run that goes on sees those it would have seen
    const auto samples = torch::randn({64, 8}).slice(0, rank, 64, world_size);
    optimizer.zero_grad();
    torch::mse_loss(model->forward(samples), target(samples)).backward();
    optimizer.step();
    if (optimizer.job_step() % 50 == 0) job.save(contents);  // writes while training goes on
  }
  job.checkpointer().wait();  // one at a time: the last one is to be saved, whatever the disk is doing
  job.save(contents);
  optimizer.finish();
  job.finish();  // waits until it is durable

  const torch::NoGradGuard no_grad;
  const auto loss = torch::mse_loss(model->forward(validation), target(validation));
  std::printf("rank %d of %d: loss %.9f\n", rank, world_size, loss.item<double>());
}
