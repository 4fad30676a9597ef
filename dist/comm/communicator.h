#pragma once
// Communicator: how bytes move between ranks. One interface, one backend per pair of files (local, gloo, mpi, nccl);
// a backend implements and adds nothing.
//
// Invariants:
// 1. A communicator has exactly one program order: every rank calls the same operations in the same order with matching
//    counts. Streams of operations that are not ordered with one another (gradients as backward makes them, and the
//    agreement of a step) need a group() each. An operation returns before it is done. Calls that do not match are a
//    ConfigError that names both, on every rank (not NCCL).
// 2. Buffers stay valid and untouched until the returned Work has been waited for.
// 3. Reductions add float32 and float64 in rank order (0 + 1 + 2 ...), whatever the backend, except NCCL, which uses
//    its own order. MAX is used on integers only, where it is exact (floats travel as the integers of their bits).
// 4. Every wait has a deadline, timeout(), which counts from the last progress; kNoDeadline where another part notices
//    dead ranks and calls abort(). A lost peer is a PeerLostError on the others, a deadline missed is a TimeoutError;
//    after either the communicator is broken: only abort() and destruction are allowed.
//
// Thread safety: one thread at a time per communicator, except abort(), failure() and sent_bytes(), which any thread may call.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/comm/failure.h"
#include "fusedbun/dist/comm/work.h"

namespace fusedbun::comm {

enum class DataType : uint8_t { u8, i32, i64, f32, f64 };
enum class ReduceOp : uint8_t { sum, max, bit_or };

size_t bytes_of(DataType type);

template <class T>
constexpr DataType data_type_of();
template <>
constexpr DataType data_type_of<std::byte>() {
  return DataType::u8;
}
template <>
constexpr DataType data_type_of<uint8_t>() {
  return DataType::u8;
}
template <>
constexpr DataType data_type_of<int32_t>() {
  return DataType::i32;
}
template <>
constexpr DataType data_type_of<int64_t>() {
  return DataType::i64;
}
template <>
constexpr DataType data_type_of<float>() {
  return DataType::f32;
}
template <>
constexpr DataType data_type_of<double>() {
  return DataType::f64;
}

/// `count` elements of `type` at `data`: host memory, or device memory for a communicator whose device() is cuda.
struct Buffer {
  void* data = nullptr;
  int64_t count = 0;
  DataType type = DataType::u8;

  template <class T>
  static Buffer of(std::span<T> elements) {
    return {const_cast<std::remove_const_t<T>*>(elements.data()),
            static_cast<int64_t>(elements.size()), data_type_of<std::remove_const_t<T>>()};
  }
};

/// Elements per rank of a buffer that holds one portion per rank, in rank order. Portions may differ, and may be empty.
using Counts = std::vector<int64_t>;

/// `bytes` bytes at `data` that go to rank `peer` or come from it.
struct Message {
  int peer = 0;
  std::byte* data = nullptr;
  int64_t bytes = 0;
};

enum class DeviceKind : uint8_t { cpu, cuda };

/// The stream whose work so far makes an operation's buffers ready. None for host memory, which is ready at the call.
using ProducerStream = std::optional<Stream>;

/// Longer than any job.
inline constexpr std::chrono::milliseconds kNoDeadline = std::chrono::hours(24 * 365);

class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator() = default;
  explicit Communicator(std::chrono::milliseconds timeout) : timeout_(timeout) {}
  Communicator(const Communicator&) = delete;  // owns connections
  Communicator& operator=(const Communicator&) = delete;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// "local", "gloo", "mpi" or "nccl".
  virtual std::string_view backend() const = 0;
  /// Where buffers live.
  virtual DeviceKind device() const = 0;

  /// Deadline of the waits for operations that are started from now on, here and in groups that are made from now on.
  std::chrono::milliseconds timeout() const { return timeout_; }
  void set_timeout(std::chrono::milliseconds timeout) { timeout_ = timeout; }

  // An operation on device memory starts after the work that `producer` holds at the call; NCCL refuses one without. Host backends have
  // no streams and ignore it.

  /// `input` holds counts[r] elements for every rank r, in rank order; `output` (counts[rank()] elements) receives this
  /// rank's portion reduced over all ranks. f32 and f64, sum. `output` may be this rank's own portion of `input`.
  virtual Work reduce_scatter(Buffer input, Buffer output, const Counts& counts,
                              ProducerStream producer = {}) = 0;
  /// `output` receives every rank's `input` in rank order; `input` may be this rank's own portion of `output`.
  virtual Work all_gather(Buffer input, Buffer output, const Counts& counts,
                          ProducerStream producer = {}) = 0;
  /// In place. Sum of f32, f64, i32, i64; max and bitwise or of i32, i64, u8. NCCL has no bitwise or.
  virtual Work all_reduce(Buffer inout, ReduceOp op, ProducerStream producer = {}) = 0;
  /// Messages between any memory of the ranks, so that nothing has to be laid end to end first. What one rank sends to
  /// another, the other receives in the same order, in messages of the same sizes. No rank sends to itself.
  virtual Work exchange(std::vector<Message> sends, std::vector<Message> receives,
                        ProducerStream producer = {}) = 0;
  virtual Work broadcast(Buffer inout, int root, ProducerStream producer = {}) = 0;
  virtual Work barrier(ProducerStream producer = {}) = 0;

  /// A communicator of the given ranks (of this one), in that order, with connections and a program order of its own
  /// where the backend can make connections: a long message on one delays none on another. The first failure of one
  /// breaks it, its parent and their other groups (not local). Called by all ranks of this one with the same list, and
  /// blocks until they have; returns nullptr on ranks that are not in it. Of one rank it costs nothing.
  virtual std::unique_ptr<Communicator> group(const std::vector<int>& ranks) = 0;

  /// Makes every pending and later wait on this rank fail soon with PeerLostError(reason), and tells the peers as far
  /// as the backend can. Never blocks, never throws; may be called by any thread, more than once.
  virtual void abort(const std::string& reason) noexcept = 0;
  /// Why it is broken; nothing while it is not. Any thread may ask.
  virtual std::optional<Failure> failure() const = 0;

  /// Bytes of the messages that this rank has sent to others, over its groups too; nothing where they are not counted. Any thread may ask.
  virtual std::optional<int64_t> sent_bytes() const { return std::nullopt; }

  /// One sentence per pending operation, those of its groups included, to diagnose a job that hangs: "gloo operation 12
  /// of 2 ranks, all_reduce(...), called 3.2 s ago, waits for its rank 1". Any thread may ask.
  virtual std::vector<std::string> pending_operations() const { return {}; }

 private:
  std::chrono::milliseconds timeout_ = std::chrono::seconds(60);
};

}  // namespace fusedbun::comm
