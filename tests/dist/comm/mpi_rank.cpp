// One rank of an MPI job, for tests of how MPI's life ends. Usage, under mpirun: comm_mpi_rank SCENARIO
#define OMPI_SKIP_MPICXX
#include <mpi.h>

#include <csignal>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/mpi.h"

namespace {

using namespace fusedbun;
using std::chrono::milliseconds;
using std::chrono::seconds;

void sum_up(comm::Communicator& comm) {
  int64_t one = 1;
  comm.all_reduce({&one, 1, comm::DataType::i64}, comm::ReduceOp::sum).wait();
  FUSEDBUN_REQUIRE(one == comm.size(), DataError, "the sum is wrong");
}

void finish() {
  sum_up(*comm::connect_mpi());
}

// Rank 0's wait ends although nobody joins it; the process must then leave without MPI_Finalize.
void abort_on_rank0() {
  const auto comm = comm::connect_mpi();
  sum_up(*comm);
  if (comm->rank() == 0) {
    comm::Work pending = comm->barrier();
    std::thread other([&] { comm->abort("rank 0 aborts"); });
    other.join();
    pending.wait();
  }
  std::this_thread::sleep_for(seconds(30));
}

void rank1_is_late() {
  const auto comm = comm::connect_mpi({.timeout = milliseconds(300)});
  if (comm->rank() == 1) std::this_thread::sleep_for(seconds(30));
  comm->barrier().wait();
}

// An error that has nothing to do with MPI, while the others wait for this rank.
void rank0_throws() {
  const auto comm = comm::connect_mpi();
  sum_up(*comm);
  FUSEDBUN_REQUIRE(comm->rank() != 0, ConfigError, "rank 0 does not like its options");
  comm->barrier().wait();
}

void rank1_is_killed() {
  const auto comm = comm::connect_mpi();
  sum_up(*comm);
  if (comm->rank() == 1) std::raise(SIGKILL);
  comm->barrier().wait();
}

void rank1_calls_another() {
  const auto comm = comm::connect_mpi();
  sum_up(*comm);
  std::vector<float> data(100, 1.0f);
  if (comm->rank() == 1) return comm->barrier().wait(), void();
  comm->all_reduce(comm::Buffer::of(std::span(data)), comm::ReduceOp::sum).wait();
}

void rank1_leaves() {
  const auto comm = comm::connect_mpi();
  sum_up(*comm);
  if (comm->rank() == 0) comm->barrier().wait();
}

void rank1_connects_late() {
  int level = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &level);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == 1) std::this_thread::sleep_for(seconds(30));
  comm::connect_mpi({.timeout = milliseconds(300)});
}

void user_owns_mpi() {
  int level = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &level);
  sum_up(*comm::connect_mpi());
  sum_up(*comm::connect_mpi());  // the first one's end did not finalise MPI
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Finalize();
}

void user_wants_no_threads() {
  MPI_Init(nullptr, nullptr);
  comm::connect_mpi();
}

void connects_after_the_end() {
  finish();
  finish();
}

int run(const std::string& scenario) {
  if (scenario == "finish") finish();
  if (scenario == "abort_on_rank0") abort_on_rank0();
  if (scenario == "rank1_is_late") rank1_is_late();
  if (scenario == "rank0_throws") rank0_throws();
  if (scenario == "rank1_is_killed") rank1_is_killed();
  if (scenario == "rank1_calls_another") rank1_calls_another();
  if (scenario == "rank1_leaves") rank1_leaves();
  if (scenario == "rank1_connects_late") rank1_connects_late();
  if (scenario == "user_owns_mpi") user_owns_mpi();
  if (scenario == "user_wants_no_threads") user_wants_no_threads();
  if (scenario == "connects_after_the_end") connects_after_the_end();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return argc == 2 ? run(argv[1]) : static_cast<int>(ExitCode::usage);
  } catch (const Error& error) {
    std::printf("%s\n", error.what());
    std::fflush(stdout);
    return static_cast<int>(error.code());
  }
}
