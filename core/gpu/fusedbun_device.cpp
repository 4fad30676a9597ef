#include "fusedbun/core/gpu/fusedbun_device.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

namespace fusedbun {
namespace {

// Elements that one launch steps: its scratch memory, an eighth of a byte per element, is used again for the next.
constexpr int64_t kGroupElements = int64_t{1} << 26;

int64_t elements_in(const FusedbunDevice::Stepped& stepped) {
  return stepped.range.elements();
}

}  // namespace

FusedbunDevice::FusedbunDevice(DeviceApi& api, at::Device device)
    : api_(api), device_(device), under_way_(api, device, api.current_stream()) {}

void FusedbunDevice::step(const std::vector<Stepped>& stepped) {
  const CudaStream stream = api_.current_stream();
  hear(/*all=*/false);
  Skips skips;
  for (const Stepped& each : stepped) skips.push_back(each.state->told_skips);
  // The device counts skipped steps, not whose: with other parameters in them t would be wrong.
  if (!open_.empty() && open_.back() != skips) settle();
  for (const Stepped& each : stepped) each.state->take_back_skips();
  measure_unknown(stepped, stream);  // makes their memory, which the tables point to
  build(stepped, stream);

  std::vector<device::Gradient> gradients;
  std::vector<device::MoveSource> tested;
  bool skips_nonfinite = false;
  for (const Stepped& each : stepped) {
    gradients.push_back(gradient_of(each.gradient_rows));
    const bool may_skip = each.options->nonfinite == Nonfinite::skip;
    skips_nonfinite |= may_skip;
    tested.push_back(may_skip ? source_of(each.gradient_rows)
                              : device::MoveSource{.what = device::MoveSource::What::stays});
  }
  set_inputs(stepped, gradients, skips_nonfinite, stream);
  tables_->test.run(tested, under_way_.control(), stream);
  under_way_.offer(stream);
  DeviceStep& step = tables_->step;
  under_way_.decide(step.inputs(), stream);
  open_.push_back(std::move(skips));

  step.prepare(stream);
  bool has_finish = false;
  for (int group = 0; group < step.group_count(); ++group) {
    step.begin(group, stream);
    has_finish |= step.has_finish(group);
  }
  step.absorb(/*with_squares=*/true, stream);
  if (has_finish) {
    step.prepare(stream);
    for (int group = 0; group < step.group_count(); ++group) {
      if (step.has_finish(group)) step.finish(group, stream);
    }
    step.absorb(/*with_squares=*/true, stream);  // the sums of squares
  }
  std::vector<at::Tensor> read;
  for (const Stepped& each : stepped) read.push_back(each.gradient_rows);
  api_.keep(std::move(read), /*made_elsewhere=*/false, stream);
  for (const Stepped& each : stepped) {
    if (each.parameter.is_contiguous()) continue;
    api_.run(stream, [parameter = each.parameter.detach(), rows = each.rows](CudaStream) {
      parameter.copy_(rows.view(parameter.sizes()));
    });
  }
}

void FusedbunDevice::hear(bool all) {
  for (const device::StepOutcome& outcome :
       all ? under_way_.arrived_but(0) : under_way_.arrived()) {
    if (outcome.skip != 0) {
      for (const std::shared_ptr<int64_t>& skips : open_.front()) ++*skips;
    }
    open_.pop_front();
  }
}

// ---- tables ------------------------------------------------------------------------------------

void FusedbunDevice::build(const std::vector<Stepped>& stepped, CudaStream stream) {
  std::vector<Basis> basis;
  for (const Stepped& each : stepped) {
    std::vector<const void*> state;
    visit_tensors(each.state->segment, [&](const char*, const at::Tensor& tensor) {
      state.push_back(tensor.defined() ? tensor.const_data_ptr() : nullptr);
    });
    const at::Tensor& squares = each.state->squares.on_device;
    state.push_back(squares.defined() ? squares.const_data_ptr() : nullptr);
    basis.push_back({.rows = each.rows.const_data_ptr(),
                     .index = each.index,
                     .state = std::move(state),
                     .type = each.rows.scalar_type(),
                     .structure = *each.options,
                     .centralize = each.options->centralize,
                     .use_rms = each.options->use_rms});
  }
  if (tables_ != nullptr && basis == basis_) return;
  basis_ = std::move(basis);

  std::vector<DevicePart> parts;
  std::vector<device::MovePiece> tested;
  int64_t elements = 0;
  for (size_t p = 0; p < stepped.size(); ++p) {
    parts.push_back(part_of(stepped[p], static_cast<int>(elements / kGroupElements)));
    elements += elements_in(stepped[p]);
    tested.push_back({.source = static_cast<int32_t>(p), .elements = elements_in(stepped[p])});
  }
  for (size_t p = 1; p < parts.size(); ++p)  // groups are numbered without gaps
    parts[p].group = std::min(parts[p].group, parts[p - 1].group + 1);
  const auto count = static_cast<int64_t>(stepped.size());
  tables_ = std::make_unique<Tables>(
      Tables{DeviceStep(api_, device_, std::move(parts), under_way_.control(), stream),
             DeviceMove(api_, device_, std::move(tested), count, stream)});
}

DevicePart FusedbunDevice::part_of(const Stepped& stepped, int group) const {
  DevicePart part;
  part.parameter = stepped.index;
  part.group = group;
  part.range = stepped.range;
  part.rows = stepped.rows;
  part.state = stepped.state->segment;
  part.options = *stepped.options;
  part.parameter_elements = elements_in(stepped);
  if (stepped.options->scale_by_parameter_rms) {
    at::Tensor& squares = stepped.state->squares.on_device;
    if (!squares.defined()) {
      squares = at::empty({2}, at::TensorOptions(device_).dtype(at::kDouble));
      api_.zero(squares.data_ptr(), 2 * sizeof(double), api_.current_stream());
    }
    part.squares = squares.data_ptr<double>();
    part.new_squares = part.squares + 1;
  }
  return part;
}

// Sums of squares of parameters that have none yet, or that the program has written since.
void FusedbunDevice::measure_unknown(const std::vector<Stepped>& stepped, CudaStream stream) {
  using Difference = TensorSnapshot::Difference;
  std::vector<DevicePart> parts;
  for (const Stepped& each : stepped) {
    if (!each.options->scale_by_parameter_rms) continue;
    CachedSumOfSquares& squares = each.state->squares;
    const bool is_known =
        squares.on_device.defined() && squares.of.difference(each.parameter) == Difference::none;
    if (is_known) continue;
    parts.push_back(part_of(each, /*group=*/0));
  }
  if (parts.empty()) return;
  DeviceStep once(api_, device_, std::move(parts), under_way_.control(), stream);
  once.measure(stream);
  once.absorb(/*with_squares=*/true, stream);
}

// ---- inputs ------------------------------------------------------------------------------------

void FusedbunDevice::set_inputs(const std::vector<Stepped>& stepped,
                                const std::vector<device::Gradient>& gradients, bool skips,
                                CudaStream stream) {
  std::vector<int32_t> factors_of;
  StepFactorSets factors;
  for (const Stepped& each : stepped)
    factors_of.push_back(factors.number_of(*each.options, ++each.state->step));
  const device::StepInputs inputs{.skipped_as_known = under_way_.skipped(),
                                  .skips_nonfinite = skips ? 1 : 0};
  tables_->step.set_inputs(inputs, factors_of, factors.sets(), stream);
  tables_->step.set_gradients(0, gradients, stream);
}

}  // namespace fusedbun
