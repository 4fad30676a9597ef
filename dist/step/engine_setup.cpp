// What happens before the first step, and again for a late group: parameters in, plan, buckets, state, hooks.
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <optional>
#include <set>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/host_identity.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/step/collective_bucket.h"
#include "fusedbun/dist/step/device_bucket.h"
#include "fusedbun/dist/step/engine.h"
#include "fusedbun/dist/step/point_to_point_bucket.h"
#include "fusedbun/dist/step/sharded_option_fields.h"
#include "fusedbun/dist/step/shared_memory_bucket.h"

namespace fusedbun {
namespace {

std::unique_ptr<comm::Communicator> stream_of_its_own(comm::Communicator& channel) {
  std::vector<int> all(static_cast<size_t>(channel.size()));
  std::iota(all.begin(), all.end(), 0);
  return channel.group(all);
}

Placement placement_of(const Channels& channels) {
  const bool on_gpu = channels.data->device() == comm::DeviceKind::cuda;
  if (on_gpu && has_device_api(at::kCPU)) return {};  // tensors of the CPU stand in for a GPU's
  const Placement placement = channels.placement ? *channels.placement : current_placement(on_gpu);
  FUSEDBUN_REQUIRE(placement.device.is_cuda() == on_gpu, ConfigError,
                   "the parameters' place is " + placement.describe() + ", but the data channel (" +
                       std::string(channels.data->backend()) + ") moves " +
                       (on_gpu ? "GPU" : "host") + " memory: take both from Job::channels()");
  FUSEDBUN_REQUIRE(!on_gpu || placement.device.has_index(), ConfigError,
                   "the parameters' place is a GPU without a number: name it, as \"cuda:1\"");
  FUSEDBUN_REQUIRE(!on_gpu || has_device_api(placement.device), ConfigError,
                   "the parameters are on a GPU, but this fusedbun was built without CUDA's "
                   "compiler: configure it where nvcc is");
  return placement;
}

}  // namespace

StepEngine::StepEngine(Channels channels, ShardedOptions options,
                       std::vector<torch::optim::OptimizerParamGroup>& groups)
    : sharded_(std::move(options)),
      model_{.rank = channels.data->rank(),
             .world_size = channels.data->size(),
             .placement = placement_of(channels),
             .groups = groups,
             .registered = {},
             .plan = plan::make_plan({}, {.world_size = channels.data->size(),
                                          .min_rows_per_rank = sharded_.min_rows_per_rank,
                                          .bucket_bytes = sharded_.bucket_bytes}),
             .matrices = {},
             .buckets = {}},
      // A second NCCL communicator would cost device memory, and the program has no use for the first.
      own_gradient_stream_(!model_.on_gpu() ? stream_of_its_own(*channels.data) : nullptr),
      gradient_stream_(own_gradient_stream_ ? own_gradient_stream_.get() : channels.data),
      control_stream_(stream_of_its_own(*channels.host)),
      progress_(model_, channels.board, sharded_.trace),
      message_(*gradient_stream_, *control_stream_, model_.device),
      device_(model_.on_gpu() ? std::make_unique<DeviceUpdate>(model_, *gradient_stream_)
                              : nullptr),
      loss_scaler_(sharded_.dynamic_loss_scale, device_ ? &device_->under_way() : nullptr,
                   model_.device),
      collector_(sharded_, model_, [this](int bucket) { on_bucket_full(bucket); }),
      update_(model_, message_, device_.get()),
      consensus_(*control_stream_, message_, model_, sharded_),
      changes_(model_) {}

void StepEngine::begin_add_group() {
  guarded([&] { agree_on_call(plan::OptimizerCall::add_group); });
}

// All checks come before the first change, and ranks that fail tell the others, so a refused group leaves no trace.
void StepEngine::add_parameters(std::vector<RegisteredParameter> added,
                                std::vector<RegisteredParameter> frozen) {
  const c10::DeviceGuard on_device(model_.device);
  hear(/*all=*/true);  // other parameters take part from now on
  const size_t first_parameter = model_.registered.size();
  const size_t first_bucket = model_.plan.buckets.size();
  std::vector<RegisteredParameter> all = model_.registered;
  std::ranges::copy(added, std::back_inserter(all));
  plan::ShardPlan plan = model_.plan;
  plan::TransportChoice transport;
  comm::rethrow_on_all_ranks(*control_stream_, [&] {
    require_fit(all, first_parameter);
    std::vector<plan::ParameterSpec> specs;
    for (const RegisteredParameter& parameter : added) {
      specs.push_back(parameter.spec());
      specs.back().matrix_view =
          model_.group_options(static_cast<size_t>(parameter.group)).matrix_view;
    }
    plan.append(specs);
    transport = choose_transport(all, first_parameter);
  });
  comm::verify_equal_across_ranks(
      *control_stream_, start_lines(plan, all),
      "all ranks must build the same model with the same options in the same order");

  model_.registered = std::move(all);
  model_.plan = std::move(plan);
  for (size_t p = first_parameter; p < model_.registered.size(); ++p) {
    model_.matrices.emplace_back(model_.registered[p].tensor, model_.plan.parameters[p]);
  }
  make_buckets(transport, first_parameter, first_bucket);
  param_syncs_.resize(model_.plan.buckets.size());
  rows_arrive_.resize(model_.plan.buckets.size());
  consensus_.add_groups();
  update_.extend();
  changes_.accept_groups(std::move(frozen));
  say_what_is_slow();
  collector_.extend();
}

void StepEngine::require_fit(std::span<const RegisteredParameter> all, size_t first) const {
  for (size_t g = 0; g < model_.groups.size(); ++g) {
    FUSEDBUN_REQUIRE(model_.has_own_options(g), ConfigError,
                     "parameter group " + std::to_string(g) +
                         " has options of another optimizer: give it FusedbunOptions");
    const Options& options = model_.group_options(g);
    validate(options);
    const bool clips_late = sharded_.max_grad_norm == 0 || sharded_.clip_by_previous_norm;
    FUSEDBUN_REQUIRE(
        !sharded_.step_in_backward || (options.nonfinite == Nonfinite::propagate && clips_late),
        ConfigError,
        "step_in_backward writes before the ranks have agreed: it needs nonfinite = "
        "propagate in every group, and max_grad_norm = 0 or clip_by_previous_norm");
  }
  FUSEDBUN_REQUIRE(!sharded_.clip_by_previous_norm || sharded_.step_in_backward, ConfigError,
                   "clip_by_previous_norm is for step_in_backward: without it max_grad_norm clips "
                   "by the norm of the step itself; leave it out");
  FUSEDBUN_REQUIRE(sharded_.max_grad_norm >= 0, ConfigError,
                   "max_grad_norm = " + std::to_string(sharded_.max_grad_norm) +
                       ": it is at least 0 (0 is off)");
  FUSEDBUN_REQUIRE(!sharded_.gradient_divisor || *sharded_.gradient_divisor > 0, ConfigError,
                   "gradient_divisor is not above 0");
  if (sharded_.dynamic_loss_scale) validate(*sharded_.dynamic_loss_scale);
  FUSEDBUN_REQUIRE(!sharded_.dynamic_loss_scale || !sharded_.step_in_backward, ConfigError,
                   "dynamic_loss_scale skips steps whose gradients overflow, and step_in_backward "
                   "has written the parameters by then: leave one of them out");
  FUSEDBUN_REQUIRE(sharded_.gradient_wire == GradientWire::exact || model_.device.is_cpu(),
                   ConfigError, "gradient_wire = bf16 is for CPUs: NCCL adds up what it carries");
  FUSEDBUN_REQUIRE(
      sharded_.update_wire == UpdateWire::exact || model_.device.is_cpu(), ConfigError,
      "update_wire = bf16 is for CPUs: on GPUs keep the parameters in bfloat16, which travels");
  require_trainable(all);
  for (const RegisteredParameter& parameter : all.subspan(first)) {
    const std::string problem = why_not_there(parameter.tensor.device(), model_.placement);
    FUSEDBUN_REQUIRE(
        problem.empty(), ConfigError,
        "rank " + std::to_string(model_.rank) + ": parameter '" + parameter.name + "' " + problem);
    require_low_precision(parameter.tensor.scalar_type(),
                          model_.group_options(static_cast<size_t>(parameter.group)),
                          "parameter '" + parameter.name + "'");
    FUSEDBUN_REQUIRE(
        !torch::autograd::impl::post_acc_grad_hooks(parameter.tensor), ConfigError,
        "parameter '" + parameter.name +
            "' already has a post-accumulate-gradient hook: is it in another sharded optimizer?");
  }
}

std::vector<std::string> StepEngine::start_lines(const plan::ShardPlan& plan,
                                                 std::span<const RegisteredParameter> all) const {
  std::vector<std::string> lines;
  for (size_t p = 0; p < all.size(); ++p) {
    // Whether it is contiguous decides whether ranks can share memory.
    lines.push_back(plan::line_of(plan.parameters[p]) +
                    (all[p].tensor.is_contiguous() ? "" : " not contiguous"));
  }
  for (const Options& options : model_.all_group_options()) {
    lines.push_back("options " + describe(options));
  }
  std::ranges::move(describe_for_start(sharded_), std::back_inserter(lines));
  return lines;
}

void StepEngine::make_buckets(const plan::TransportChoice& choice, size_t first_parameter,
                              size_t first_bucket) {
  if (sharded_.notice && choice.lacks_host_window) {
    sharded_.notice("private copies of the parameters: " + choice.reason);
  }
  if (choice.transport == plan::GradientTransport::shared_memory &&
      open_window(first_parameter, first_bucket)) {
    shares_memory_ = true;
    return;
  }
  if (sharded_.broadcast_parameters) broadcast_parameters(first_parameter);
  const bool rounds = sharded_.gradient_wire == GradientWire::bf16 && model_.world_size > 1;
  const bool by_messages =
      !model_.on_gpu() && choice.transport != plan::GradientTransport::collective;
  const plan::RowRoutes routes =
      by_messages && model_.world_size > 1
          ? plan::route_rows(comm::hosts_of_ranks(*control_stream_), model_.rank)
          : plan::RowRoutes{};
  std::optional<DeviceBucketRing> ring;
  if (model_.on_gpu() && model_.world_size > 1 && first_bucket < model_.plan.buckets.size()) {
    // A second part of the update, after the columns of all buckets, reads the sums once more.
    const std::vector<Options> groups = model_.all_group_options();
    const bool is_read_late = std::ranges::any_of(
        groups, [](const Options& group) { return group.denominator == Denominator::global; });
    ring.emplace(std::span(model_.plan.buckets).subspan(first_bucket), model_.rank, model_.device,
                 /*holds_sums=*/sharded_.step_in_backward && !is_read_late);
  }
  for (size_t b = first_bucket; b < model_.plan.buckets.size(); ++b) {
    const plan::Bucket& bucket = model_.plan.buckets[b];
    if (model_.on_gpu()) {
      model_.buckets.push_back(make_device_bucket(
          bucket, static_cast<int>(b), model_.device, *gradient_stream_, device_->under_way(),
          ring ? &*ring : nullptr, sharded_.release != GradientRelease::in_hook));
    } else if (choice.transport == plan::GradientTransport::collective) {
      model_.buckets.push_back(make_collective_bucket(bucket, *gradient_stream_));
    } else {
      model_.buckets.push_back(
          make_point_to_point_bucket(bucket, *gradient_stream_,
                                     {.gradient_type = wire_type(bucket, rounds),
                                      .rounds_updates = sharded_.update_wire == UpdateWire::bf16,
                                      .in_place_bytes = sharded_.in_place_bytes,
                                      .routes = routes}));
    }
  }
  for (size_t p = first_parameter; p < model_.matrices.size(); ++p) model_.matrices[p].remember();
}

plan::TransportChoice StepEngine::choose_transport(std::span<const RegisteredParameter> all,
                                                   size_t first) const {
  plan::TransportQuery query{.request = sharded_.transport,
                             .on_gpu = model_.on_gpu(),
                             .world_size = model_.world_size,
                             .wants_host_window = sharded_.host_window,
                             .rounds_gradients = sharded_.gradient_wire == GradientWire::bf16,
                             .rounds_updates = sharded_.update_wire == UpdateWire::bf16};
  for (const RegisteredParameter& parameter : all.subspan(first)) {
    if (parameter.tensor.is_contiguous()) continue;
    query.strided_parameter = parameter.name;
    break;
  }
  return plan::choose_transport(query);
}

bool StepEngine::open_window(size_t first_parameter, size_t first_bucket) {
  const WindowLayout layout = lay_out_window(model_.plan, first_parameter, first_bucket);
  const auto opened =
      comm::HostWindow::open(*control_stream_, layout.size, control_stream_->timeout());
  if (opened.window == nullptr) {
    FUSEDBUN_REQUIRE(sharded_.transport != plan::GradientTransport::shared_memory, ConfigError,
                     "transport shared_memory cannot be used: " + opened.reason);
    if (sharded_.notice) sharded_.notice("private copies of the parameters: " + opened.reason);
    return false;
  }
  for (size_t b = first_bucket; b < model_.plan.buckets.size(); ++b) {
    model_.buckets.push_back(make_shared_memory_bucket(
        model_.plan.buckets[b], model_.rank, opened.window, layout.buckets[b - first_bucket]));
  }
  for (size_t p = first_parameter; p < model_.registered.size(); ++p) {
    if (model_.registered[p].tensor.numel() == 0) continue;
    move_into_window(model_.registered[p].tensor, opened.window,
                     layout.parameter_offsets[p - first_parameter], /*copy=*/model_.rank == 0);
    model_.matrices[p].share();
    model_.matrices[p].refresh();
  }
  control_stream_->barrier().wait();  // rank 0's values are there
  for (size_t p = first_parameter; p < model_.matrices.size(); ++p) model_.matrices[p].remember();
  return true;
}

void StepEngine::adopt_unfrozen() {
  std::vector<RegisteredParameter> unfrozen = changes_.take_unfrozen();
  if (sharded_.notice) {
    for (const RegisteredParameter& parameter : unfrozen) {
      sharded_.notice("parameter '" + parameter.name +
                      "' was frozen when the optimizer was made; it is trained from this step on");
    }
  }
  const int first = model_.parameter_count();
  add_parameters(std::move(unfrozen), {});
  collector_.note_unfrozen(first);
}

void StepEngine::say_what_is_slow() const {
  if (!sharded_.notice) return;
  if (const auto warning = model_.plan.warning()) sharded_.notice(*warning);
  if (const auto advice = plan::matrix_view_advice(model_.plan.parameters)) {
    sharded_.notice(*advice);
  }
  std::set<std::string> said;
  for (int p = 0; p < model_.parameter_count(); ++p) {
    const at::Tensor& tensor = model_.registered[p].tensor;
    const Options& options = model_.options_of(p);
    const at::ScalarType arithmetic = arithmetic_type(tensor.scalar_type());
    if (step_path(options, model_.device, arithmetic) == StepPath::reference) {
      said.insert("group " + std::to_string(model_.registered[p].group) +
                  " takes the reference step, correct and slower: no fused pass has " +
                  describe(options));
    }
    if (!tensor.is_contiguous()) {
      said.insert("parameter '" + model_.name(p) +
                  "' is not contiguous, so each step copies it in and out: make it contiguous");
    }
  }
  for (const std::string& sentence : said) sharded_.notice(sentence);
}

int64_t StepEngine::planned_state_bytes() const {
  return plan::state_bytes(model_.plan, model_.rank, model_.all_group_options());
}

}  // namespace fusedbun
