#include "fusedbun/dist/step/device_update.h"

#include <algorithm>

#include "fusedbun/dist/step/device_stream.h"

namespace fusedbun {
DeviceUpdate::DeviceUpdate(ShardedModel& model, comm::Communicator& gradient_stream)
    : model_(model),
      gradient_stream_(gradient_stream),
      api_(device_api_of(model.device)),
      under_way_(api_, model.device, api_.current_stream()) {}

std::vector<DeviceUpdate::Heard> DeviceUpdate::hear(bool all) {
  std::vector<Heard> heard;
  for (const device::StepOutcome& outcome : under_way_.arrived_but(all ? 0 : kDelay - 1)) {
    heard.push_back({open_.front().job_step, outcome, std::move(open_.front().used)});
    open_.pop_front();
  }
  return heard;
}

bool DeviceUpdate::has_open_with_others(const std::vector<bool>& used) const {
  return std::ranges::any_of(open_, [&](const Open& open) { return open.used != used; });
}

void DeviceUpdate::set_parts(std::vector<DevicePart> parts) {
  group_of_.clear();
  first_part_.clear();
  for (const DevicePart& part : parts) {
    first_part_.resize(static_cast<size_t>(part.group) + 1, static_cast<int>(group_of_.size()));
    group_of_.push_back(model_.registered[part.parameter].group);
  }
  step_ = std::make_unique<DeviceStep>(api_, model_.device, std::move(parts), under_way_.control(),
                                       api_.current_stream());
}

void DeviceUpdate::begin(const std::vector<bool>& used, const std::vector<int64_t>& t,
                         const std::vector<Options>& options, const Scaling& scaling) {
  std::vector<int32_t> factors_of;
  StepFactorSets factors;
  for (size_t part = 0; part < step_->parts().size(); ++part) {
    const int parameter = step_->parts()[part].parameter;
    factors_of.push_back(used[parameter] ? factors.number_of(options[group_of_[part]], t[parameter])
                                         : -1);
  }
  const bool skips = std::ranges::any_of(
      options, [](const Options& group) { return group.nonfinite == Nonfinite::skip; });
  const device::StepInputs inputs{.divisor = scaling.divisor,
                                  .skipped_as_known = under_way_.skipped(),
                                  .max_norm = scaling.max_norm,
                                  .norm_divisor = scaling.norm_divisor,
                                  .skips_nonfinite = skips ? 1 : 0,
                                  .scales_loss = scaling.loss_scale ? 1 : 0,
                                  .loss_scale = scaling.loss_scale.value_or(LossScaleRules())};
  step_->set_inputs(inputs, factors_of, factors.sets(), api_.current_stream());
  agree(/*is_alone=*/!skips && scaling.max_norm == 0);
  open_.push_back({model_.job_step, used});
  prepare();
}

// The devices add up what each has found; nobody else hears of it.
void DeviceUpdate::agree(bool is_alone) {
  const CudaStream stream = api_.current_stream();
  under_way_.offer(stream);
  if (!is_alone && gradient_stream_.size() > 1) {
    comm::Work work =
        gradient_stream_.all_reduce({under_way_.agreed(), 2, comm::DataType::f64},
                                    comm::ReduceOp::sum, comm::Stream(stream.handle()));
    work.wait_on(comm::Stream(stream.handle()));
  }
  under_way_.decide(step_->inputs(), stream);
}

void DeviceUpdate::update_bucket(int bucket, const std::vector<device::Gradient>& gradients) {
  if (gradients.empty()) return;
  step_->set_gradients(first_part_[static_cast<size_t>(bucket)], gradients, api_.current_stream());
  step_->begin(bucket, api_.current_stream());
}

void DeviceUpdate::finish_bucket(int bucket) {
  if (bucket < step_->group_count() && step_->has_finish(bucket))
    step_->finish(bucket, api_.current_stream());
}

void DeviceUpdate::absorb(bool with_squares) {
  if (step_ != nullptr) step_->absorb(with_squares, api_.current_stream());
}

void DeviceUpdate::prepare() {
  step_->prepare(api_.current_stream());
}

}  // namespace fusedbun
