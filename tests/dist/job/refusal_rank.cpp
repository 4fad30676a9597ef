// One rank of a job whose program does what ranks cannot do together. Under torchrun's variables, or mpirun:
//
//   refusal_rank SCENARIO TRANSPORT
//
// SCENARIO: uneven (rank 0 takes ten steps, the others nine and finish()), clip (every rank clips p.grad by hand), passes (rank 0
// accumulates over one pass more), late_group (rank 0 adds a group where the others step). TRANSPORT: window or messages.
//
// The exit code is the error's; its sentence goes to stderr, as `fusedbun train` writes it.
#include <ATen/ATen.h>
#include <torch/nn/utils/clip_grad.h>

#include <cstdio>
#include <string>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/job.h"

namespace fusedbun {
namespace {

class Program {
 public:
  Program(Job& job, bool window)
      : rank_(job.rank()),
        weights_(at::zeros({256, 256}).requires_grad_()),
        optimizer_(job.channels(), {torch::optim::OptimizerParamGroup({weights_})},
                   FusedbunOptions::recommended(1e-3), {.host_window = window}) {}

  void backward() { (weights_ * 100).sum().backward(); }
  void train(int steps) {
    for (int step = 0; step < steps; ++step) {
      backward();
      optimizer_.step();
    }
  }

  void run(const std::string& scenario) {
    train(2);
    if (scenario == "uneven") {
      train(rank_ == 0 ? 8 : 7);
    } else if (scenario == "clip") {
      backward();
      torch::nn::utils::clip_grad_norm_({weights_}, 1.0);
      optimizer_.step();
    } else if (scenario == "passes") {
      if (rank_ == 0) {
        const auto guard = optimizer_.no_sync();
        backward();
      }
      train(1);
    } else if (scenario == "late_group") {
      if (rank_ == 0) optimizer_.add_param_group({{at::zeros({8, 8}).requires_grad_()}});
      train(1);
    } else {
      throw UsageError("there is no scenario '" + scenario + "'");
    }
    optimizer_.finish();
  }

 private:
  int rank_;
  at::Tensor weights_;
  ShardedFusedbun optimizer_;
};

}  // namespace
}  // namespace fusedbun

int main(int argc, char** argv) {
  using namespace fusedbun;
  if (argc != 3) return static_cast<int>(ExitCode::usage);
  try {
    Job job({.timeout = std::chrono::seconds(30)});
    try {
      Program(job, argv[2] == std::string("window")).run(argv[1]);
      job.finish();
    } catch (const std::exception& error) {
      job.fail(error);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "fusedbun: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
