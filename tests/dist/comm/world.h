#pragma once
// World: a set of connected ranks that a test body runs on, once per rank. Threads of this process, or (MPI) this
// process's own rank of a job that mpirun started.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm::testing {

class World {
 public:
  virtual ~World() = default;
  virtual int size() const = 0;
  /// Calls body on every rank of the world that lives in this process, each on its own thread; rethrows the first
  /// exception.
  virtual void run(const std::function<void(Communicator&)>& body) = 0;
  /// Sums are in rank order (all but NCCL).
  virtual bool adds_in_rank_order() const { return true; }
  virtual bool abort_reaches_peers() const { return true; }
  /// Calls that do not match are a ConfigError that names them, on every rank (all but NCCL).
  virtual bool names_mismatches() const { return true; }

  // Memory in which the backend's buffers live. No bytes may come with a null pointer, which memcpy must not see.
  virtual std::shared_ptr<void> allocate(size_t bytes) {
    return std::shared_ptr<void>(::operator new(bytes),
                                 [](void* data) { ::operator delete(data); });
  }
  virtual void upload(void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  virtual void download(void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
};

/// How a parameterised test gets its world; a fresh one per test.
struct WorldFactory {
  std::string name;
  std::function<std::unique_ptr<World>(std::chrono::milliseconds timeout)> make;
  std::string
      problem{};  ///< why no world can be made on this machine: tests are skipped and say so
  friend void PrintTo(const WorldFactory& factory, std::ostream* out) { *out << factory.name; }
};

/// Elements in the world's memory.
template <class T>
class Array {
 public:
  Array(World& world, const std::vector<T>& elements)
      : world_(world),
        count_(std::ssize(elements)),
        memory_(world.allocate(sizeof(T) * elements.size() + 1)) {
    world_.upload(memory_.get(), elements.data(), sizeof(T) * elements.size());
  }
  Array(World& world, int64_t count, T fill)
      : Array(world, std::vector<T>(static_cast<size_t>(count), fill)) {}

  Buffer all() const { return part(0, count_); }
  Buffer part(int64_t offset, int64_t count) const {
    return {static_cast<T*>(memory_.get()) + offset, count, data_type_of<T>()};
  }
  std::vector<T> read() const { return read(0, count_); }
  std::vector<T> read(int64_t offset, int64_t count) const {
    std::vector<T> elements(static_cast<size_t>(count));
    world_.download(elements.data(), static_cast<const T*>(memory_.get()) + offset,
                    sizeof(T) * elements.size());
    return elements;
  }

 private:
  World& world_;
  int64_t count_;
  std::shared_ptr<void> memory_;
};

/// Ranks as threads: `connect(rank)` makes each rank's communicator on that rank's thread.
class ThreadWorld : public World {
 public:
  ThreadWorld(int size, const std::function<std::unique_ptr<Communicator>(int rank)>& connect);
  ~ThreadWorld() override;
  int size() const override { return static_cast<int>(communicators_.size()); }
  void run(const std::function<void(Communicator&)>& body) override;

 private:
  std::vector<std::unique_ptr<Communicator>> communicators_;
};

/// Runs call(0) ... call(count - 1) at the same time on as many threads; rethrows the first exception.
void run_threads(int count, const std::function<void(int)>& call);

/// "local3" and the like, for INSTANTIATE_TEST_SUITE_P.
std::string name_of(const WorldFactory& factory);

}  // namespace fusedbun::comm::testing
