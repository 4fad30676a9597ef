#include "local_ranks.h"

#include <exception>
#include <thread>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/local.h"

namespace fusedbun::testing {

void run_ranks(int size, const std::function<void(comm::Communicator&)>& body,
               std::chrono::milliseconds timeout) {
  auto communicators = comm::make_local_communicators(size, timeout);
  std::vector<std::exception_ptr> errors(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(*communicators[rank]);
      } catch (...) {
        errors[rank] = std::current_exception();
        communicators[rank]->abort("rank " + std::to_string(rank) + " failed");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::exception_ptr aborted;
  for (const std::exception_ptr& error : errors) {
    if (!error) continue;
    try {
      std::rethrow_exception(error);
    } catch (const PeerLostError&) {
      aborted = error;
    }
  }
  if (aborted) std::rethrow_exception(aborted);
}

}  // namespace fusedbun::testing
