#include "fusedbun/dist/comm/reduction.h"

#include <algorithm>
#include <cstring>

#include "fusedbun/core/error.h"

namespace fusedbun::comm {
namespace {

// A block stays in the first-level cache while all parts are added to it, so each part is read once
// and the output written once, and an output that is also a part is read before it is written.
constexpr int64_t kBlockBytes = 8192;

template <class T>
struct Sum {
  // Integers wrap around as two's complement numbers, without undefined behaviour.
  static T of(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      using Unsigned = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
    } else {
      return a + b;
    }
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
void reduce_as(ReduceOp op, std::span<const void* const> parts, void* output, int64_t count) {
  const auto part = [&](size_t r) { return static_cast<const T*>(parts[r]); };
  if (op == ReduceOp::sum) {
    reduce<T, Sum<T>>(parts.size(), part, static_cast<T*>(output), count);
  } else if (op == ReduceOp::max) {
    reduce<T, Max<T>>(parts.size(), part, static_cast<T*>(output), count);
  } else if constexpr (std::is_integral_v<T>) {
    reduce<T, BitOr<T>>(parts.size(), part, static_cast<T*>(output), count);
  } else {
    FUSEDBUN_ASSERT(false, "bitwise or of floating point numbers, which a Call refuses");
  }
}

}  // namespace

void sum_in_rank_order(std::span<const float* const> parts, float* output, int64_t count) {
  reduce<float, Sum<float>>(
      parts.size(), [&](size_t r) { return parts[r]; }, output, count);
}

void sum_in_rank_order(std::span<const double* const> parts, double* output, int64_t count) {
  reduce<double, Sum<double>>(
      parts.size(), [&](size_t r) { return parts[r]; }, output, count);
}

void reduce_in_rank_order(ReduceOp op, DataType type, std::span<const void* const> parts,
                          void* output, int64_t count) {
  switch (type) {
    case DataType::u8:
      return reduce_as<uint8_t>(op, parts, output, count);
    case DataType::i32:
      return reduce_as<int32_t>(op, parts, output, count);
    case DataType::i64:
      return reduce_as<int64_t>(op, parts, output, count);
    case DataType::f32:
      return reduce_as<float>(op, parts, output, count);
    case DataType::f64:
      return reduce_as<double>(op, parts, output, count);
  }
  FUSEDBUN_ASSERT(false, "a DataType that does not exist");
}

}  // namespace fusedbun::comm
