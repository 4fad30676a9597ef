#pragma once
// CollectiveCall: one collective as its caller asked for it, checked. Every backend makes one first, so that
// a wrong argument is the same ConfigError everywhere and never reaches a library.
//
// Invariants: 1. A CollectiveCall that exists is valid on its own; whether the ranks' calls match is seen
// where they meet.
// 2. `receive_counts` and `send_counts` have one entry per rank wherever the operation has
// portions, else none.
//
// Thread safety: a value.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

enum class Operation : uint8_t {
  reduce_scatter,
  all_gather,
  all_reduce,
  exchange,
  broadcast,
  barrier
};
std::string_view name_of(Operation operation);
std::string_view name_of(DataType type);
std::string_view name_of(ReduceOp op);

/// Who calls, for messages and checks.
struct CallSite {
  std::string_view backend;
  int rank = 0;
  int size = 1;
};

struct CollectiveCall {
  Operation operation = Operation::barrier;
  Buffer input = {};  ///< all_reduce and broadcast: the one buffer is input and output
  Buffer output = {};
  Counts send_counts = {};                         ///< portions of input: reduce_scatter
  Counts receive_counts = {};                      ///< portions of output: all_gather
  std::vector<Message> sends = {}, receives = {};  ///< exchange; none is empty
  ReduceOp op = ReduceOp::sum;
  int root = 0;

  // Each throws ConfigError naming the rank, the operation and what is wrong.
  static CollectiveCall reduce_scatter(const CallSite& caller, Buffer input, Buffer output,
                                       const Counts& counts);
  static CollectiveCall all_gather(const CallSite& caller, Buffer input, Buffer output,
                                   const Counts& counts);
  static CollectiveCall all_reduce(const CallSite& caller, Buffer inout, ReduceOp op);
  static CollectiveCall exchange(const CallSite& caller, std::vector<Message> sends,
                                 std::vector<Message> receives);
  static CollectiveCall broadcast(const CallSite& caller, Buffer inout, int root);
  static CollectiveCall barrier() { return {}; }

  /// Whether a rank may call this where another calls `other`. The messages of an exchange are compared pair by pair
  /// elsewhere.
  bool agrees_with(const CollectiveCall& other) const;
  /// Equal where agrees_with() is true; else different, unless two hashes collide.
  uint64_t digest() const;
  /// What all ranks must agree on, as a person reads it: "all_gather(f32, counts 3 0 4)".
  std::string describe() const;
  /// The same, with the messages to and from rank `peer` for an exchange: "exchange(2 messages of 800 bytes to rank 1,
  /// ...)".
  std::string describe_to(int peer) const;
};

/// A hash of the sizes of the messages with `peer`, in order.
uint64_t digest_of(const std::vector<Message>& messages, int peer);
/// [peer] -> the same, of all `size` ranks.
std::vector<uint64_t> digests_by_peer(const std::vector<Message>& messages, int size);

/// Two ranks' calls of one number, as describe_to() tells them, that do not match. The higher rank comes first, so
/// both ranks say the same.
struct Described {
  int rank;
  std::string call;
};
std::string mismatch_text(std::string_view backend, uint64_t number, Described one,
                          Described other);

/// First element of portion `rank`.
int64_t offset_of(const Counts& counts, int rank);
/// Where element `index` of `buffer` lies.
std::byte* address_of(const Buffer& buffer, int64_t index);

/// Throws ConfigError unless `ranks` are distinct ranks of the caller's communicator, and at least
/// one.
void validate_group(const CallSite& caller, const std::vector<int>& ranks);

}  // namespace fusedbun::comm
