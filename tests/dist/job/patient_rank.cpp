// One rank of a job in which every rank lives, but one takes its time. Under torchrun's variables:
//
//   patient_rank RUN_DIR SCENARIO
//
// Waits end after 3 s where there are no heartbeats, and a job hangs after 6 s. SCENARIO: save (rank 0 saves for 9 s before
// finish()), short_save (for 4.5 s), load (rank 1 loads for 9 s between two steps), deadlock (rank 1 never steps again),
// slow_failure (rank 1 fails and takes long to leave).
//
// The exit code is the error's; its sentence goes to stderr, as `fusedbun train` writes it.
#include <ATen/ATen.h>

#include <cstdio>
#include <string>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/job.h"

namespace fusedbun {
namespace {

using namespace std::chrono_literals;

/// What unwinding meets in a program whose objects take long to go.
struct SlowToGo {
  ~SlowToGo() { std::this_thread::sleep_for(1min); }
};

/// Three times the time-out, in two phases, so that the job moves: in one it would hang.
void busy(Job& job, plan::Phase phase) {
  std::this_thread::sleep_for(4500ms);
  job.enter(phase);
  std::this_thread::sleep_for(4500ms);
}

void run(Job& job, const std::string& scenario) {
  at::Tensor matrix = at::zeros({64, 64}).requires_grad_();
  ShardedFusedbun optimizer(job.channels(), {torch::optim::OptimizerParamGroup({matrix})},
                            FusedbunOptions::recommended(1e-3));
  const auto step = [&] {
    matrix.mutable_grad() = at::ones({64, 64});
    optimizer.step();
  };
  step();
  if (scenario == "load" && job.rank() == 1) busy(job, plan::Phase::validate);
  if (scenario == "deadlock" && job.rank() == 1) std::this_thread::sleep_for(1min);
  step();
  optimizer.finish();
  if (scenario == "save" && job.rank() == 0) busy(job, plan::Phase::save);
  if (scenario == "short_save" && job.rank() == 0) std::this_thread::sleep_for(4500ms);
  job.finish();
}

}  // namespace
}  // namespace fusedbun

int main(int argc, char** argv) {
  using namespace fusedbun;
  if (argc != 3) return static_cast<int>(ExitCode::usage);
  const std::string scenario = argv[2];
  try {
    Job job({.run_dir = argv[1],
             .control = false,
             .timeout = std::chrono::seconds(3),
             .health = {.heartbeat_us = 100'000, .lost_us = 4'000'000, .hang_us = 6'000'000}});
    try {
      if (scenario == "slow_failure" && job.rank() == 1) {
        const SlowToGo object;
        try {
          throw ConfigError("--data: there is no such text");
        } catch (const std::exception& error) {
          job.fail(error);
        }
      }
      run(job, scenario);
    } catch (const std::exception& error) {
      job.fail(error);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "fusedbun: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
