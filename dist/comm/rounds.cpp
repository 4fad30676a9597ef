#include "fusedbun/dist/comm/rounds.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>
#include <utility>

#include "fusedbun/dist/comm/reduction.h"

namespace fusedbun::comm {
namespace {

using Scratch = std::shared_ptr<std::byte[]>;

Scratch make_scratch(int64_t bytes) {
  return std::make_shared_for_overwrite<std::byte[]>(static_cast<size_t>(bytes));
}

void add(std::vector<Message>& messages, int peer, std::byte* data, int64_t bytes) {
  if (bytes > 0) messages.push_back({peer, data, bytes});
}

// Calls visit(to, from) once per distance, so that no rank is everybody's first target.
template <class Visit>
void for_each_peer(int rank, int size, Visit visit) {
  for (int distance = 1; distance < size; ++distance) {
    visit((rank + distance) % size, (rank - distance + size) % size);
  }
}

// Elements `begin` to `end` of every portion of `input` go to the portion's rank; mine, reduced over all ranks, go into
// `output`. What arrives is kept in `scratch`.
Round reduce_piece(ReduceOp op, Buffer input, Buffer output, const Counts& counts, int64_t begin,
                   int64_t end, std::byte* scratch, int rank, int size) {
  const auto width = static_cast<int64_t>(bytes_of(input.type));
  const auto length = [&](int r) { return std::clamp<int64_t>(counts[r] - begin, 0, end - begin); };
  Round round;
  std::vector<const void*> parts(static_cast<size_t>(size));
  parts[rank] = address_of(input, offset_of(counts, rank) + begin);
  for_each_peer(rank, size, [&](int to, int from) {
    add(round.sends, to, address_of(input, offset_of(counts, to) + begin), length(to) * width);
    add(round.receives, from, scratch, length(rank) * width);
    parts[from] = std::exchange(scratch, scratch + length(rank) * width);
  });
  if (length(rank) > 0) {
    round.then = [op, type = output.type, parts = std::move(parts),
                  target = address_of(output, begin),
                  count = length(rank)] { reduce_in_rank_order(op, type, parts, target, count); };
  }
  return round;
}

// Portion r of `input` goes to rank r; mine, reduced over all ranks, into `output`.
std::vector<Round> reduce_scatter(ReduceOp op, Buffer input, Buffer output, const Counts& counts,
                                  int rank, int size) {
  const auto width = static_cast<int64_t>(bytes_of(input.type));
  const int64_t piece = kPieceBytes / width;
  const int64_t longest = *std::max_element(counts.begin(), counts.end());
  const int64_t scratch_bytes = std::min(piece, output.count) * width * (size - 1);
  // One place for the piece that is being added up, and one for each that arrives meanwhile.
  std::vector<Scratch> scratch;
  for (int64_t used = 0; used < output.count && scratch.size() <= kRoundsAhead; used += piece) {
    scratch.push_back(make_scratch(scratch_bytes));
  }
  if (scratch.empty()) scratch.push_back(make_scratch(0));
  std::vector<Round> rounds;
  for (int64_t begin = 0; begin < std::max<int64_t>(longest, 1); begin += piece) {
    const Scratch& arrival = scratch[rounds.size() % scratch.size()];
    Round round =
        reduce_piece(op, input, output, counts, begin, begin + piece, arrival.get(), rank, size);
    round.starts_early = begin > 0;
    round.owned = arrival;
    rounds.push_back(std::move(round));
  }
  return rounds;
}

// The nearest peer above comes first, so that no rank is everybody's first target.
Round exchange(std::vector<Message> sends, std::vector<Message> receives, int rank, int size) {
  std::ranges::stable_sort(
      sends, {}, [=](const Message& message) { return (message.peer - rank + size) % size; });
  return {.sends = std::move(sends), .receives = std::move(receives), .then = {}};
}

Round direct_all_gather(Buffer input, Buffer output, const Counts& counts, int rank, int size) {
  const auto width = static_cast<int64_t>(bytes_of(input.type));
  Round round;
  for_each_peer(rank, size, [&](int to, int from) {
    add(round.sends, to, address_of(input, 0), input.count * width);
    add(round.receives, from, address_of(output, offset_of(counts, from)), counts[from] * width);
  });
  void* const target = address_of(output, offset_of(counts, rank));
  const auto bytes = static_cast<size_t>(input.count * width);
  if (bytes > 0 && input.data != target) {
    round.then = [=, source = input.data] { std::memcpy(target, source, bytes); };
  }
  return round;
}

// The bytes of portions `first` to `first + count - 1`, counted modulo the ranks: one message, or two around the end.
void add_portions(std::vector<Message>& messages, int peer, const Buffer& whole,
                  const Counts& offsets, int first, int count) {
  const auto width = static_cast<int64_t>(bytes_of(whole.type));
  const int size = static_cast<int>(offsets.size()) - 1;
  const auto add_range = [&](int begin, int end) {
    add(messages, peer, address_of(whole, offsets[begin]), (offsets[end] - offsets[begin]) * width);
  };
  first %= size;
  add_range(first, std::min(first + count, size));
  if (first + count > size) add_range(0, first + count - size);
}

// Bruck's: who has the portions of 1, 2, 4, ... ranks from itself on gets as many more from the rank so far away.
std::vector<Round> doubling_all_gather(Buffer input, Buffer output, const Counts& counts, int rank,
                                       int size) {
  Counts offsets{0};
  for (const int64_t count : counts) offsets.push_back(offsets.back() + count);
  const auto bytes = static_cast<size_t>(input.count) * bytes_of(input.type);
  void* const place = address_of(output, offsets[rank]);
  std::vector<Round> rounds;
  for (int have = 1; have < size; have *= 2) {
    const int more = std::min(have, size - have);
    const int to = (rank - have + size) % size;
    const int from = (rank + have) % size;
    Round round;
    if (have == 1) {
      add(round.sends, to, address_of(input, 0), static_cast<int64_t>(bytes));
      if (bytes > 0 && input.data != place) {
        round.then = [=, source = input.data] { std::memcpy(place, source, bytes); };
      }
    } else {
      add_portions(round.sends, to, output, offsets, rank, more);
    }
    add_portions(round.receives, from, output, offsets, rank + have, more);
    rounds.push_back(std::move(round));
  }
  return rounds;
}

std::vector<Round> all_gather(Buffer input, Buffer output, const Counts& counts, int rank,
                              int size) {
  const int64_t bytes = output.count * static_cast<int64_t>(bytes_of(output.type));
  if (size > kDirectRanks && bytes <= kShortPortionBytes * size) {
    return doubling_all_gather(input, output, counts, rank, size);
  }
  return {direct_all_gather(input, output, counts, rank, size)};
}

// For operations that may take a part in twice: after step k every rank has those of the 2^k ranks below.
std::vector<Round> doubling_all_reduce(ReduceOp op, Buffer inout, int rank, int size) {
  const int64_t bytes = inout.count * static_cast<int64_t>(bytes_of(inout.type));
  std::vector<Round> rounds;
  for (int distance = 1; distance < size; distance *= 2) {
    const Scratch arrived = make_scratch(bytes);
    Round round;
    add(round.sends, (rank + distance) % size, address_of(inout, 0), bytes);
    add(round.receives, (rank - distance + size) % size, arrived.get(), bytes);
    round.owned = arrived;
    round.then = [op, inout, part = arrived.get()] {
      const void* const parts[] = {inout.data, part};
      reduce_in_rank_order(op, inout.type, parts, inout.data, inout.count);
    };
    rounds.push_back(std::move(round));
  }
  return rounds;
}

// The ranks of a binomial tree below `place`, it included: place .. place + reach - 1, as far as there are any.
int reach_of(int place, int size) {
  int reach = 1;
  while (reach < size && (place & reach) == 0) reach *= 2;
  return std::min(reach, size - place);
}

std::vector<Round> broadcast(Buffer inout, int root, int rank, int size);

// Every rank's part goes up a binomial tree to rank 0, which adds them in rank order; the sum comes down.
std::vector<Round> tree_all_reduce(ReduceOp op, Buffer inout, int rank, int size) {
  const int64_t bytes = inout.count * static_cast<int64_t>(bytes_of(inout.type));
  const int below = reach_of(rank, size);
  const Scratch parts = make_scratch(bytes * below);  // of rank, rank + 1, ...
  if (bytes > 0) std::memcpy(parts.get(), inout.data, static_cast<size_t>(bytes));
  Round receive;
  receive.owned = parts;
  for (int child = 1; child < below; child *= 2) {
    add(receive.receives, rank + child, parts.get() + bytes * child,
        bytes * std::min(child, below - child));
  }
  if (rank == 0) {
    receive.then = [op, inout, parts, bytes, size] {
      std::vector<const void*> each;
      for (int r = 0; r < size; ++r) each.push_back(parts.get() + bytes * r);
      reduce_in_rank_order(op, inout.type, each, inout.data, inout.count);
    };
  }
  std::vector<Round> rounds{std::move(receive)};
  if (rank != 0) {
    Round send;
    send.owned = parts;
    add(send.sends, rank & (rank - 1), parts.get(), bytes * below);  // without its lowest bit
    rounds.push_back(std::move(send));
  }
  std::ranges::move(broadcast(inout, 0, rank, size), std::back_inserter(rounds));
  return rounds;
}

Round direct_all_reduce(ReduceOp op, Buffer inout, int rank, int size) {
  const int64_t bytes = inout.count * static_cast<int64_t>(bytes_of(inout.type));
  Round round;
  const Scratch scratch = make_scratch(bytes * (size - 1));
  std::vector<const void*> parts(static_cast<size_t>(size));
  parts[rank] = inout.data;
  std::byte* free = scratch.get();
  for_each_peer(rank, size, [&](int to, int from) {
    add(round.sends, to, address_of(inout, 0), bytes);
    add(round.receives, from, free, bytes);
    parts[from] = std::exchange(free, free + bytes);
  });
  round.owned = scratch;
  round.then = [op, inout, parts = std::move(parts)] {
    reduce_in_rank_order(op, inout.type, parts, inout.data, inout.count);
  };
  return round;
}

std::vector<Round> all_reduce(ReduceOp op, Buffer inout, int rank, int size) {
  if (inout.count * static_cast<int64_t>(bytes_of(inout.type)) <= kShortAllReduceBytes) {
    if (size <= kDirectRanks) return {direct_all_reduce(op, inout, rank, size)};
    return op == ReduceOp::sum ? tree_all_reduce(op, inout, rank, size)
                               : doubling_all_reduce(op, inout, rank, size);
  }
  Counts counts;
  for (int r = 0; r < size; ++r)
    counts.push_back(inout.count / size + (r < inout.count % size ? 1 : 0));
  const Buffer mine{address_of(inout, offset_of(counts, rank)), counts[rank], inout.type};
  std::vector<Round> rounds = reduce_scatter(op, inout, mine, counts, rank, size);
  std::ranges::move(all_gather(mine, inout, counts, rank, size), std::back_inserter(rounds));
  return rounds;
}

// Ranks count from the root; who has the data sends it 1, 2, 4, ... ranks further, the farthest first.
std::vector<Round> broadcast(Buffer inout, int root, int rank, int size) {
  const int64_t bytes = inout.count * static_cast<int64_t>(bytes_of(inout.type));
  const int place = (rank - root + size) % size;
  std::vector<Round> rounds;
  int reach = 1;  // my children are place + 1, 2, 4, ... below this
  while (reach < size && (place & reach) == 0) reach <<= 1;
  if (place != 0) {
    Round receive;
    add(receive.receives, (place - reach + root) % size, address_of(inout, 0), bytes);
    rounds.push_back(std::move(receive));
  }
  Round send;
  for (int step = reach >> 1; step > 0; step >>= 1) {
    if (place + step < size)
      add(send.sends, (place + step + root) % size, address_of(inout, 0), bytes);
  }
  rounds.push_back(std::move(send));
  return rounds;
}

Round direct_barrier(int rank, int size) {
  Round round;
  const Scratch scratch = make_scratch(size);
  std::memset(scratch.get(), 0, static_cast<size_t>(size));
  for_each_peer(rank, size, [&](int to, int from) {
    add(round.sends, to, scratch.get() + rank, 1);
    add(round.receives, from, scratch.get() + from, 1);
  });
  round.owned = scratch;
  return round;
}

// After step k every rank knows that the 2^k ranks below have entered.
std::vector<Round> barrier(int rank, int size) {
  if (size <= kDirectRanks) return {direct_barrier(rank, size)};
  const Scratch bytes = make_scratch(2);
  std::memset(bytes.get(), 0, 2);
  std::vector<Round> rounds;
  for (int distance = 1; distance < size; distance *= 2) {
    Round round;
    add(round.sends, (rank + distance) % size, bytes.get(), 1);
    add(round.receives, (rank - distance + size) % size, bytes.get() + 1, 1);
    round.owned = bytes;
    rounds.push_back(std::move(round));
  }
  return rounds;
}

}  // namespace

std::vector<Round> rounds_of(const CollectiveCall& call, int rank, int size) {
  switch (call.operation) {
    case Operation::reduce_scatter:
      return reduce_scatter(ReduceOp::sum, call.input, call.output, call.send_counts, rank, size);
    case Operation::all_gather:
      return all_gather(call.input, call.output, call.receive_counts, rank, size);
    case Operation::all_reduce:
      return all_reduce(call.op, call.input, rank, size);
    case Operation::exchange:
      return {exchange(call.sends, call.receives, rank, size)};
    case Operation::broadcast:
      return broadcast(call.input, call.root, rank, size);
    case Operation::barrier:
      return barrier(rank, size);
  }
  return {};
}

}  // namespace fusedbun::comm
