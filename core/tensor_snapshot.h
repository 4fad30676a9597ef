#pragma once
// TensorSnapshot: what a tensor was when the optimizer last looked at it, to find out what the program has done to it
// since. Three kinds of evidence, because each alone has a hole:
//   memory and type   p.set_data(), p.mutable_grad() = ..., torch::load, Module::to
//   version           in-place operations; but those through .data() (LibTorch's clip_grad_norm_) have a separate counter
//   sampled values    writes through .data(); elements that are not zero, since scaling leaves zeros alone
// A write through .data() that misses every sampled element stays unseen.
//
// Thread safety: a value.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace fusedbun {

class TensorSnapshot {
 public:
  enum class Difference : uint8_t { none, values, storage };
  /// Which elements are sampled: a few, spread evenly (parameters: this happens in every step), or some dozens of which a
  /// dozen are not zero, if the tensor has them (gradients).
  enum class Sampling : uint8_t { few, nonzero };

  TensorSnapshot() = default;
  /// `tensor` may be undefined. On a GPU no values are sampled: that would wait for the device.
  TensorSnapshot(const at::Tensor& tensor, Sampling sampling);

  /// How `now` differs from the tensor of the snapshot: other memory or type, other values, or not at all.
  Difference difference(const at::Tensor& now) const;
  /// Whether `now` is the same tensor object and has not been written, judged by the version alone.
  bool has_same_version(const at::Tensor& now) const;

 private:
  const c10::TensorImpl* tensor_ = nullptr;  // compared, never used
  const void* data_ = nullptr;
  at::ScalarType type_ = at::kFloat;
  uint32_t version_ = 0;
  std::vector<std::pair<int64_t, uint64_t>> sample_;  // element in memory, its bits
};

/// Hash of some elements of a tensor on a CPU, the same on every rank for equal values; 0 for an empty tensor.
uint64_t sampled_hash(const at::Tensor& tensor);

/// Whether every element is zero; on a GPU it waits for the device.
bool is_all_zero(const at::Tensor& tensor);

}  // namespace fusedbun
