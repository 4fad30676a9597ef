// A bucket of ranks that share a host: gradients are read where every rank wrote them, parameters are one replica.
#include <ATen/ops/from_blob.h>

#include <cmath>

#include "fusedbun/dist/step/flat_gradients.h"

namespace fusedbun {
namespace {

at::Tensor in_window(std::byte* memory, int64_t offset, int64_t elements, at::ScalarType type) {
  return at::from_blob(memory + offset, {elements}, at::TensorOptions().dtype(type));
}

class SharedMemoryBucket : public FlatGradients {
 public:
  SharedMemoryBucket(const plan::Bucket& bucket, int rank, std::shared_ptr<comm::HostWindow> window,
                     const WindowPlace& place)
      : FlatGradients(bucket, rank,
                      in_window(window->region(rank), place.gradient_offset, bucket.elements(),
                                gradient_type(bucket))),
        window_(std::move(window)),
        place_(place) {
    for (int r = 0; r < static_cast<int>(bucket.segments.size()); ++r) {
      everyones_gradients_.push_back(in_window(window_->region(r), place.gradient_offset,
                                               bucket.elements(), gradient_type(bucket)));
    }
  }

  comm::Work start_grad_sync(uint32_t round) override {
    summed_ = false;
    window_->post(place_.first_event, round);
    return window_->when_all(place_.first_event, round);
  }

  std::vector<at::Tensor> reduced_gradients(const plan::Segment& own) const override {
    if (summed_) return {segment_of(gradients_, rank_, own)};
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& theirs : everyones_gradients_) {
      gradients.push_back(segment_of(theirs, rank_, own));
    }
    return gradients;
  }

  double reduce_and_norm() override {
    // This rank's portion of its own region is read by nobody else, so the sum may take its place.
    std::vector<at::Tensor> parts;
    for (const at::Tensor& theirs : everyones_gradients_) {
      parts.push_back(portion_of(theirs, rank_));
    }
    summed_ = true;
    return std::sqrt(add_up(parts, portion_of(gradients_, rank_)));
  }

  comm::Work start_param_sync(std::span<const ParameterMatrix>, const std::vector<bool>&,
                              uint32_t round) override {
    window_->post(place_.first_event + 1, round);
    return window_->when_all(place_.first_event + 1, round);
  }

  void finish_param_sync(std::span<ParameterMatrix>, const std::vector<bool>&) override {
    // The owners wrote them where this rank reads them.
  }

  void abandon() noexcept override { window_->abort(); }

 private:
  std::shared_ptr<comm::HostWindow> window_;
  WindowPlace place_;
  std::vector<at::Tensor> everyones_gradients_;  ///< [rank][elements]
  bool summed_ = false;  ///< this rank's portion of gradients_ holds the sum over ranks
};

}  // namespace

std::unique_ptr<GradientBucket> make_shared_memory_bucket(const plan::Bucket& bucket, int rank,
                                                          std::shared_ptr<comm::HostWindow> window,
                                                          const WindowPlace& place) {
  return std::make_unique<SharedMemoryBucket>(bucket, rank, std::move(window), place);
}

}  // namespace fusedbun
