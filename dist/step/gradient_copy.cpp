#include "fusedbun/dist/step/gradient_copy.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "fusedbun/core/step_cpu.h"
#include "fusedbun/core/widest.h"

namespace fusedbun {
namespace {

/// What is tested and then copied while it lies in the first-level cache, bytes.
constexpr int64_t kBlock = 16 << 10;
/// From this size on, a copy is gone from the caches before anybody reads it, bytes.
constexpr int64_t kPastCaches = 1 << 20;

#if defined(__SSE2__)
/// A copy that does not read its destination first, as ordinary stores do, and leaves the caches to others.
void copy_past_caches(const std::byte* source, std::byte* destination, int64_t bytes) {
  constexpr int64_t kLine = 64, kVector = sizeof(__m128i);
  const auto address = reinterpret_cast<uintptr_t>(destination);
  const int64_t head = std::min<int64_t>(bytes, -address % kLine);
  std::memcpy(destination, source, head);
  int64_t at = head;
  for (; at + kLine <= bytes; at += kLine) {
    __builtin_prefetch(source + at + kBlock);  // the next block's test finds it in cache
    for (int64_t i = at; i < at + kLine; i += kVector) {
      const auto* const from = reinterpret_cast<const __m128i*>(source + i);
      _mm_stream_si128(reinterpret_cast<__m128i*>(destination + i), _mm_loadu_si128(from));
    }
  }
  std::memcpy(destination + at, source + at, bytes - at);
}
void end_copies_past_caches() {
  _mm_sfence();  // they are ordered with nothing else
}
#else
void copy_past_caches(const std::byte* source, std::byte* destination, int64_t bytes) {
  std::memcpy(destination, source, bytes);
}
void end_copies_past_caches() {}
#endif

template <class Float>
bool copy_and_test_blocks(const Float* source, Float* destination, int64_t count) {
  constexpr auto kSize = static_cast<int64_t>(sizeof(Float));
  const bool past_caches = count * kSize >= kPastCaches;
  bool finite = true;
  for (int64_t begin = 0; begin < count; begin += kBlock / kSize) {
    const int64_t length = std::min(kBlock / kSize, count - begin);
    finite &= squares_are_finite(source + begin, length);
    if (past_caches) {
      copy_past_caches(reinterpret_cast<const std::byte*>(source + begin),
                       reinterpret_cast<std::byte*>(destination + begin), length * kSize);
    } else {
      std::memcpy(destination + begin, source + begin, length * kSize);
    }
  }
  if (past_caches) end_copies_past_caches();
  return finite;
}

}  // namespace

bool copy_and_test(const float* source, float* destination, int64_t count) {
  return copy_and_test_blocks(source, destination, count);
}

bool copy_and_test(const double* source, double* destination, int64_t count) {
  return copy_and_test_blocks(source, destination, count);
}

// The exponent's bits are tested as integers, because a loop that ORs them is one that compilers turn into vector code without being
// allowed to reorder floating point.
FUSEDBUN_WIDEST bool copy_and_test(const float* source, uint16_t* destination, int64_t count) {
  uint32_t nonfinite = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float g = source[i];
    const auto bits = std::bit_cast<uint32_t>(g);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    destination[i] = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
    const auto square = std::bit_cast<uint32_t>(g * g);
    nonfinite |= static_cast<uint32_t>((square & 0x7f800000u) == 0x7f800000u);
  }
  return nonfinite == 0;
}

bool copy_and_test(const at::Tensor& source, const at::Tensor& destination) {
  const int64_t count = source.numel();
  if (destination.scalar_type() == at::kBFloat16) {
    return copy_and_test(source.const_data_ptr<float>(),
                         static_cast<uint16_t*>(destination.mutable_data_ptr()), count);
  }
  if (source.scalar_type() == at::kDouble) {
    return copy_and_test(source.const_data_ptr<double>(), destination.mutable_data_ptr<double>(),
                         count);
  }
  return copy_and_test(source.const_data_ptr<float>(), destination.mutable_data_ptr<float>(),
                       count);
}

bool squares_are_finite(const at::Tensor& gradient) {
  return gradient.scalar_type() == at::kDouble
             ? squares_are_finite(gradient.const_data_ptr<double>(), gradient.numel())
             : squares_are_finite(gradient.const_data_ptr<float>(), gradient.numel());
}

}  // namespace fusedbun
