#include "fusedbun/launcher/bench/memory_roofline.h"

#include "fusedbun/core/error.h"

// Compiles a loop once more for AVX2, and the program takes what the machine has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FUSEDBUN_WIDEST __attribute__((target_clones("avx2", "default")))
#else
#define FUSEDBUN_WIDEST
#endif

namespace fusedbun::bench {
namespace {

constexpr float kStep = 1e-9f;  // keeps the values where they are

template <class T>
T* moved(T* pointer, int64_t elements) {
  return pointer == nullptr ? nullptr : pointer + elements;
}

FUSEDBUN_WIDEST void plain(float* __restrict p, const float* __restrict g, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] -= kStep * g[i];
}

FUSEDBUN_WIDEST void one_more(float* __restrict p, const float* __restrict g, float* __restrict m,
                              int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    m[i] = 0.9f * m[i] + g[i];
    p[i] -= kStep * m[i];
  }
}

FUSEDBUN_WIDEST void one_more_bf16(float* __restrict p, const float* __restrict g,
                                   uint16_t* __restrict m, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    m[i] = static_cast<uint16_t>(m[i] ^ 1u);
    p[i] -= kStep * g[i];
  }
}

FUSEDBUN_WIDEST void two_more(float* __restrict p, const float* __restrict g, float* __restrict m,
                              float* __restrict v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    m[i] = 0.9f * m[i] + g[i];
    v[i] = 0.9f * v[i] + g[i];
    p[i] -= kStep * (m[i] + v[i]);
  }
}

FUSEDBUN_WIDEST void rounded(float* __restrict p, uint16_t* __restrict half,
                             const uint16_t* __restrict g, float* __restrict m, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    m[i] = 0.9f * m[i] + kStep * static_cast<float>(g[i]);
    p[i] -= kStep * m[i];
    half[i] = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, p[i]) >> 16);
  }
}

FUSEDBUN_WIDEST void halves(uint16_t* __restrict p, const uint16_t* __restrict g, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = static_cast<uint16_t>(p[i] ^ (g[i] & 1u));
}

FUSEDBUN_WIDEST void halves_one_more(uint16_t* __restrict p, const uint16_t* __restrict g,
                                     uint16_t* __restrict m, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    m[i] = static_cast<uint16_t>(m[i] ^ (g[i] & 1u));
    p[i] = static_cast<uint16_t>(p[i] ^ (m[i] & 1u));
  }
}

}  // namespace

int Streams::bytes() const {
  int bytes = parameter != nullptr ? 8 : 0;
  if (rounded != nullptr) bytes += parameter != nullptr ? 2 : 4;
  bytes += bf16_gradient != nullptr ? 2 : 4;
  if (momentum != nullptr) bytes += 8;
  if (bf16_momentum != nullptr) bytes += 4;
  if (full != nullptr) bytes += 8;
  return bytes;
}

Streams Streams::from(int64_t element) const {
  return {moved(parameter, element), moved(this->rounded, element),
          moved(gradient, element),  moved(bf16_gradient, element),
          moved(momentum, element),  moved(bf16_momentum, element),
          moved(full, element)};
}

void pass_over(const Streams& s, int64_t count) {
  if (s.parameter == nullptr) {
    FUSEDBUN_ASSERT(s.rounded && s.bf16_gradient && !s.momentum && !s.full,
                    "no loop for these streams");
    s.bf16_momentum != nullptr ? halves_one_more(s.rounded, s.bf16_gradient, s.bf16_momentum, count)
                               : halves(s.rounded, s.bf16_gradient, count);
  } else if (s.rounded != nullptr) {
    FUSEDBUN_ASSERT(s.bf16_gradient && s.momentum && !s.full && !s.bf16_momentum,
                    "no loop for these streams");
    rounded(s.parameter, s.rounded, s.bf16_gradient, s.momentum, count);
  } else if (s.bf16_momentum != nullptr) {
    FUSEDBUN_ASSERT(!s.full, "no loop for these streams");
    one_more_bf16(s.parameter, s.gradient, s.bf16_momentum, count);
  } else if (s.momentum != nullptr && s.full != nullptr) {
    two_more(s.parameter, s.gradient, s.momentum, s.full, count);
  } else if (s.momentum != nullptr || s.full != nullptr) {
    one_more(s.parameter, s.gradient, s.momentum != nullptr ? s.momentum : s.full, count);
  } else {
    plain(s.parameter, s.gradient, count);
  }
}

}  // namespace fusedbun::bench
