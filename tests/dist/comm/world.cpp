#include "world.h"

#include <exception>
#include <mutex>
#include <thread>

namespace fusedbun::comm::testing {

void run_threads(int count, const std::function<void(int)>& call) {
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int index = 0; index < count; ++index) {
    threads.emplace_back([&, index] {
      try {
        call(index);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

ThreadWorld::ThreadWorld(int size,
                         const std::function<std::unique_ptr<Communicator>(int rank)>& connect)
    : communicators_(static_cast<size_t>(size)) {
  run_threads(size, [&](int rank) { communicators_[static_cast<size_t>(rank)] = connect(rank); });
}

ThreadWorld::~ThreadWorld() {
  run_threads(size(), [&](int rank) { communicators_[static_cast<size_t>(rank)].reset(); });
}

void ThreadWorld::run(const std::function<void(Communicator&)>& body) {
  run_threads(size(), [&](int rank) { body(*communicators_[static_cast<size_t>(rank)]); });
}

std::string name_of(const WorldFactory& factory) {
  return factory.name;
}

}  // namespace fusedbun::comm::testing
