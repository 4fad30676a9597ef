#include "fusedbun/dist/step/step_epilogue.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "fusedbun/core/error.h"
#include "fusedbun/core/gpu/device_api.h"
#include "fusedbun/dist/step/device_stream.h"

namespace fusedbun {

StepEpilogue::StepEpilogue(comm::Communicator& data, comm::Communicator& host, at::Device device)
    : data_(data), host_(host), device_(device), headers_(host.size()) {
  resize({});
}

void StepEpilogue::resize(const plan::ColumnLayout& layout) {
  FUSEDBUN_ASSERT(!sum_work_.pending() && !max_work_.pending() && !square_work_.pending(),
                  "the last step's message is settled");
  const auto squares =
      std::ranges::count_if(layout.square_offset, [](int64_t o) { return o >= 0; });
  column_sums_ = layout.sum_entries - squares;
  if (sums_.defined() && has_device_api(device_)) {
    DeviceApi& api = device_api_of(device_);
    api.keep({sums_, maxima_}, /*made_elsewhere=*/false, api.current_stream());
  }
  const auto options = at::TensorOptions(device_);
  sums_ = at::zeros({layout.sum_entries}, options.dtype(at::kDouble));
  maxima_ = at::zeros({layout.max_entries}, options.dtype(at::kLong));
}

void StepEpilogue::clear_columns() {
  if (!has_device_api(device_)) {
    sums_.zero_();
    maxima_.zero_();
    return;
  }
  DeviceApi& api = device_api_of(device_);
  for (const at::Tensor& memory : {sums_, maxima_}) {
    if (memory.numel() == 0) continue;
    api.zero(memory.data_ptr(), static_cast<int64_t>(memory.nbytes()), api.current_stream());
  }
}

at::Tensor StepEpilogue::sums(int64_t offset, int64_t entries) const {
  return sums_.narrow(0, offset, entries);
}

void StepEpilogue::put_maxima(int64_t offset, const at::Tensor& maxima) {
  // The sign bit of a NaN would make it the smallest integer, not the largest.
  const at::Tensor bits = maxima.to(at::kDouble).view(at::kLong);
  maxima_.narrow(0, offset, maxima.numel())
      .copy_(bits.bitwise_and(std::numeric_limits<int64_t>::max()));
}

at::Tensor StepEpilogue::maxima(int64_t offset, int64_t entries, at::ScalarType type) const {
  return maxima_.narrow(0, offset, entries).view(at::kDouble).to(type);
}

void StepEpilogue::send_columns() {
  if (column_sums_ > 0) {
    sum_work_ = data_.all_reduce({sums_.data_ptr(), column_sums_, comm::DataType::f64},
                                 comm::ReduceOp::sum, current_stream(device_));
  }
  if (maxima_.numel() > 0) {
    max_work_ = data_.all_reduce({maxima_.data_ptr(), maxima_.numel(), comm::DataType::i64},
                                 comm::ReduceOp::max, current_stream(device_));
  }
}

void StepEpilogue::wait_columns() {
  wait_for(sum_work_, device_);
  wait_for(max_work_, device_);
}

void StepEpilogue::send_squares() {
  const int64_t squares = sums_.numel() - column_sums_;
  if (squares == 0) return;
  square_work_ =
      data_.all_reduce({sums_.data_ptr<double>() + column_sums_, squares, comm::DataType::f64},
                       comm::ReduceOp::sum, current_stream(device_));
}

void StepEpilogue::settle_squares() {
  wait_for(square_work_, device_);
}

void StepEpilogue::send_header(const plan::StepHeader& header) {
  sent_ = header;
  constexpr auto kBytes = static_cast<int64_t>(sizeof(plan::StepHeader));
  const comm::Counts counts(host_.size(), kBytes);
  header_work_ =
      host_.all_gather({&sent_, kBytes, comm::DataType::u8},
                       {headers_.data(), kBytes * host_.size(), comm::DataType::u8}, counts);
}

const std::vector<plan::StepHeader>& StepEpilogue::receive_headers() {
  header_work_.wait();
  return headers_;
}

}  // namespace fusedbun
