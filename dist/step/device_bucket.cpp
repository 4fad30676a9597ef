#include "fusedbun/dist/step/device_bucket.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "fusedbun/core/gpu/device_move.h"
#include "fusedbun/core/segment_step.h"
#include "fusedbun/dist/step/collective_bucket.h"
#include "fusedbun/dist/step/device_stream.h"

namespace fusedbun {
namespace {

using device::MovePiece;
using device::MoveSource;

// What is the same for one rank and for many: gradients are remembered, and tested.
class DeviceBucket : public GradientBucket {
 public:
  DeviceBucket(const plan::Bucket& bucket, at::Device device, int rank, StepsUnderWay& under_way)
      : GradientBucket(bucket, rank),
        api_(device_api_of(device)),
        device_(device),
        under_way_(under_way),
        taken_(bucket.parameters.size()) {
    for (const int parameter : bucket_.parameters) places_.emplace(parameter, places_.size());
  }

  bool add_gradient(int parameter, const at::Tensor& gradient) override {
    at::Tensor& taken = taken_[place_of(parameter)];
    if (taken.defined()) let_go({taken});
    taken = as_taken(bucket_, gradient);
    streams_.insert(api_.current_stream().handle());
    return true;
  }

  void add_zero_gradient(int parameter) override {
    at::Tensor& taken = taken_[place_of(parameter)];
    if (taken.defined()) let_go({std::exchange(taken, {})});
  }

  void test_gradients() override {
    const CudaStream stream = api_.current_stream();
    if (!tested_) tested_ = DeviceMove(api_, device_, pieces_of_gradients(), places(), stream);
    tested_->run(sources(MoveSource::What::stays), under_way_.control(), stream);
  }

  void release_gradients() override {
    std::vector<at::Tensor> taken;
    for (at::Tensor& gradient : taken_) {
      if (gradient.defined()) taken.push_back(std::exchange(gradient, {}));
    }
    if (!taken.empty()) let_go(std::move(taken));
    made_elsewhere_ = false;
  }

 protected:
  size_t place_of(int parameter) const { return places_.at(parameter); }
  int64_t places() const { return std::ssize(taken_); }
  at::Tensor zeros(int64_t elements, at::ScalarType type) const {
    return at::zeros({elements}, at::TensorOptions(device_).dtype(type));
  }

  // Hooks run on the streams of their forward passes, the bucket goes on on one of them.
  void join_streams(CudaStream stream) {
    for (void* const other : streams_) {
      if (other == stream.handle()) continue;
      api_.wait_on(stream, *api_.record(CudaStream(other)));
      made_elsewhere_ = true;
    }
    streams_.clear();
  }

  // By place; `missing` is what a parameter without a gradient is.
  std::vector<MoveSource> sources(MoveSource::What missing) const {
    std::vector<MoveSource> sources;
    for (const at::Tensor& taken : taken_)
      sources.push_back(taken.defined() ? source_of(taken) : MoveSource{.what = missing});
    return sources;
  }

  // All segments of all parameters, in the order of places; they are only looked at.
  std::vector<MovePiece> pieces_of_gradients() const {
    std::vector<MovePiece> pieces;
    for (const int parameter : bucket_.parameters) {
      for (const auto& [rank, index] : segments_of(parameter)) {
        const RowRange& range = bucket_.segments[rank][index].range;
        pieces.push_back({.source = static_cast<int32_t>(place_of(parameter)),
                          .first_element = range.row_begin * range.columns,
                          .elements = range.elements()});
      }
    }
    return pieces;
  }

  // What the stream has been given may still read them.
  void let_go(std::vector<at::Tensor> gradients) {
    api_.keep(std::move(gradients), made_elsewhere_, api_.current_stream());
  }

  DeviceApi& api_;
  const at::Device device_;
  StepsUnderWay& under_way_;
  std::vector<at::Tensor> taken_;  ///< by place; undefined: zeros
  std::optional<DeviceMove> tested_;

 private:
  std::unordered_map<int, size_t> places_;  ///< by parameter, in bucket_.parameters
  std::set<void*> streams_;                 ///< on which gradients were added since the last start
  bool made_elsewhere_ = false;             ///< some came on another stream than the bucket's
};

// One rank: its gradients are the sum.
class OwnDeviceBucket final : public DeviceBucket {
 public:
  using DeviceBucket::DeviceBucket;

  comm::Work start_grad_sync(uint32_t) override {
    join_streams(api_.current_stream());
    test_gradients();
    return {};
  }

  std::vector<at::Tensor> reduced_gradients(const plan::Segment& own) const override {
    const at::Tensor& taken = taken_[place_of(own.parameter)];
    if (!taken.defined()) return {taken};
    return {elements_of(taken.view(-1), own.range).view({own.range.rows(), own.range.columns})};
  }

