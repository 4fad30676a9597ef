#include "fusedbun/dist/step/shared_memory_bucket.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cmath>

#include "fusedbun/dist/step/flat_gradient_bucket.h"
#include "fusedbun/dist/step/tensor_kernels.h"

namespace fusedbun {
namespace {

constexpr int64_t kAlignment = 64;

/// Takes `bytes` from the end of an area that is `used` bytes long so far; returns where they start.
int64_t take(int64_t& used, int64_t bytes) {
  const int64_t offset = used;
  used += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return offset;
}

/// A rank's gradients of a bucket; valid while the window is.
at::Tensor gradients_in(comm::HostWindow& window, int rank, const WindowPlace& place,
                        const plan::Bucket& bucket) {
  return at::from_blob(window.region(rank) + place.gradient_offset, {bucket.elements()},
                       at::TensorOptions().dtype(parameter_type(bucket)));
}

class SharedMemoryBucket final : public FlatGradientBucket {
 public:
  SharedMemoryBucket(const plan::Bucket& bucket, int rank, std::shared_ptr<comm::HostWindow> window,
                     const WindowPlace& place)
      : FlatGradientBucket(bucket, rank, bucket.offsets,
                           gradients_in(*window, rank, place, bucket)),
        window_(std::move(window)),
        place_(place) {
    for (int r = 0; r < std::ssize(bucket_.segments); ++r) {
      everyones_gradients_.push_back(gradients_in(*window_, r, place, bucket_));
    }
    for (const plan::Segment& own : bucket_.segments[rank_]) {
      std::vector<at::Tensor>& summands = summands_.emplace_back();
      for (const at::Tensor& of_rank : everyones_gradients_) {
        summands.push_back(segment_of(of_rank, rank_, own));
      }
    }
  }

  comm::Work start_grad_sync(uint32_t round) override {
    is_summed_ = false;
    window_->post(place_.first_event, round);
    return window_->when_all(place_.first_event, round);
  }

  std::vector<at::Tensor> reduced_gradients(const plan::Segment& own) const override {
    if (is_summed_) {
      return {sum_.narrow(0, own.offset, own.range.elements())
                  .view({own.range.rows(), own.range.columns})};
    }
    return summands_[index_of(own)];
  }

  double reduce_and_norm() override {
    std::vector<at::Tensor> parts;
    for (const at::Tensor& of_rank : everyones_gradients_) {
      parts.push_back(portion_of(of_rank, rank_));
    }
    if (!sum_.defined()) {
      // No other rank reads this portion of this rank's region, so the sum may take its place if its type fits.
      sum_ = sum_type(bucket_) == gradients_.scalar_type()
                 ? portion_of(gradients_, rank_)
                 : at::empty({bucket_.counts[rank_]}, sum_type(bucket_));
    }
    is_summed_ = true;
    return std::sqrt(add_up(parts, sum_));
  }

  comm::Work start_param_sync(std::span<const ParameterMatrix>, const std::vector<bool>&,
                              uint32_t round) override {
    window_->post(place_.first_event + 1, round);
    return window_->when_all(place_.first_event + 1, round);
  }

  void finish_param_sync(std::span<ParameterMatrix>, const std::vector<bool>&) override {
    // The owners wrote them where this rank reads them.
  }

  void step_aside(const std::string& call) noexcept override { window_->step_aside(call); }
  void abandon() noexcept override { window_->abort(); }

 private:
  std::shared_ptr<comm::HostWindow> window_;
  WindowPlace place_;
  std::vector<at::Tensor> everyones_gradients_;    ///< [rank][elements]
  std::vector<std::vector<at::Tensor>> summands_;  ///< [this rank's segment][rank] [rows, m]
  at::Tensor sum_;  ///< [elements of this rank's portion] after reduce_and_norm()
  bool is_summed_ = false;
};

}  // namespace

WindowLayout lay_out_window(const plan::ShardPlan& plan, size_t first_parameter,
                            size_t first_bucket) {
  WindowLayout layout;
  for (size_t b = first_bucket; b < plan.buckets.size(); ++b) {
    const plan::Bucket& bucket = plan.buckets[b];
    const int64_t bytes = bucket.elements() * plan::bytes_of(bucket.type);
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

std::unique_ptr<GradientBucket> make_shared_memory_bucket(const plan::Bucket& bucket, int rank,
                                                          std::shared_ptr<comm::HostWindow> window,
                                                          const WindowPlace& place) {
  return std::make_unique<SharedMemoryBucket>(bucket, rank, std::move(window), place);
}

}  // namespace fusedbun
