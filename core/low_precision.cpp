#include "fusedbun/core/low_precision.h"

#include <ATen/ATen.h>

namespace fusedbun {
namespace {

using at::Tensor;

constexpr int64_t kWord = 0xffffffff;

// Unsigned words and half words, in int64.
Tensor words_of(const Tensor& values) {
  const Tensor bits = values.contiguous().view(at::kInt).to(at::kLong).bitwise_and(kWord);
  return at::where(values.isnan(), at::scalar_tensor(0x7fc00000, bits.options()), bits);
}
Tensor halves_of(const Tensor& shorts) {
  return shorts.to(at::kLong).bitwise_and(0xffff);
}
void put_upper_halves(const Tensor& words, Tensor& parameter) {
  parameter.copy_(words.bitwise_right_shift(16).to(at::kShort).view(at::kBFloat16));
}

// stochastic_rounding.h's.
Tensor mixed(Tensor x) {
  x = x.bitwise_xor(x.bitwise_right_shift(16)).mul(0x7feb352d).bitwise_and(kWord);
  x = x.bitwise_xor(x.bitwise_right_shift(15)).mul(0x846ca68b).bitwise_and(kWord);
  return x.bitwise_xor(x.bitwise_right_shift(16));
}

}  // namespace

Tensor with_remainder(const Tensor& parameter, const Tensor& remainder) {
  const Tensor high = halves_of(parameter.contiguous().view(at::kShort));
  Tensor low = halves_of(remainder);
  const Tensor is_written = high.bitwise_and(0x7fff).lt(low.bitwise_right_shift(15));
  low = low.masked_fill(is_written, 0);
  const Tensor upper = high.sub(low.bitwise_right_shift(15)).bitwise_left_shift(16);
  return upper.bitwise_or(low).to(at::kInt).view(at::kFloat);
}

void put_with_remainder(const Tensor& values, Tensor& parameter, Tensor& remainder) {
  const Tensor words = words_of(values);
  put_upper_halves(words.add(0x8000), parameter);
  remainder.copy_(words.bitwise_and(0xffff).to(at::kShort));
}

void round_stochastically(const Tensor& values, uint32_t seed, int64_t first_element,
                          Tensor& parameter) {
  const Tensor words = words_of(values);
  const Tensor element = at::arange(first_element, first_element + values.numel(), words.options())
                             .view(values.sizes());
  const Tensor random =
      mixed(element.add(static_cast<int64_t>(seed)).bitwise_and(kWord)).bitwise_right_shift(16);
  // A NaN's word is the quiet one's, whose lower half is 0: nothing is carried into it.
  put_upper_halves(words.add(random), parameter);
}

}  // namespace fusedbun