  device::Gradient gradient_on_device(const plan::Segment& own) const override {
    const at::Tensor& taken = taken_[place_of(own.parameter)];
    if (!taken.defined()) return {};
    const int64_t first = own.range.row_begin * own.range.columns;
    return {static_cast<const std::byte*>(taken.const_data_ptr()) +
                first * static_cast<int64_t>(taken.element_size()),
            element_type(taken.scalar_type())};
  }

  double reduce_and_norm() override {
    // Where they are the test has been told when the bucket started.
    tested_->add_squares(under_way_.squares(), api_.current_stream());
    return 0;
  }

  comm::Work start_param_sync(std::span<const ParameterMatrix>, const std::vector<bool>&,
                              uint32_t) override {
    return {};
  }
  void finish_param_sync(std::span<ParameterMatrix>, const std::vector<bool>&) override {}
};

class SharedDeviceBucket final : public DeviceBucket {
 public:
  SharedDeviceBucket(const plan::Bucket& bucket, int number, const PortionLayout& layout,
                     at::Device device, comm::Communicator& communicator, StepsUnderWay& under_way,
                     const DeviceBucketRing& ring, bool keeps_gradients)
      : DeviceBucket(bucket, device, communicator.rank(), under_way),
        communicator_(communicator),
        keeps_gradients_(keeps_gradients),
        counts_(layout.counts),
        begins_(layout.begins),
        gradients_(ring.gradients(number, layout.elements, sum_type(bucket))),
        sum_(ring.holds_sums() ? ring.sum(number, counts_[rank_], sum_type(bucket))
                               : zeros(counts_[rank_], sum_type(bucket))),
        rows_(ring.rows(number, layout.elements, parameter_type(bucket))) {
    const CudaStream stream = api_.current_stream();
    std::vector<MovePiece> taken_in = pieces_of_gradients();
    size_t next = 0;
    for (const int parameter : bucket_.parameters) {
      for (const auto& [rank, index] : segments_of(parameter)) {
        MovePiece& piece = taken_in[next++];
        piece.to = at_segment(gradients_, rank, bucket_.segments[rank][index]);
        piece.to_type = element_type(gradients_.scalar_type());
      }
    }
    intake_ = DeviceMove(api_, device_, std::move(taken_in), places(), stream);
    squared_ = DeviceMove(api_, device_, {{.elements = bucket_.counts[rank_]}}, 1, stream);
    const MoveSource sum = source_of(sum_);
    squared_.set_sources({&sum, 1}, stream);
  }

  comm::Work start_grad_sync(uint32_t) override {
    const CudaStream stream = api_.current_stream();
    join_streams(stream);
    intake_.run(sources(MoveSource::What::is_zero), under_way_.control(), stream);
    if (!keeps_gradients_) release_gradients();
    return communicator_.reduce_scatter(buffer_of(gradients_), buffer_of(sum_), counts_,
                                        comm::Stream(stream.handle()));
  }

  std::vector<at::Tensor> reduced_gradients(const plan::Segment& own) const override {
    return {sum_.narrow(0, own.offset, own.range.elements())
                .view({own.range.rows(), own.range.columns})};
  }

  device::Gradient gradient_on_device(const plan::Segment& own) const override {
    return {static_cast<const std::byte*>(sum_.const_data_ptr()) +
                own.offset * static_cast<int64_t>(sum_.element_size()),
            element_type(sum_.scalar_type())};
  }

  double reduce_and_norm() override {
    squared_.add_squares(under_way_.squares(), api_.current_stream());
    return 0;
  }

  comm::Work start_param_sync(std::span<const ParameterMatrix> matrices, const std::vector<bool>&,
                              uint32_t) override {
    const CudaStream stream = api_.current_stream();
    std::vector<MoveSource> own;
    for (const plan::Segment& segment : bucket_.segments[rank_])
      own.push_back(source_of(matrices[segment.parameter].rows(segment.range)));
    if (!into_rows_) {
      into_rows_ = DeviceMove(api_, device_, pieces_of_own_rows(), std::ssize(own), stream);
    }
    into_rows_->run(own, nullptr, stream);
    const at::Tensor portion = rows_.narrow(0, begins_[rank_], counts_[rank_]);
    return communicator_.all_gather(buffer_of(portion), buffer_of(rows_), counts_of(rows_, counts_),
                                    comm::Stream(stream.handle()));
  }

