// What happens before the first step: parameters in, plan, state, hooks.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/step/collective_bucket.h"
#include "fusedbun/dist/step/engine.h"
#include "fusedbun/dist/step/point_to_point_bucket.h"
#include "fusedbun/dist/step/same_start.h"
#include "fusedbun/dist/step/shared_memory_bucket.h"

namespace fusedbun {

class StepEngine::GradientHook : public torch::autograd::PostAccumulateGradHook {
 public:
  GradientHook(StepEngine& engine, int parameter) : engine_(engine), parameter_(parameter) {}
  void operator()(const at::Tensor& tensor) override { engine_.on_gradient(parameter_, tensor); }

 private:
  StepEngine& engine_;  // outlives the hook: the engine's destructor takes its hooks off
  int parameter_;
};

StepEngine::StepEngine(Channels channels, ShardedOptions options,
                       std::vector<torch::optim::OptimizerParamGroup>& groups)
    : channels_(channels),
      board_(channels.board != nullptr ? *channels.board : own_board_),
      sharded_(std::move(options)),
      groups_(groups),
      device_(channels.data->device() == comm::DeviceKind::cuda ? at::kCUDA : at::kCPU),
      rank_(channels.data->rank()),
      plan_(plan::make_plan({}, {.world_size = channels.data->size(),
                                 .min_rows_per_rank = sharded_.min_rows_per_rank,
                                 .bucket_bytes = sharded_.bucket_bytes})),
      schedule_(plan_),
      message_(*channels.data, *channels.host, device_) {
  FUSEDBUN_REQUIRE(sharded_.max_grad_norm >= 0, ConfigError,
                   "max_grad_norm = " + std::to_string(sharded_.max_grad_norm) +
                       ": it is at least 0 (0 is off)");
  FUSEDBUN_REQUIRE(sharded_.gradient_wire == GradientWire::exact || device_.is_cpu(), ConfigError,
                   "gradient_wire = bf16 is for CPUs: NCCL adds up what it carries");
  device_nonfinite_ = at::zeros({}, at::TensorOptions(device_).dtype(at::kFloat));
}

StepEngine::~StepEngine() {
  for (const RegisteredParameter& parameter : parameters_) {
    torch::autograd::impl::set_post_acc_grad_hooks(parameter.tensor, nullptr);
  }
  try {
    // An exception on its way through leaves the ranks out of step: nothing under way can be waited
    // for.
    if (std::uncaught_exceptions() > 0) {
      abandon();
      channels_.data->abort("an error ended this rank's step");
      channels_.host->abort("an error ended this rank's step");
    } else {
      finish();
    }
  } catch (const std::exception&) {
    // A peer is gone; who called step() has been told, and a destructor has nobody to tell.
  }
}

const Options& StepEngine::options_of(int parameter) const {
  return static_cast<const FusedbunOptions&>(groups_[parameters_[parameter].group].options())
      .values();
}

std::vector<Options> StepEngine::group_options() const {
  std::vector<Options> options;
  for (const auto& group : groups_) {
    options.push_back(static_cast<const FusedbunOptions&>(group.options()).values());
  }
  return options;
}

std::vector<std::string> StepEngine::start_lines() const {
  std::vector<std::string> lines;
  for (const plan::ParameterSpec& parameter : plan_.parameters) {
    lines.push_back(plan::line_of(parameter));
  }
  for (const Options& options : group_options()) lines.push_back("options " + describe(options));
  lines.push_back("min_rows_per_rank " + std::to_string(sharded_.min_rows_per_rank) +
                  ", bucket_bytes " + std::to_string(sharded_.bucket_bytes) + ", in_place_bytes " +
                  std::to_string(sharded_.in_place_bytes) + ", gradient_wire " +
                  (sharded_.gradient_wire == GradientWire::bf16 ? "bf16" : "exact") +
                  ", transport " + std::string(plan::name_of(sharded_.transport)) +
                  (sharded_.step_in_backward ? ", step_in_backward" : ""));
  return lines;
}

void StepEngine::add_parameters(std::vector<RegisteredParameter> added) {
  settle_previous();
  const size_t first_parameter = parameters_.size();
  const size_t first_bucket = plan_.buckets.size();
  std::vector<plan::ParameterSpec> specs;
  for (RegisteredParameter& parameter : added) {
    FUSEDBUN_REQUIRE(parameter.tensor.device().type() == device_.type(), ConfigError,
                     "parameter '" + parameter.name + "' is on " + parameter.tensor.device().str() +
                         ", but the ranks exchange " + device_.str() + " memory");
    parameters_.push_back(std::move(parameter));
  }
  require_trainable(parameters_);
  for (size_t p = first_parameter; p < parameters_.size(); ++p) {
    specs.push_back(parameters_[p].spec());
  }
  for (const Options& options : group_options()) {
    validate(options);
    require_fit_for_backward(options);
  }
  plan_.append(specs);
  require_same_on_all_ranks(*channels_.host, start_lines());

  make_buckets(first_parameter, first_bucket);
  make_state(first_parameter, first_bucket);
  say_what_is_slow();
  schedule_.begin_step(plan_);
  for (size_t p = first_parameter; p < parameters_.size(); ++p) install_hook(static_cast<int>(p));
}

void StepEngine::require_fit_for_backward(const Options& options) const {
  if (!sharded_.step_in_backward) return;
  FUSEDBUN_REQUIRE(options.nonfinite == Nonfinite::propagate && sharded_.max_grad_norm == 0,
                   ConfigError,
                   "step_in_backward writes before the ranks have agreed: it needs nonfinite = "
                   "propagate in every group and max_grad_norm = 0");
}

void StepEngine::broadcast_parameters(size_t first) {
  at::NoGradGuard no_grad;
  for (size_t p = first; p < parameters_.size(); ++p) {
    if (parameters_[p].tensor.numel() == 0) continue;
    ParameterMatrix matrix(parameters_[p].tensor, plan_.parameters[p]);
    const at::Tensor& values = matrix.matrix();
    comm::Work work = channels_.data->broadcast(
        {values.data_ptr(), static_cast<int64_t>(values.nbytes()), comm::DataType::u8}, 0);
    wait(work);
    matrix.write_back();
  }
}

void StepEngine::make_buckets(size_t first_parameter, size_t first_bucket) {
  const plan::TransportChoice choice = choose_transport(first_parameter);
  if (choice.transport == plan::GradientTransport::shared_memory &&
      open_window(first_parameter, first_bucket)) {
    shares_memory_ = true;
    return;
  }
  if (sharded_.broadcast_parameters) broadcast_parameters(first_parameter);
  const bool rounds = sharded_.gradient_wire == GradientWire::bf16 && channels_.data->size() > 1;
  for (size_t b = first_bucket; b < plan_.buckets.size(); ++b) {
    const plan::Bucket& bucket = plan_.buckets[b];
    buckets_.push_back(choice.transport == plan::GradientTransport::collective
                           ? make_collective_bucket(bucket, *channels_.data, device_api(device_))
                           : make_point_to_point_bucket(bucket, *channels_.data,
                                                        wire_type(bucket, rounds),
                                                        sharded_.in_place_bytes));
  }
}

plan::TransportChoice StepEngine::choose_transport(size_t first_parameter) const {
  plan::TransportQuery query{.request = sharded_.transport,
                             .on_gpu = !device_.is_cpu(),
                             .world_size = channels_.data->size(),
                             .wants_host_window = sharded_.host_window,
                             .rounds_gradients = sharded_.gradient_wire == GradientWire::bf16};
  for (size_t p = first_parameter; p < parameters_.size(); ++p) {
    if (parameters_[p].tensor.is_contiguous()) continue;
    query.strided_parameter = parameters_[p].name;
    break;
  }
  plan::TransportChoice choice = plan::choose_transport(query);
  if (sharded_.notice && sharded_.host_window && !query.strided_parameter.empty() &&
      choice.transport == plan::GradientTransport::point_to_point && query.world_size > 1) {
    sharded_.notice("private copies of the parameters: " + choice.reason);
  }
  return choice;
}

bool StepEngine::open_window(size_t first_parameter, size_t first_bucket) {
  const WindowLayout layout = lay_out_window(plan_, first_parameter, first_bucket);
  const auto opened = comm::HostWindow::open(*channels_.host, layout.size, sharded_.window_timeout);
  if (opened.window == nullptr) {
    FUSEDBUN_REQUIRE(sharded_.transport != plan::GradientTransport::shared_memory, ConfigError,
                     "transport shared_memory cannot be used: " + opened.reason);
    if (sharded_.notice) sharded_.notice("private copies of the parameters: " + opened.reason);
    return false;
  }
  for (size_t b = first_bucket; b < plan_.buckets.size(); ++b) {
    buckets_.push_back(make_shared_memory_bucket(plan_.buckets[b], rank_, opened.window,
                                                 layout.buckets[b - first_bucket]));
  }
  for (size_t p = first_parameter; p < parameters_.size(); ++p) {
    move_into_window(parameters_[p].tensor, opened.window,
                     layout.parameter_offsets[p - first_parameter], /*copy=*/rank_ == 0);
  }
  channels_.host->barrier().wait();  // rank 0's values are there
  return true;
}

void StepEngine::make_state(size_t first_parameter, size_t first_bucket) {
  const std::vector<Options> options = group_options();
  columns_ = plan::column_layout(plan_, options);
  message_.resize(columns_);
  while (changes_.group_count() < static_cast<int>(groups_.size())) changes_.add_group();

  for (size_t p = first_parameter; p < parameters_.size(); ++p) {
    matrices_.emplace_back(parameters_[p].tensor, plan_.parameters[p]);
    // Parameters are equal on all ranks now, so each adds up the whole of them; later the owners'
    // sums travel.
    const bool scaled = options[parameters_[p].group].scale_by_parameter_rms;
    sum_of_squares_.push_back(
        scaled ? matrices_[p].matrix().to(at::kDouble).square().sum().item<double>() : 0);
  }
  t_.resize(parameters_.size(), 0);
  taken_versions_.resize(parameters_.size(), 0);
  scalars_.resize(parameters_.size());
  hessian_diagonals_.resize(parameters_.size());

  for (size_t b = first_bucket; b < plan_.buckets.size(); ++b) {
    std::vector<OwnedSegment>& owned = owned_.emplace_back();
    for (const plan::Segment& segment : plan_.buckets[b].segments[rank_]) {
      const at::Tensor rows = matrices_[segment.parameter].rows(segment.range);
      owned.push_back(
          {.where = segment,
           .state = make_segment_state(rows, segment.range, options_of(segment.parameter)),
           .partials = {},
           .step = {}});
    }
  }
  reductions_.resize(plan_.buckets.size());
  gathers_.resize(plan_.buckets.size());
}

void StepEngine::say_what_is_slow() const {
  if (!sharded_.notice) return;
  if (const auto warning = plan_.warning()) sharded_.notice(*warning);
  const std::vector<Options> options = group_options();
  for (size_t g = 0; g < options.size(); ++g) {
    if (step_path(options[g], device_, at::kFloat) != StepPath::reference) continue;
    sharded_.notice("group " + std::to_string(g) +
                    " takes the reference step, correct and slower: no fused pass has " +
                    describe(options[g]));
  }
}

void StepEngine::install_hook(int parameter) {
  const RegisteredParameter& registered = parameters_[parameter];
  FUSEDBUN_REQUIRE(
      !torch::autograd::impl::post_acc_grad_hooks(registered.tensor), ConfigError,
      "parameter '" + registered.name +
          "' already has a post-accumulate-gradient hook: is it in another sharded optimizer?");
  torch::autograd::impl::set_post_acc_grad_hooks(registered.tensor,
                                                 std::make_unique<GradientHook>(*this, parameter));
}

int64_t StepEngine::state_bytes() const {
  int64_t bytes = 0;
  for (const auto& bucket : owned_) {
    for (const OwnedSegment& owned : bucket) bytes += fusedbun::state_bytes(owned.state);
  }
  return bytes;
}

int64_t StepEngine::planned_state_bytes() const {
  return plan::state_bytes(plan_, rank_, group_options());
}

}  // namespace fusedbun
