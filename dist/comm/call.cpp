#include "fusedbun/dist/comm/call.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::comm {
namespace {

[[noreturn]] void refuse(const CallSite& caller, Operation operation, const std::string& what) {
  throw ConfigError(std::string(caller.backend) + ": rank " + std::to_string(caller.rank) + " of " +
                    std::to_string(caller.size) + " called " + std::string(name_of(operation)) +
                    " with " + what);
}

void check_buffer(const CallSite& caller, Operation operation, const char* role,
                  const Buffer& buffer) {
  if (buffer.count < 0) {
    refuse(caller, operation,
           std::string(role) + " of " + std::to_string(buffer.count) + " elements");
  }
  if (buffer.count > 0 && buffer.data == nullptr) {
    refuse(caller, operation, std::string(role) + " that has elements but no memory");
  }
}

// `counts` divide `whole`.
void check_counts(const CallSite& caller, Operation operation, const char* role,
                  const Counts& counts, const Buffer& whole) {
  if (std::ssize(counts) != caller.size) {
    refuse(caller, operation,
           std::to_string(counts.size()) + " counts for " + role + ": one per rank is needed");
  }
  if (std::any_of(counts.begin(), counts.end(), [](int64_t count) { return count < 0; })) {
    refuse(caller, operation, std::string("a negative count for ") + role);
  }
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  if (total != whole.count) {
    refuse(caller, operation,
           std::string("counts that add up to ") + std::to_string(total) + " for " + role + " of " +
               std::to_string(whole.count) + " elements");
  }
}

// `mine` is this rank's portion.
void check_portion(const CallSite& caller, Operation operation, const char* role,
                   const Counts& counts, const Buffer& mine) {
  const int64_t expected = counts[static_cast<size_t>(caller.rank)];
  if (mine.count != expected) {
    refuse(caller, operation,
           std::string(role) + " of " + std::to_string(mine.count) +
               " elements where its count says " + std::to_string(expected));
  }
}

void check_types(const CallSite& caller, Operation operation, const Buffer& input,
                 const Buffer& output) {
  if (input.type != output.type) {
    refuse(caller, operation,
           "input of " + std::string(name_of(input.type)) + " and output of " +
               std::string(name_of(output.type)));
  }
}

void check_message(const CallSite& caller, const Message& message) {
  if (message.peer < 0 || message.peer >= caller.size || message.peer == caller.rank) {
    refuse(caller, Operation::exchange,
           "a message for rank " + std::to_string(message.peer) + ", which is not another rank");
  }
  check_buffer(caller, Operation::exchange, "a message", {message.data, message.bytes});
}

constexpr uint64_t kHashSeed = 0x9e3779b97f4a7c15ull;

// Every bit of `value` reaches every bit of the hash (the finalizer of splitmix64).
uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) + kHashSeed;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9ull;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebull;
  return hash ^ (hash >> 31);
}

std::string text_of(const Counts& counts) {
  std::string text;
  for (const int64_t count : counts) text.append(" ").append(std::to_string(count));
  return text;
}

}  // namespace

std::string_view name_of(Operation operation) {
  switch (operation) {
    case Operation::reduce_scatter:
      return "reduce_scatter";
    case Operation::all_gather:
      return "all_gather";
    case Operation::all_reduce:
      return "all_reduce";
    case Operation::exchange:
      return "exchange";
    case Operation::broadcast:
      return "broadcast";
    case Operation::barrier:
      return "barrier";
  }
  FUSEDBUN_ASSERT(false, "an Operation that does not exist");
}

std::string_view name_of(DataType type) {
  constexpr std::string_view kNames[] = {"u8", "i32", "i64", "f32", "f64"};
  return kNames[static_cast<size_t>(type)];
}

std::string_view name_of(ReduceOp op) {
  constexpr std::string_view kNames[] = {"sum", "max", "bit_or"};
  return kNames[static_cast<size_t>(op)];
}

CollectiveCall CollectiveCall::reduce_scatter(const CallSite& caller, Buffer input, Buffer output,
                                              const Counts& counts) {
  constexpr auto kOperation = Operation::reduce_scatter;
  check_buffer(caller, kOperation, "input", input);
  check_buffer(caller, kOperation, "output", output);
  check_types(caller, kOperation, input, output);
  check_counts(caller, kOperation, "input", counts, input);
  check_portion(caller, kOperation, "output", counts, output);
  if (input.type != DataType::f32 && input.type != DataType::f64) {
    refuse(caller, kOperation, std::string(name_of(input.type)) + ": it takes f32 and f64");
  }
  return {.operation = kOperation, .input = input, .output = output, .send_counts = counts};
}

CollectiveCall CollectiveCall::all_gather(const CallSite& caller, Buffer input, Buffer output,
                                          const Counts& counts) {
  constexpr auto kOperation = Operation::all_gather;
  check_buffer(caller, kOperation, "input", input);
  check_buffer(caller, kOperation, "output", output);
  check_types(caller, kOperation, input, output);
  check_counts(caller, kOperation, "output", counts, output);
  check_portion(caller, kOperation, "input", counts, input);
  return {.operation = kOperation, .input = input, .output = output, .receive_counts = counts};
}

CollectiveCall CollectiveCall::all_reduce(const CallSite& caller, Buffer inout, ReduceOp op) {
  constexpr auto kOperation = Operation::all_reduce;
  check_buffer(caller, kOperation, "a buffer", inout);
  const bool floating = inout.type == DataType::f32 || inout.type == DataType::f64;
  if (op != ReduceOp::sum && floating) {
    refuse(caller, kOperation,
           std::string(name_of(op)) + " of " + std::string(name_of(inout.type)) +
               ": send the integers of its bits, MAX of floats loses NaN");
  }
  if (op == ReduceOp::sum && inout.type == DataType::u8) {
    refuse(caller, kOperation, "sum of u8, which would overflow: use i32 or i64");
  }
  return {.operation = kOperation, .input = inout, .output = inout, .op = op};
}

