#include "fusedbun/dist/comm/rounds.h"

#include <cstring>
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

// Portion r of `input` goes to rank r; mine, reduced over all ranks, into `output`.
Round reduce_scatter(ReduceOp op, Buffer input, Buffer output, const Counts& counts, int rank,
                     int size) {
  const auto width = static_cast<int64_t>(bytes_of(input.type));
  const int64_t mine_bytes = output.count * width;
  Round round;
  const Scratch scratch = make_scratch(mine_bytes * (size - 1));
  std::vector<const void*> parts(static_cast<size_t>(size));
  parts[rank] = address_of(input, offset_of(counts, rank));
  std::byte* free = scratch.get();
  for_each_peer(rank, size, [&](int to, int from) {
    add(round.sends, to, address_of(input, offset_of(counts, to)), counts[to] * width);
    add(round.receives, from, free, mine_bytes);
    parts[from] = std::exchange(free, free + mine_bytes);
  });
  round.then = [op, output, scratch, parts = std::move(parts)] {
    reduce_in_rank_order(op, output.type, parts, output.data, output.count);
  };
  return round;
}

Round all_to_all(Buffer input, const Counts& send_counts, Buffer output,
                 const Counts& receive_counts, int rank, int size) {
  const auto width = static_cast<int64_t>(bytes_of(input.type));
  Round round;
  for_each_peer(rank, size, [&](int to, int from) {
    add(round.sends, to, address_of(input, offset_of(send_counts, to)), send_counts[to] * width);
    add(round.receives, from, address_of(output, offset_of(receive_counts, from)),
        receive_counts[from] * width);
  });
  const void* const source = address_of(input, offset_of(send_counts, rank));
  void* const target = address_of(output, offset_of(receive_counts, rank));
  const auto bytes = static_cast<size_t>(send_counts[rank] * width);
  if (bytes > 0 && source != target) round.then = [=] { std::memcpy(target, source, bytes); };
  return round;
}

Round all_gather(Buffer input, Buffer output, const Counts& counts, int rank, int size) {
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

Round short_all_reduce(ReduceOp op, Buffer inout, int rank, int size) {
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
  round.then = [op, inout, scratch, parts = std::move(parts)] {
    reduce_in_rank_order(op, inout.type, parts, inout.data, inout.count);
  };
  return round;
}

std::vector<Round> all_reduce(ReduceOp op, Buffer inout, int rank, int size) {
  if (inout.count * static_cast<int64_t>(bytes_of(inout.type)) <= kShortAllReduceBytes) {
    return {short_all_reduce(op, inout, rank, size)};
  }
  Counts counts;
  for (int r = 0; r < size; ++r)
    counts.push_back(inout.count / size + (r < inout.count % size ? 1 : 0));
  const Buffer mine{address_of(inout, offset_of(counts, rank)), counts[rank], inout.type};
  return {reduce_scatter(op, inout, mine, counts, rank, size),
          all_gather(mine, inout, counts, rank, size)};
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

Round barrier(int rank, int size) {
  Round round;
  const Scratch scratch = make_scratch(size);
  std::memset(scratch.get(), 0, static_cast<size_t>(size));
  for_each_peer(rank, size, [&](int to, int from) {
    add(round.sends, to, scratch.get() + rank, 1);
    add(round.receives, from, scratch.get() + from, 1);
  });
  round.then = [scratch] {};
  return round;
}

}  // namespace

std::vector<Round> rounds_of(const Call& call, int rank, int size) {
  switch (call.operation) {
    case Operation::reduce_scatter:
      return {reduce_scatter(ReduceOp::sum, call.input, call.output, call.send_counts, rank, size)};
    case Operation::all_gather:
      return {all_gather(call.input, call.output, call.receive_counts, rank, size)};
    case Operation::all_reduce:
      return all_reduce(call.op, call.input, rank, size);
    case Operation::all_to_all:
      return {
          all_to_all(call.input, call.send_counts, call.output, call.receive_counts, rank, size)};
    case Operation::broadcast:
      return broadcast(call.input, call.root, rank, size);
    case Operation::barrier:
      return {barrier(rank, size)};
  }
  return {};
}

}  // namespace fusedbun::comm
