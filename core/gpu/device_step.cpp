#include "fusedbun/core/gpu/device_step.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "fusedbun/core/error.h"
#include "fusedbun/core/stochastic_rounding.h"

namespace fusedbun {
namespace {

constexpr int64_t kAlignment = 16;

int64_t aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

template <class T>
int64_t bytes_in(const std::vector<T>& values) {
  return aligned(static_cast<int64_t>(values.size() * sizeof(T)));
}

template <class T>
std::span<const std::byte> as_bytes(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

template <class T>
T* start_of(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
}

template <class T>
T* advanced(T* start, int64_t elements) {
  return start == nullptr ? nullptr : start + elements;
}

// What has no columns is one matrix of all its rows.
int64_t matrices_of(const DevicePart& part) {
  return part.state.exp_avg_sq.col.defined() ? part.range.matrices() : 1;
}

}  // namespace

bool has_device_step(const Options& options, at::ScalarType parameter) {
  return has_fused_cuda_step(options) && parameter != at::kHalf;
}

int32_t StepFactorSets::number_of(const Options& options, int64_t t) {
  const auto [at, is_new] = numbers_.try_emplace({&options, t}, static_cast<int32_t>(sets_.size()));
  if (is_new) {
    StepScalarsUnderWay& set = sets_.emplace_back();
    for (int64_t behind = 0; behind < device::kStepsUnderWay; ++behind) {
      set[behind] = step_scalars(options, std::max<int64_t>(t - behind, 1), /*parameter_rms=*/1);
    }
  }
  return at->second;
}

DeviceStep::DeviceStep(DeviceApi& api, at::Device device, std::vector<DevicePart> parts,
                       device::StepControl* control, CudaStream stream)
    : api_(api), device_(device), parts_(std::move(parts)), control_(control) {
  take_inputs(sizeof(device::StepInputs));
  lay_out(f32_);
  lay_out(f64_);
  first_gradient_ = input_bytes_;
  for_each_table([&](auto& table) {
    table.gradients =
        take_inputs(static_cast<int64_t>(table.part_of.size() * sizeof(device::Gradient)));
  });
  staged_.resize(static_cast<size_t>(input_bytes_));
  for_each_table([&]<class T>(Table<T>& table) {
    if (table.part_of.empty()) return;
    table.factors = take_inputs(static_cast<int64_t>(parts_.size() * device::kStepsUnderWay *
                                                     sizeof(device::StepFactors<T>)));
  });
  inputs_ = allocate(input_bytes_);
  upload(f32_, stream);
  upload(f64_, stream);
}

std::byte* DeviceStep::allocate(int64_t bytes) {
  const auto type = at::TensorOptions(device_).dtype(at::kByte);
  memory_.emplace_back(api_, at::empty({std::max(bytes, kAlignment)}, type));
  return static_cast<std::byte*>(memory_.back().tensor().data_ptr());
}

int64_t DeviceStep::memory_bytes() const {
  int64_t bytes = 0;
  for (const DeviceMemory& memory : memory_) bytes += memory.tensor().numel();
  return bytes;
}

int64_t DeviceStep::take_inputs(int64_t bytes) {
  const int64_t at = input_bytes_;
  input_bytes_ += aligned(bytes);
  return at;
}

// ---- the tables --------------------------------------------------------------------------------

template <class T>
void DeviceStep::lay_out(Table<T>& table) {
  for (int group = 0, part = 0; group < group_count(); ++group) {
    table.layout.begin_group();  // without parts of this type it stays empty
    for (; part < static_cast<int>(parts_.size()) && parts_[part].group == group; ++part) {
      const bool is_wide = parts_[part].rows.scalar_type() == at::kDouble;
      const bool is_empty = parts_[part].range.elements() == 0;
      if (is_wide == (sizeof(T) == sizeof(double)) && !is_empty) add_part(table, part);
    }
  }
  table.factors_of =
      take_inputs(static_cast<int64_t>(table.part_of_matrix.size() * sizeof(int32_t)));
}

template <class T>
void DeviceStep::add_part(Table<T>& table, int32_t index) {
  const DevicePart& part = parts_[index];
  const SegmentState& state = part.state;
  const SecondMoment& moment = state.exp_avg_sq;
  const int64_t matrices = matrices_of(part), columns = part.range.columns;
  const bool is_low = part.rows.scalar_type() == at::kBFloat16;
  const bool continues = index > 0 && parts_[index - 1].parameter == part.parameter;
  for (int64_t i = 0; i < matrices; ++i) {
    RowRange range = part.range;
    if (matrices > 1) {
      range.row_begin += i * range.matrix_rows;
      range.row_end = range.row_begin + range.matrix_rows;
    }
    const int64_t row = range.row_begin - part.range.row_begin;
    const int64_t element = row * columns;
    device::MatrixEntry<T> matrix;
    matrix.col = advanced(start_of<T>(moment.col), i * columns);
    matrix.totals = advanced(part.totals, i * columns);
    matrix.squares = part.squares;
    matrix.new_squares = part.new_squares;
    // Its rows may lie in several parts.
    const auto [at, is_new] = table.matrix_of.try_emplace({part.parameter, matrix.col}, 0);
    if (is_new) {
      at->second = table.layout.add_matrix(matrix);
      table.part_of_matrix.push_back(index);
    }

    device::SegmentMemory<T> memory;
    if (is_low) memory.low_precision_parameter = start_of<uint16_t>(part.rows) + element;
    memory.parameter = advanced(start_of<T>(is_low ? state.master : part.rows), element);
    memory.remainder = advanced(start_of<uint16_t>(state.remainder), element);
    memory.parameter_seed = parameter_seed(part.parameter);
    if (state.momentum_buffer.defined()) {
      memory.momentum = start_of<std::byte>(state.momentum_buffer) +
                        element * static_cast<int64_t>(state.momentum_buffer.element_size());
    }
    memory.full = advanced(start_of<T>(moment.full), element);
    memory.row = advanced(start_of<T>(moment.row), row);
    table.layout.add_segment(at->second, range, memory, part.options, part.parameter_elements,
                             continues || i > 0);
    table.part_of.push_back(index);
  }
}

// Gives the columns' values, and the totals that nobody else asks for, their memory.
template <class T>
void DeviceStep::place_columns(Table<T>& table, CudaStream stream) {
  device::StepTableLayout<T>& layout = table.layout;
  const auto bytes_of_values = [](const device::MatrixEntry<T>& matrix) {
    return matrix.kind == fused::PassKind::sm3 || matrix.col == nullptr
               ? 0
               : aligned(matrix.columns * static_cast<int64_t>(sizeof(T)));
  };
  const auto bytes_of_totals = [](const device::MatrixEntry<T>& matrix) {
    return matrix.totals != nullptr || matrix.col == nullptr
               ? 0
               : matrix.columns * static_cast<int64_t>(sizeof(double));
  };
  int64_t values = 0, totals = 0;
  for (const device::MatrixEntry<T>& matrix : layout.matrices) {
    values += bytes_of_values(matrix);
    totals += bytes_of_totals(matrix);
  }
  std::byte* next_values = allocate(values);
  std::byte* next_totals = allocate(totals);
  if (totals > 0) api_.zero(next_totals, totals, stream);
  for (device::MatrixEntry<T>& matrix : layout.matrices) {
    const int64_t own_values = bytes_of_values(matrix), own_totals = bytes_of_totals(matrix);
    if (own_values > 0) matrix.values = reinterpret_cast<T*>(next_values);
    if (own_totals > 0) matrix.totals = reinterpret_cast<double*>(next_totals);
    next_values += own_values;
    next_totals += own_totals;
  }
  for (device::SegmentEntry<T>& segment : layout.segments) {
    const device::MatrixEntry<T>& matrix = layout.matrices[segment.matrix];
    segment.column_values = segment.kind == fused::PassKind::sm3 ? matrix.col : matrix.values;
    segment.totals = matrix.totals;
  }
}

template <class T>
void DeviceStep::upload(Table<T>& table, CudaStream stream) {
  device::StepTableLayout<T>& layout = table.layout;
  if (layout.segments.empty()) return;
  place_columns(table, stream);
  layout.set_scratch(allocate(layout.scratch_bytes()));
  std::vector<device::Pending> pending(layout.matrices.size());
  std::byte* next =
      allocate(bytes_in(layout.matrices) + bytes_in(pending) + bytes_in(layout.segments) +
               bytes_in(layout.tiles) + bytes_in(layout.collect_tiles));
  const auto place = [&]<class Entry>(const std::vector<Entry>& entries) {
    auto* const start = reinterpret_cast<Entry*>(next);
    if (!entries.empty()) api_.upload(start, as_bytes(entries), stream);
    next += bytes_in(entries);
    return start;
  };
  device::StepTable<T>& on_device = table.on_device;
  on_device.matrices = place(layout.matrices);
  on_device.pending = place(pending);
  on_device.segments = place(layout.segments);
  on_device.tiles = place(layout.tiles);
  on_device.collect_tiles = place(layout.collect_tiles);
  on_device.matrix_count = static_cast<int32_t>(layout.matrices.size());
  on_device.inputs = inputs();
  on_device.gradients = reinterpret_cast<device::Gradient*>(inputs_ + table.gradients);
  on_device.factors_of = reinterpret_cast<int32_t*>(inputs_ + table.factors_of);
  on_device.factors = reinterpret_cast<device::StepFactors<T>*>(inputs_ + table.factors);
  on_device.control = control_;
}

// ---- a step ------------------------------------------------------------------------------------

void DeviceStep::set_inputs(const device::StepInputs& inputs, std::span<const int32_t> factors_of,
                            std::span<const StepScalarsUnderWay> factors, CudaStream stream) {
  std::memcpy(staged_.data(), &inputs, sizeof inputs);
  stage(f32_, factors_of);
  stage(f64_, factors_of);
  api_.upload(inputs_, std::span(staged_).first(static_cast<size_t>(first_gradient_)), stream);
  upload_factors(f32_, factors_of, factors, stream);
  upload_factors(f64_, factors_of, factors, stream);
}

void DeviceStep::set_gradients(int first_part, std::span<const device::Gradient> gradients,
                               CudaStream stream) {
  set_gradients(f32_, first_part, gradients, stream);
  set_gradients(f64_, first_part, gradients, stream);
}

template <class T>
void DeviceStep::set_gradients(const Table<T>& table, int first_part,
                               std::span<const device::Gradient> gradients, CudaStream stream) {
  const std::vector<int32_t>& parts = table.part_of;  // ascending
  const auto first = std::ranges::lower_bound(parts, first_part) - parts.begin();
  const auto end =
      std::ranges::lower_bound(parts, first_part + static_cast<int>(gradients.size())) -
      parts.begin();
  auto* const staged = reinterpret_cast<device::Gradient*>(&staged_[table.gradients]);
  bool is_new = false;
  for (auto segment = first; segment < end; ++segment) {
    const int32_t part = parts[segment];
    device::Gradient gradient = gradients[part - first_part];
    const bool continues = segment > first && parts[segment - 1] == part;
    if (continues && gradient.elements != nullptr) {  // the next matrix of a stack
      const auto* const before = static_cast<const std::byte*>(staged[segment - 1].elements);
      const int64_t elements = parts_[part].range.matrix_rows * parts_[part].range.columns;
      gradient.elements = before + elements * bytes_of(gradient.type);
    }
    is_new |= gradient != staged[segment];
    staged[segment] = gradient;
  }
  if (!is_new) return;
  const auto offset = table.gradients + first * static_cast<int64_t>(sizeof(device::Gradient));
  api_.upload(inputs_ + offset, std::as_bytes(std::span(staged + first, staged + end)), stream);
}

template <class T>
void DeviceStep::stage(const Table<T>& table, std::span<const int32_t> factors_of) {
  if (table.part_of.empty()) return;
  auto* const to_factors = reinterpret_cast<int32_t*>(&staged_[table.factors_of]);
  for (size_t matrix = 0; matrix < table.part_of_matrix.size(); ++matrix) {
    const int32_t set = factors_of[table.part_of_matrix[matrix]];
    to_factors[matrix] = set < 0 ? -1 : set * device::kStepsUnderWay;
  }
}

template <class T>
void DeviceStep::upload_factors(const Table<T>& table, std::span<const int32_t> factors_of,
                                std::span<const StepScalarsUnderWay> factors, CudaStream stream) {
  if (table.part_of.empty() || factors.empty()) return;
  std::vector<device::StepFactors<T>> sets(factors.size() * device::kStepsUnderWay);
  std::vector<bool> is_done(factors.size());
  for (const int32_t part : table.part_of_matrix) {
    const int32_t set = factors_of[part];
    if (set < 0 || is_done[set]) continue;
    is_done[set] = true;
    for (int behind = 0; behind < device::kStepsUnderWay; ++behind) {
      sets[set * device::kStepsUnderWay + behind] =
          device::step_factors<T>(parts_[part].range, factors[set][behind], parts_[part].options);
    }
  }
  api_.upload(inputs_ + table.factors, as_bytes(sets), stream);
}

template <class T, class Launch>
void DeviceStep::launch_group(const Table<T>& table, int group, CudaStream stream, Launch launch) {
  const device::TileGroup& tiles = table.layout.groups[group];
  if (tiles.tile_count == 0) return;
  device::StepTable<T> of_group = table.on_device;
  of_group.tiles += tiles.first_tile;
  of_group.tile_count = tiles.tile_count;
  of_group.collect_tiles += tiles.first_collect;
  of_group.collect_count = tiles.collect_count;
  const StepKernels<T>& kernels = api_.kernels().of<T>();
  api_.run(stream, [launch, of_group, tiles, &kernels](CudaStream on) {
    launch(kernels, of_group, tiles, on);
  });
}

template <class T>
void DeviceStep::absorb(const Table<T>& table, bool with_squares, CudaStream stream) {
  if (table.part_of.empty()) return;
  api_.run(stream, [launch = api_.kernels().of<T>().absorb, all = table.on_device,
                    with_squares](CudaStream on) { launch(all, with_squares, on); });
}

template <class T>
void DeviceStep::prepare(const Table<T>& table, CudaStream stream) {
  if (table.part_of.empty()) return;
  api_.run(stream, [launch = api_.kernels().of<T>().prepare, all = table.on_device](CudaStream on) {
    launch(all, on);
  });
}

void DeviceStep::absorb(bool with_squares, CudaStream stream) {
  absorb(f32_, with_squares, stream);
  absorb(f64_, with_squares, stream);
}

void DeviceStep::prepare(CudaStream stream) {
  prepare(f32_, stream);
  prepare(f64_, stream);
}

void DeviceStep::begin(int group, CudaStream stream) {
  const auto launch = [](const auto& kernels, const auto& of_group, const device::TileGroup& tiles,
                         CudaStream on) {
    kernels.begin(of_group, tiles.is_centred, on);
    kernels.collect(of_group, on);
  };
  launch_group(f32_, group, stream, launch);
  launch_group(f64_, group, stream, launch);
}

bool DeviceStep::has_finish(int group) const {
  return f32_.layout.groups[group].has_finish || f64_.layout.groups[group].has_finish;
}

void DeviceStep::finish(int group, CudaStream stream) {
  const auto launch = [](const auto& kernels, const auto& of_group, const device::TileGroup& tiles,
                         CudaStream on) { kernels.finish(of_group, tiles.is_centred, on); };
  launch_group(f32_, group, stream, launch);
  launch_group(f64_, group, stream, launch);
}

void DeviceStep::measure(CudaStream stream) {
  const auto launch = [](const auto& kernels, const auto& of_group, const device::TileGroup&,
                         CudaStream on) { kernels.measure(of_group, on); };
  for (int group = 0; group < group_count(); ++group) {
    launch_group(f32_, group, stream, launch);
    launch_group(f64_, group, stream, launch);
  }
}

}  // namespace fusedbun