  void finish_param_sync(std::span<ParameterMatrix> matrices, const std::vector<bool>&) override {
    const CudaStream stream = api_.current_stream();
    std::vector<const void*> addresses;
    for (const int parameter : bucket_.parameters)
      addresses.push_back(matrices[parameter].matrix().const_data_ptr());
    if (addresses != filled_) {
      filled_ = addresses;
      out_of_rows_ = DeviceMove(api_, device_, pieces_of_others(matrices), 1, stream);
    }
    const MoveSource rows = source_of(rows_);
    out_of_rows_.run({&rows, 1}, nullptr, stream);
  }

 private:
  // Where a segment of `rank` begins in memory that is laid out as the gradients are.
  void* at_segment(const at::Tensor& memory, int rank, const plan::Segment& segment) const {
    return static_cast<std::byte*>(memory.data_ptr()) +
           (begins_[rank] + segment.offset) * static_cast<int64_t>(memory.element_size());
  }

  std::vector<MovePiece> pieces_of_own_rows() const {
    std::vector<MovePiece> pieces;
    for (const plan::Segment& segment : bucket_.segments[rank_]) {
      pieces.push_back({.source = static_cast<int32_t>(pieces.size()),
                        .first_element = 0,
                        .elements = segment.range.elements(),
                        .to = at_segment(rows_, rank_, segment),
                        .to_type = element_type(rows_.scalar_type())});
    }
    return pieces;
  }

  std::vector<MovePiece> pieces_of_others(std::span<ParameterMatrix> matrices) const {
    std::vector<MovePiece> pieces;
    for (int rank = 0; rank < communicator_.size(); ++rank) {
      if (rank == rank_) continue;
      for (const plan::Segment& segment : bucket_.segments[rank]) {
        pieces.push_back({.source = 0,
                          .first_element = begins_[rank] + segment.offset,
                          .elements = segment.range.elements(),
                          .to = matrices[segment.parameter].rows(segment.range).data_ptr(),
                          .to_type = element_type(rows_.scalar_type())});
      }
    }
    return pieces;
  }

  comm::Communicator& communicator_;
  const bool keeps_gradients_;
  const comm::Counts counts_;          ///< [rank] as the collectives carry them
  const std::vector<int64_t> begins_;  ///< [rank]
  const at::Tensor gradients_;         ///< of this rank, rank-major
  const at::Tensor sum_;               ///< this rank's portion, reduced
  const at::Tensor rows_;              ///< laid out as gradients_, in the parameters' type
  DeviceMove intake_;
  DeviceMove squared_;  ///< of sum_
  std::optional<DeviceMove> into_rows_;
  DeviceMove out_of_rows_;
  std::vector<const void*> filled_;  ///< the matrices that out_of_rows_ fills
};

int64_t aligned(int64_t bytes) {
  constexpr int64_t kAlignment = 512;
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

at::Tensor typed(const at::Tensor& bytes, int64_t elements, at::ScalarType type) {
  const auto size = elements * static_cast<int64_t>(c10::elementSize(type));
  return bytes.narrow(0, 0, size).view(type);
}

}  // namespace

DeviceBucketRing::DeviceBucketRing(std::span<const plan::Bucket> buckets, int rank,
                                   at::Device device, bool holds_sums)
    : holds_sums_(holds_sums) {
  int64_t sums = 0;
  for (const plan::Bucket& bucket : buckets) {
    const PortionLayout layout = lay_out_portions(bucket);
    const auto bytes = static_cast<int64_t>(c10::elementSize(sum_type(bucket)));
    sum_begins_ = std::max(sum_begins_, aligned(layout.elements * bytes));
    sums = std::max(sums, aligned(layout.counts[rank] * bytes));
  }
  const int64_t slots = std::min<int64_t>(kSlots, std::ssize(buckets));
  // Zeros, because padding is added up and gathered too.
  memory_ = at::zeros({slots, sum_begins_ + (holds_sums ? sums : 0)},
                      at::TensorOptions(device).dtype(at::kByte));
}

at::Tensor DeviceBucketRing::gradients(int bucket, int64_t elements, at::ScalarType type) const {
  return typed(slot(bucket), elements, type);
}

at::Tensor DeviceBucketRing::sum(int bucket, int64_t elements, at::ScalarType type) const {
  return typed(slot(bucket).narrow(0, sum_begins_, memory_.size(1) - sum_begins_), elements, type);
}

std::unique_ptr<GradientBucket> make_device_bucket(
    const plan::Bucket& bucket, int number, at::Device device, comm::Communicator& communicator,
    StepsUnderWay& under_way, const DeviceBucketRing* ring, bool keeps_gradients) {
  if (communicator.size() == 1) {
    return std::make_unique<OwnDeviceBucket>(bucket, device, communicator.rank(), under_way);
  }
  return std::make_unique<SharedDeviceBucket>(bucket, number, lay_out_portions(bucket), device,
                                              communicator, under_way, *ring, keeps_gradients);
}

}  // namespace fusedbun
