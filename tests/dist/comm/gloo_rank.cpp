// One rank of a Gloo job, for tests that kill ranks: adds a megabyte up with the others until something breaks, and
// exits with the error's exit code. Usage: comm_gloo_rank RANK SIZE PORT TIMEOUT_MS
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/gloo.h"

int main(int argc, char** argv) {
  using namespace fusedbun;
  if (argc != 5) return static_cast<int>(ExitCode::usage);
  try {
    const auto comm =
        comm::connect_gloo({.rank = std::atoi(argv[1]),
                            .size = std::atoi(argv[2]),
                            .master_port = static_cast<uint16_t>(std::atoi(argv[3])),
                            .serve_store = false,
                            .timeout = std::chrono::milliseconds(std::atoi(argv[4]))});
    std::vector<float> data(1 << 18, 1.0f);
    for (int step = 0;; ++step) {
      comm->all_reduce(comm::Buffer::of(std::span(data)), comm::ReduceOp::sum).wait();
      if (step == 3) {
        std::puts("under way");
        std::fflush(stdout);
      }
    }
  } catch (const Error& error) {
    std::printf("%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
