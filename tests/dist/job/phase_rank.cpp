// One rank of a job that trains three matrices over messages until it is lost or ends by itself. The victim sends itself a
// signal as soon as it is in the given phase, after a few steps. Under torchrun's variables:
//
//   phase_rank RUN_DIR VICTIM PHASE SIGNAL
//
// The exit code is the error's; its sentence goes to stderr, as `fusedbun train` writes it.
#include <ATen/ATen.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/job.h"
#include "fusedbun/dist/step/rank_position_cell.h"

namespace fusedbun {
namespace {

constexpr int64_t kStepsBefore = 5;

plan::Phase phase_named(const std::string& name) {
  for (uint8_t number = 0; plan::find_phase(number); ++number) {
    if (plan::name_of(*plan::find_phase(number)) == name) return *plan::find_phase(number);
  }
  throw UsageError("there is no phase '" + name + "'");
}

/// Watches the board from a thread of its own: the training thread is wherever it is when the signal comes.
void strike_in(plan::Phase phase, int signal, const RankPositionCell& board,
               const std::atomic<bool>& ended) {
  while (!ended) {
    const plan::RankPosition position = board.position();
    if (position.job_step < kStepsBefore || position.phase != phase) continue;
    std::printf("struck in %s\n", plan::describe(position).c_str());
    std::fflush(stdout);
    ::kill(::getpid(), signal);
    return;
  }
}

void train(Job& job) {
  std::vector<at::Tensor> matrices;
  for (int i = 0; i < 3; ++i) matrices.push_back(at::randn({256, 256}).requires_grad_());
  ShardedFusedbun optimizer(job.channels(), {torch::optim::OptimizerParamGroup(matrices)},
                            FusedbunOptions::recommended(1e-3),
                            {.bucket_bytes = 200'000, .max_grad_norm = 1, .host_window = false});
  for (;;) {
    for (const at::Tensor& matrix : matrices) matrix.mutable_grad() = at::randn_like(matrix);
    optimizer.step();
  }
}

}  // namespace
}  // namespace fusedbun

int main(int argc, char** argv) {
  using namespace fusedbun;
  if (argc != 5) return static_cast<int>(ExitCode::usage);
  try {
    Job job({.run_dir = argv[1],
             .control = false,
             .timeout = std::chrono::seconds(30),
             .health = {.heartbeat_us = 100'000, .lost_us = 1'000'000, .stall_us = 400'000}});
    std::atomic<bool> ended = false;
    std::jthread striker;
    if (job.rank() == std::atoi(argv[2])) {
      striker = std::jthread([&, phase = phase_named(argv[3])] {
        strike_in(phase, std::atoi(argv[4]), *job.channels().board, ended);
      });
    }
    try {
      train(job);
    } catch (const std::exception& error) {
      ended = true;
      job.fail(error);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "fusedbun: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
