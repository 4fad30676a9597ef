#include "fusedbun/dist/step/window_layout.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>

namespace fusedbun {
namespace {

constexpr int64_t kAlignment = 64;

/// Takes `bytes` from the end of an area that is `used` bytes long so far; returns where they start.
int64_t take(int64_t& used, int64_t bytes) {
  const int64_t offset = used;
  used += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return offset;
}

}  // namespace

WindowLayout lay_out_window(const plan::ShardPlan& plan, size_t first_parameter,
                            size_t first_bucket) {
  WindowLayout layout;
  for (size_t b = first_bucket; b < plan.buckets.size(); ++b) {
    const plan::Bucket& bucket = plan.buckets[b];
    const int64_t bytes = bucket.elements() * plan::arithmetic_bytes_of(bucket.type);
    layout.buckets.push_back({.gradient_offset = take(layout.size.region_bytes, bytes),
                              .first_event = layout.size.events});
    layout.size.events += 2;
  }
  for (size_t p = first_parameter; p < plan.parameters.size(); ++p) {
    const plan::ParameterSpec& parameter = plan.parameters[p];
    layout.parameter_offsets.push_back(
        take(layout.size.shared_bytes, parameter.elements() * plan::bytes_of(parameter.type)));
  }
  return layout;
}

void move_into_window(const at::Tensor& parameter, std::shared_ptr<comm::HostWindow> window,
                      int64_t offset, bool copy) {
  if (parameter.numel() == 0) return;
  at::NoGradGuard no_grad;
  void* memory = window->shared() + offset;
  const at::Tensor replica = at::from_blob(
      memory, parameter.sizes(), [window](void*) {},
      at::TensorOptions().dtype(parameter.scalar_type()));
  if (copy) replica.copy_(parameter);
  parameter.set_data(replica);
}

}  // namespace fusedbun
