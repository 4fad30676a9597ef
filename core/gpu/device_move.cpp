#include "fusedbun/core/gpu/device_move.h"

#include <ATen/ops/empty.h>

#include "fusedbun/core/segment_step.h"

namespace fusedbun {

DeviceMove::DeviceMove(DeviceApi& api, at::Device device, std::vector<device::MovePiece> pieces,
                       int64_t sources, CudaStream stream)
    : api_(&api) {
  std::vector<device::MoveTile> tiles;
  for (size_t i = 0; i < pieces.size(); ++i) {
    for (int64_t first = 0; first < pieces[i].elements; first += device::kMoveElements) {
      tiles.push_back({first, static_cast<int32_t>(i)});
    }
  }
  if (tiles.empty()) return;
  const auto piece_bytes = static_cast<int64_t>(pieces.size() * sizeof(device::MovePiece));
  const auto tile_bytes = static_cast<int64_t>(tiles.size() * sizeof(device::MoveTile));
  const auto source_bytes = sources * static_cast<int64_t>(sizeof(device::MoveSource));
  memory_ = {api, at::empty({piece_bytes + tile_bytes + source_bytes},
                            at::TensorOptions(device).dtype(at::kByte))};
  // All are multiples of 8 bytes.
  auto* const start = static_cast<std::byte*>(memory_.tensor().data_ptr());
  api.upload(start, std::as_bytes(std::span(pieces)), stream);
  api.upload(start + piece_bytes, std::as_bytes(std::span(tiles)), stream);
  sources_ = reinterpret_cast<device::MoveSource*>(start + piece_bytes + tile_bytes);
  table_ = {.sources = sources_,
            .pieces = reinterpret_cast<device::MovePiece*>(start),
            .tiles = reinterpret_cast<device::MoveTile*>(start + piece_bytes),
            .tile_count = static_cast<int32_t>(tiles.size())};
}

void DeviceMove::set_sources(std::span<const device::MoveSource> sources, CudaStream stream) const {
  if (table_.tile_count > 0) api_->upload(sources_, std::as_bytes(sources), stream);
}

void DeviceMove::run(device::StepControl* control, CudaStream stream) const {
  if (table_.tile_count == 0) return;
  device::MoveTable table = table_;
  table.control = control;
  api_->run(stream, [table, move = api_->kernels().move](CudaStream on) { move(table, on); });
}

void DeviceMove::add_squares(double* sum, CudaStream stream) {
  if (table_.tile_count == 0) return;
  if (!partials_.tensor().defined()) {
    const auto type = memory_.tensor().options().dtype(at::kDouble);
    partials_ = {*api_, at::empty({table_.tile_count}, type)};
  }
  api_->run(stream,
            [table = table_, partials = partials_.tensor().data_ptr<double>(), sum,
             add = api_->kernels().add_squares](CudaStream on) { add(table, partials, sum, on); });
}

device::Gradient gradient_of(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), element_type(tensor.scalar_type())};
}

device::MoveSource source_of(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), element_type(tensor.scalar_type())};
}

}  // namespace fusedbun
