#include "fusedbun/dist/step/device_bucket.h"

#include <ATen/ops/empty.h>

#include <set>
#include <unordered_map>

#include "fusedbun/core/gpu/device_move.h"
#include "fusedbun/core/segment_step.h"
#include "fusedbun/dist/step/collective_bucket.h"
#include "fusedbun/dist/step/device_stream.h"

namespace fusedbun {
namespace {

using device::MovePiece;
using device::MoveSource;

class DeviceBucket final : public GradientBucket {
 public:
  DeviceBucket(const plan::Bucket& bucket, const PortionLayout& layout, at::Device device,
               comm::Communicator& communicator, StepsUnderWay& under_way)
      : GradientBucket(bucket, communicator.rank()),
        api_(device_api_of(device)),
        device_(device),
        communicator_(communicator),
        under_way_(under_way),
        counts_(layout.counts),
        begins_(layout.begins),
        gradients_(allocate(layout.elements, sum_type(bucket))),
        // Not in place: after a sync, gradients may be added again and all of them sent once more.
        sum_(communicator.size() == 1 ? gradients_ : allocate(counts_[rank_], sum_type(bucket))),
        // The gradients are not read any more when new rows are written.
        rows_(parameter_type(bucket) == sum_type(bucket)
                  ? gradients_
                  : allocate(layout.elements, parameter_type(bucket))),
        partial_squares_(allocate(
            (bucket.counts[rank_] + device::kSquaresElements - 1) / device::kSquaresElements,
            at::kDouble)),
        taken_(bucket.parameters.size()),
        sources_(bucket.parameters.size()) {
    for (const int parameter : bucket_.parameters) places_.emplace(parameter, places_.size());
    const CudaStream stream = api_.current_stream();
    // Padding is added up and gathered too.
    api_.zero(gradients_.data_ptr(), static_cast<int64_t>(gradients_.nbytes()), stream);
    api_.zero(rows_.data_ptr(), static_cast<int64_t>(rows_.nbytes()), stream);
    intake_ = DeviceMove(api_, device_, pieces_of_gradients(), std::ssize(sources_), stream);
  }

  bool add_gradient(int parameter, const at::Tensor& gradient) override {
    const size_t place = place_of(parameter);
    taken_[place] = as_taken(bucket_, gradient);
    sources_[place] = source_of(taken_[place]);
    streams_.insert(api_.current_stream().handle());
    return true;
  }

  void add_zero_gradient(int parameter) override {
    const size_t place = place_of(parameter);
    taken_[place].reset();
    sources_[place] = {.what = MoveSource::What::is_zero};
  }

  comm::Work start_grad_sync(uint32_t) override {
    const CudaStream stream = api_.current_stream();
    // Hooks run on the streams of their forward passes, the copy on one of them.
    for (void* const other : streams_) {
      if (other == stream.handle()) continue;
      api_.wait_on(stream, *api_.record(CudaStream(other)));
    }
    streams_.clear();
    intake_.run(sources_, under_way_.control(), stream, taken_);
    for (MoveSource& source : sources_) source = {.what = MoveSource::What::stays};
    if (communicator_.size() == 1) return {};
    return communicator_.reduce_scatter(buffer_of(gradients_), buffer_of(sum_), counts_,
                                        comm::Stream(stream.handle()));
  }

  std::vector<at::Tensor> reduced_gradients(const plan::Segment& own) const override {
    return {sum_.narrow(0, own.offset, own.range.elements())
                .view({own.range.rows(), own.range.columns})};
  }

  double reduce_and_norm() override {
    const device::SquaresTable table{.elements = sum_.const_data_ptr(),
                                     .type = element_type(sum_.scalar_type()),
                                     .count = bucket_.counts[rank_],
                                     .partials = partial_squares_.data_ptr<double>(),
                                     .sum = under_way_.squares()};
    api_.run(api_.current_stream(),
             [table, add = api_.kernels().add_squares](CudaStream on) { add(table, on); });
    return 0;
  }

  void test_gradients() override {
    const CudaStream stream = api_.current_stream();
    std::vector<MoveSource> sources;
    std::vector<MovePiece> pieces;
    for (const at::Tensor& taken : taken_) {
      const auto place = static_cast<int32_t>(sources.size());
      sources.push_back(taken.defined() ? source_of(taken)
                                        : MoveSource{.what = MoveSource::What::stays});
      if (taken.defined()) pieces.push_back({.source = place, .elements = taken.numel()});
    }
    tested_ = DeviceMove(api_, device_, std::move(pieces), std::ssize(sources), stream);
    tested_.run(sources, under_way_.control(), stream, taken_);
  }

  void release_gradients() override {
    for (at::Tensor& taken : taken_) taken.reset();
  }

  comm::Work start_param_sync(std::span<const ParameterMatrix> matrices, const std::vector<bool>&,
                              uint32_t) override {
    if (communicator_.size() == 1) return {};
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
    if (communicator_.size() == 1) return;
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
  at::Tensor allocate(int64_t elements, at::ScalarType type) const {
    return at::empty({elements}, at::TensorOptions(device_).dtype(type));
  }
  size_t place_of(int parameter) const { return places_.at(parameter); }
  // Where a segment of `rank` begins in memory that is laid out as the gradients are.
  void* at_segment(const at::Tensor& memory, int rank, const plan::Segment& segment) const {
    return static_cast<std::byte*>(memory.data_ptr()) +
           (begins_[rank] + segment.offset) * static_cast<int64_t>(memory.element_size());
  }

  std::vector<MovePiece> pieces_of_gradients() const {
    std::vector<MovePiece> pieces;
    for (size_t place = 0; place < bucket_.parameters.size(); ++place) {
      for (const auto& [rank, index] : segments_of(bucket_.parameters[place])) {
        const plan::Segment& segment = bucket_.segments[rank][index];
        pieces.push_back({.source = static_cast<int32_t>(place),
                          .first_element = segment.range.row_begin * segment.range.columns,
                          .elements = segment.range.elements(),
                          .to = at_segment(gradients_, rank, segment),
                          .to_type = element_type(gradients_.scalar_type())});
      }
    }
    return pieces;
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

  DeviceApi& api_;
  const at::Device device_;
  comm::Communicator& communicator_;
  StepsUnderWay& under_way_;
  const comm::Counts counts_;          ///< [rank] as the collectives carry them
  const std::vector<int64_t> begins_;  ///< [rank]
  const at::Tensor gradients_;         ///< of this rank, rank-major
  const at::Tensor sum_;               ///< this rank's portion, reduced
  const at::Tensor rows_;              ///< laid out as gradients_, in the parameters' type
  const at::Tensor partial_squares_;
  std::unordered_map<int, size_t> places_;  ///< by parameter, in bucket_.parameters
  std::vector<at::Tensor> taken_;           ///< by place
  std::vector<MoveSource> sources_;         ///< the same; what the next start moves
  std::set<void*> streams_;                 ///< on which gradients were added since the last start
  DeviceMove intake_;
  DeviceMove tested_;  ///< of the last test_gradients
  std::optional<DeviceMove> into_rows_;
  DeviceMove out_of_rows_;
  std::vector<const void*> filled_;  ///< the matrices that out_of_rows_ fills
};

}  // namespace

std::unique_ptr<GradientBucket> make_device_bucket(const plan::Bucket& bucket, at::Device device,
                                                   comm::Communicator& communicator,
                                                   StepsUnderWay& under_way) {
  return std::make_unique<DeviceBucket>(bucket, lay_out_portions(bucket), device, communicator,
                                        under_way);
}

}  // namespace fusedbun
