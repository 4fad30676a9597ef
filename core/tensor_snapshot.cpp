#include "fusedbun/core/tensor_snapshot.h"

#include <ATen/ops/any.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "fusedbun/core/gpu/device_api.h"

namespace fusedbun {
namespace {

/// Elements that are looked at, spread evenly; and how many more if those were mostly zero.
constexpr int64_t kFew = 16, kSpread = 32, kSpreadWide = 2048;
/// As many elements other than zero are wanted.
constexpr int64_t kNonzeroWanted = 12;
/// What is read in one go when a tensor of mostly zeros is searched, bytes.
constexpr int64_t kSearchBlock = 4096;

// Inference tensors have no version.
uint32_t version_of(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : static_cast<uint32_t>(tensor._version());
}

uint64_t bits_at(const std::byte* memory, int64_t element, int64_t width) {
  uint64_t bits = 0;
  std::memcpy(&bits, memory + element * width, static_cast<size_t>(width));
  return bits;
}

/// The elements that are sampled of `count`: every stride-th, each at another place within its stride, so that no column of
/// a matrix is met again and again.
template <class Visit>
void for_each_spread(int64_t count, int64_t wanted, Visit visit) {
  const int64_t stride = std::max<int64_t>(1, count / wanted);
  for (int64_t i = 0; i < wanted && i * stride < count; ++i) {
    const int64_t element = i * stride + (i * 7919) % stride;
    if (element < count && !visit(element)) return;
  }
}

/// The first bytes that are not zero in [begin, bytes), or `bytes`.
int64_t find_nonzero(const std::byte* memory, int64_t begin, int64_t bytes) {
  for (int64_t at = begin; at < bytes; at += kSearchBlock) {
    const int64_t length = std::min(kSearchBlock, bytes - at);
    uint64_t any = 0;
    int64_t i = 0;
    for (; i + 8 <= length; i += 8) {
      uint64_t word;
      std::memcpy(&word, memory + at + i, 8);
      any |= word;
    }
    for (; i < length; ++i) any |= static_cast<uint64_t>(memory[at + i]);
    if (any == 0) continue;
    for (int64_t j = 0; j < length; ++j) {
      if (memory[at + j] != std::byte{0}) return at + j;
    }
  }
  return bytes;
}

using Sample = std::vector<std::pair<int64_t, uint64_t>>;

Sample few_of(const std::byte* memory, int64_t count, int64_t width) {
  Sample sample;
  sample.reserve(kFew);
  for_each_spread(count, kFew, [&](int64_t element) {
    sample.emplace_back(element, bits_at(memory, element, width));
    return true;
  });
  return sample;
}

Sample nonzero_of(const std::byte* memory, int64_t count, int64_t width) {
  Sample sample;
  sample.reserve(kSpread);
  int64_t nonzero = 0;
  const auto take = [&](int64_t element) {
    sample.emplace_back(element, bits_at(memory, element, width));
    nonzero += sample.back().second != 0;
  };
  for_each_spread(count, kSpread, [&](int64_t element) {
    take(element);
    return true;
  });
  if (nonzero >= kNonzeroWanted || count <= kSpread) return sample;
  for_each_spread(count, kSpreadWide, [&](int64_t element) {
    if (bits_at(memory, element, width) != 0) take(element);
    return nonzero < kNonzeroWanted;
  });
  // A gradient of mostly zeros, such as an embedding's: look for the others one after the other.
  for (int64_t at = 0; nonzero < kNonzeroWanted;) {
    at = find_nonzero(memory, at, count * width);
    if (at == count * width) break;
    take(at / width);
    at = (at / width + 1) * width;
  }
  return sample;
}

bool is_sampled(const at::Tensor& tensor) {
  return tensor.is_cpu() && !has_device_api(tensor.device()) && tensor.layout() == at::kStrided &&
         tensor.element_size() <= 8 && tensor.is_non_overlapping_and_dense() && tensor.numel() > 0;
}

}  // namespace

TensorSnapshot::TensorSnapshot(const at::Tensor& tensor, Sampling sampling) {
  if (!tensor.defined()) return;
  tensor_ = tensor.unsafeGetTensorImpl();
  type_ = tensor.scalar_type();
  version_ = version_of(tensor);
  if (tensor.layout() != at::kStrided) return;
  data_ = tensor.const_data_ptr();
  if (!is_sampled(tensor)) return;
  const auto* const memory = static_cast<const std::byte*>(data_);
  const auto width = static_cast<int64_t>(tensor.element_size());
  sample_ = sampling == Sampling::few ? few_of(memory, tensor.numel(), width)
                                      : nonzero_of(memory, tensor.numel(), width);
}

bool TensorSnapshot::has_same_version(const at::Tensor& now) const {
  return now.defined() && tensor_ == now.unsafeGetTensorImpl() && version_ == version_of(now);
}

TensorSnapshot::Difference TensorSnapshot::difference(const at::Tensor& now) const {
  if (!now.defined()) return tensor_ == nullptr ? Difference::none : Difference::storage;
  const void* const data = now.layout() == at::kStrided ? now.const_data_ptr() : nullptr;
  if (tensor_ != now.unsafeGetTensorImpl() || data != data_ || type_ != now.scalar_type()) {
    return Difference::storage;
  }
  if (version_ != version_of(now)) return Difference::values;
  const auto width = static_cast<int64_t>(now.element_size());
  const bool same = std::ranges::all_of(sample_, [&](const auto& element) {
    return element.first < now.numel() &&
           bits_at(static_cast<const std::byte*>(data), element.first, width) == element.second;
  });
  return same ? Difference::none : Difference::values;
}

uint64_t sampled_hash(const at::Tensor& tensor) {
  const at::Tensor values = tensor.detach().contiguous();
  if (!is_sampled(values)) return 0;
  const auto width = static_cast<int64_t>(values.element_size());
  const auto* const memory = static_cast<const std::byte*>(values.const_data_ptr());
  uint64_t hash = static_cast<uint64_t>(values.numel());
  for_each_spread(values.numel(), kSpread, [&](int64_t element) {
    const uint64_t bits = bits_at(memory, element, width);
    hash = XXH3_64bits_withSeed(&bits, sizeof(bits), hash);
    return true;
  });
  return hash;
}

bool is_all_zero(const at::Tensor& tensor) {
  if (is_sampled(tensor)) {
    // -0.0 is no zero here: the gradient of a loop that zeroes has none.
    const auto bytes = static_cast<int64_t>(tensor.nbytes());
    return find_nonzero(static_cast<const std::byte*>(tensor.const_data_ptr()), 0, bytes) == bytes;
  }
  return !at::any(tensor.to_dense()).item<bool>();
}

}  // namespace fusedbun
