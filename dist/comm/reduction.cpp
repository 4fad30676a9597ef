#include "fusedbun/dist/comm/reduction.h"

#include <algorithm>
#include <cstring>

#include "fusedbun/core/error.h"
#include "fusedbun/core/gradient_kernels.h"

namespace fusedbun::comm {
namespace {

// A block stays in the first-level cache while all parts are added to it, so each part is read once
// and the output written once, and an output that is also a part is read before it is written.
// Floating point sums are core's (gradient_kernels.h).
constexpr int64_t kBlockBytes = 8192;

// Integers wrap around as two's complement numbers, without undefined behaviour.
template <class T>
struct Sum {
  static T of(T a, T b) {
    using Unsigned = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
  }
};

template <class T>
struct Max {
  static T of(T a, T b) { return a < b ? b : a; }
};

template <class T>
struct BitOr {
  static T of(T a, T b) { return static_cast<T>(a | b); }
};

// `part(r)` is the r-th input.
template <class T, class Op, class PartOf>
void reduce(size_t part_count, PartOf part, T* output, int64_t count) {
  constexpr int64_t kBlock = kBlockBytes / static_cast<int64_t>(sizeof(T));
  T block[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t length = std::min(kBlock, count - begin);
    std::memcpy(block, part(0) + begin, static_cast<size_t>(length) * sizeof(T));
    for (size_t r = 1; r < part_count; ++r) {
      const T* const next = part(r) + begin;
      for (int64_t i = 0; i < length; ++i) block[i] = Op::of(block[i], next[i]);
    }
    std::memcpy(output + begin, block, static_cast<size_t>(length) * sizeof(T));
  }
}

template <class T>
void reduce_integers(ReduceOp op, std::span<const void* const> parts, void* output, int64_t count) {
  const auto part = [&](size_t r) { return static_cast<const T*>(parts[r]); };
  switch (op) {
    case ReduceOp::sum:
      return reduce<T, Sum<T>>(parts.size(), part, static_cast<T*>(output), count);
    case ReduceOp::max:
      return reduce<T, Max<T>>(parts.size(), part, static_cast<T*>(output), count);
    case ReduceOp::bit_or:
      return reduce<T, BitOr<T>>(parts.size(), part, static_cast<T*>(output), count);
  }
}

}  // namespace

void reduce_in_rank_order(ReduceOp op, DataType type, std::span<const void* const> parts,
                          void* output, int64_t count) {
  FUSEDBUN_ASSERT(
      op == ReduceOp::sum || (type != DataType::f32 && type != DataType::f64),
      "floating point numbers are only added up: a CollectiveCall refuses anything else");
  switch (type) {
    case DataType::u8:
      return reduce_integers<uint8_t>(op, parts, output, count);
    case DataType::i32:
      return reduce_integers<int32_t>(op, parts, output, count);
    case DataType::i64:
      return reduce_integers<int64_t>(op, parts, output, count);
    case DataType::f32:
      return sum_in_order(parts, ElementType::f32, static_cast<float*>(output), count);
    case DataType::f64:
      return sum_in_order(parts, ElementType::f64, static_cast<double*>(output), count);
  }
  FUSEDBUN_ASSERT(false, "a DataType that does not exist");
}

}  // namespace fusedbun::comm
