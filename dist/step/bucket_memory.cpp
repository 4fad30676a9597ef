#include "fusedbun/dist/step/bucket_memory.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/step/gradient_copy.h"

namespace fusedbun {
namespace {

at::ScalarType scalar_type(plan::ElementType type) {
  switch (type) {
    case plan::ElementType::f32:
      return at::kFloat;
    case plan::ElementType::f64:
      return at::kDouble;
    case plan::ElementType::bf16:
      return at::kBFloat16;
    case plan::ElementType::f16:
      return at::kHalf;
  }
  FUSEDBUN_ASSERT(false, "unknown element type");
}

comm::Buffer buffer_of(const at::Tensor& memory) {
  if (memory.scalar_type() == at::kFloat) {
    return {memory.data_ptr(), memory.numel(), comm::DataType::f32};
  }
  if (memory.scalar_type() == at::kDouble) {
    return {memory.data_ptr(), memory.numel(), comm::DataType::f64};
  }
  return {memory.data_ptr(), static_cast<int64_t>(memory.nbytes()), comm::DataType::u8};
}

bool copy_rows(const at::Tensor& source, at::Tensor destination) {
  if (source.scalar_type() == at::kDouble) {
    return copy_and_test(source.const_data_ptr<double>(), destination.mutable_data_ptr<double>(),
                         source.numel());
  }
  return copy_and_test(source.const_data_ptr<float>(), destination.mutable_data_ptr<float>(),
                       source.numel());
}

}  // namespace

BucketMemory::BucketMemory(const plan::Bucket& bucket, int rank, at::Device device)
    : rank_(rank), counts_(bucket.counts), offsets_(bucket.offsets) {
  for (int r = 0; r < static_cast<int>(bucket.segments.size()); ++r) {
    for (const plan::Segment& segment : bucket.segments[r]) {
      places_.push_back({segment.parameter, {r, segment}});
    }
  }
  std::ranges::stable_sort(places_, {}, [](const auto& place) { return place.first; });
  const at::ScalarType type = scalar_type(bucket.type);
  const at::ScalarType arithmetic = type == at::kDouble ? at::kDouble : at::kFloat;
  gradients_ = at::zeros({bucket.elements()}, at::TensorOptions(device).dtype(arithmetic));
  rows_ = type == arithmetic
              ? gradients_
              : at::zeros({bucket.elements()}, at::TensorOptions(device).dtype(type));
}

template <class Visit>
void BucketMemory::for_each_place(int parameter, Visit visit) const {
  const auto range = std::ranges::equal_range(places_, parameter, {},
                                              [](const auto& place) { return place.first; });
  FUSEDBUN_ASSERT(!range.empty(), "parameter is in this bucket");
  for (const auto& [_, place] : range) visit(place);
}

at::Tensor BucketMemory::segment_of(const at::Tensor& memory, int rank,
                                    const plan::Segment& segment) const {
  return memory.narrow(0, offsets_[rank] + segment.offset, segment.range.elements())
      .view({segment.range.rows(), segment.range.columns});
}

bool BucketMemory::take_gradient(int parameter, const at::Tensor& gradient,
                                 at::Tensor& device_nonfinite) {
  const at::Tensor source = gradient.detach().to(gradients_.scalar_type()).contiguous();
  bool finite = true;
  for_each_place(parameter, [&](const Place& place) {
    const RowRange& range = place.segment.range;
    const at::Tensor rows =
        source.view({range.rows_total, range.columns}).narrow(0, range.row_begin, range.rows());
    at::Tensor destination = gradient_rows(place.rank, place.segment);
    if (source.is_cpu()) {
      finite &= copy_rows(rows, destination);
    } else {
      destination.copy_(rows);
      device_nonfinite.add_(at::isfinite(rows.square()).logical_not().any());
    }
  });
  return finite;
}

void BucketMemory::zero_gradient(int parameter) {
  for_each_place(parameter,
                 [&](const Place& place) { gradient_rows(place.rank, place.segment).zero_(); });
}

at::Tensor BucketMemory::gradient_rows(int rank, const plan::Segment& segment) const {
  return segment_of(gradients_, rank, segment);
}

at::Tensor BucketMemory::parameter_rows(int rank, const plan::Segment& segment) const {
  return segment_of(rows_, rank, segment);
}

at::Tensor BucketMemory::own_gradients() const {
  return gradients_.narrow(0, offsets_[rank_], counts_[rank_]);
}

comm::Work BucketMemory::reduce_scatter(comm::Communicator& communicator) {
  return communicator.reduce_scatter(buffer_of(gradients_), buffer_of(own_gradients()), counts_);
}

comm::Work BucketMemory::all_gather(comm::Communicator& communicator) {
  const at::Tensor own = rows_.narrow(0, offsets_[rank_], counts_[rank_]);
  comm::Counts counts = counts_;
  const comm::Buffer all = buffer_of(rows_);
  if (all.type == comm::DataType::u8) {
    for (int64_t& count : counts) count *= rows_.element_size();
  }
  return communicator.all_gather(buffer_of(own), all, counts);
}

}  // namespace fusedbun