CollectiveCall CollectiveCall::exchange(const CallSite& caller, std::vector<Message> sends,
                                        std::vector<Message> receives) {
  for (std::vector<Message>* messages : {&sends, &receives}) {
    for (const Message& message : *messages) check_message(caller, message);
    std::erase_if(*messages, [](const Message& message) { return message.bytes == 0; });
  }
  return {
      .operation = Operation::exchange, .sends = std::move(sends), .receives = std::move(receives)};
}

CollectiveCall CollectiveCall::broadcast(const CallSite& caller, Buffer inout, int root) {
  constexpr auto kOperation = Operation::broadcast;
  check_buffer(caller, kOperation, "a buffer", inout);
  if (root < 0 || root >= caller.size) {
    refuse(caller, kOperation, "root " + std::to_string(root) + ", which is no rank");
  }
  return {.operation = kOperation, .input = inout, .output = inout, .root = root};
}

std::string CollectiveCall::describe() const {
  std::string text(name_of(operation));
  if (operation == Operation::barrier || operation == Operation::exchange) return text;
  text += "(" + std::string(name_of(input.type));
  switch (operation) {
    case Operation::reduce_scatter:
      text += ", counts" + text_of(send_counts);
      break;
    case Operation::all_gather:
      text += ", counts" + text_of(receive_counts);
      break;
    case Operation::all_reduce:
      text += ", " + std::to_string(input.count) + ", " + std::string(name_of(op));
      break;
    case Operation::broadcast:
      text += ", " + std::to_string(input.count) + ", root " + std::to_string(root);
      break;
    default:
      break;
  }
  return text + ")";
}

uint64_t CollectiveCall::digest() const {
  uint64_t hash = mix(kHashSeed, static_cast<uint64_t>(operation));
  if (operation == Operation::barrier || operation == Operation::exchange) return hash;
  hash = mix(hash, static_cast<uint64_t>(input.type));
  hash = mix(hash, static_cast<uint64_t>(op));
  hash = mix(hash, static_cast<uint64_t>(root));
  if (operation != Operation::reduce_scatter && operation != Operation::all_gather)
    return mix(hash, static_cast<uint64_t>(input.count));
  for (const Counts* counts : {&send_counts, &receive_counts}) {
    for (const int64_t count : *counts) hash = mix(hash, static_cast<uint64_t>(count));
  }
  return hash;
}

std::string CollectiveCall::describe_to(int peer) const {
  if (operation != Operation::exchange) return describe();
  const auto text = [peer](const std::vector<Message>& messages, const char* direction) {
    int64_t count = 0;
    int64_t bytes = 0;
    for (const Message& message : messages) {
      if (message.peer != peer) continue;
      ++count;
      bytes += message.bytes;
    }
    return std::to_string(count) + " messages of " + std::to_string(bytes) + " bytes " + direction +
           " rank " + std::to_string(peer);
  };
  return "exchange(" + text(sends, "to") + ", " + text(receives, "from") + ")";
}

bool CollectiveCall::agrees_with(const CollectiveCall& other) const {
  if (operation != other.operation) return false;
  if (operation == Operation::barrier || operation == Operation::exchange) return true;
  if (input.type != other.input.type || op != other.op || root != other.root) return false;
  const bool has_portions =
      operation == Operation::reduce_scatter || operation == Operation::all_gather;
  return has_portions ? send_counts == other.send_counts && receive_counts == other.receive_counts
                      : input.count == other.input.count;
}

uint64_t digest_of(const std::vector<Message>& messages, int peer) {
  uint64_t hash = kHashSeed;
  for (const Message& message : messages) {
    if (message.peer == peer) hash = mix(hash, static_cast<uint64_t>(message.bytes));
  }
  return hash;
}

std::vector<uint64_t> digests_by_peer(const std::vector<Message>& messages, int size) {
  std::vector<uint64_t> hashes(static_cast<size_t>(size), kHashSeed);
  for (const Message& message : messages) {
    uint64_t& hash = hashes[static_cast<size_t>(message.peer)];
    hash = mix(hash, static_cast<uint64_t>(message.bytes));
  }
  return hashes;
}

std::string mismatch_text(std::string_view backend, uint64_t number, Described one,
                          Described other) {
  if (one.rank < other.rank) std::swap(one, other);
  return std::string(backend) + ": rank " + std::to_string(one.rank) + " called " + one.call +
         " where rank " + std::to_string(other.rank) + " called " + other.call + " (operation " +
         std::to_string(number) + "): all ranks must call the same operations in the same order";
}

int64_t offset_of(const Counts& counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
}

std::byte* address_of(const Buffer& buffer, int64_t index) {
  return static_cast<std::byte*>(buffer.data) + index * static_cast<int64_t>(bytes_of(buffer.type));
}

void validate_group(const CallSite& caller, const std::vector<int>& ranks) {
  const std::set<int> distinct(ranks.begin(), ranks.end());
  FUSEDBUN_REQUIRE(
      !ranks.empty() && distinct.size() == ranks.size() && *distinct.begin() >= 0 &&
          *distinct.rbegin() < caller.size,
      ConfigError,
      std::string(caller.backend) + ": rank " + std::to_string(caller.rank) +
          " asked for a group whose list is empty, repeats a rank, or names one outside 0.." +
          std::to_string(caller.size - 1));
}

}  // namespace fusedbun::comm
