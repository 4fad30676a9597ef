#include "fusedbun/dist/step/sharded_fusedbun.h"

#include <ATen/ATen.h>
#include <torch/serialize/archive.h>

#include <algorithm>
#include <iterator>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/step/engine.h"

namespace fusedbun {
namespace {

using Groups = std::vector<torch::optim::OptimizerParamGroup>;

std::vector<NamedTensor> named(const torch::OrderedDict<std::string, torch::Tensor>& parameters) {
  std::vector<NamedTensor> list;
  for (const auto& item : parameters) list.emplace_back(item.key(), item.value());
  return list;
}

std::vector<NamedTensor> named(const torch::optim::OptimizerParamGroup& group, size_t index) {
  std::vector<NamedTensor> list;
  for (const torch::Tensor& tensor : group.params()) {
    list.emplace_back("group" + std::to_string(index) + "." + std::to_string(list.size()), tensor);
  }
  return list;
}

/// One group of all parameters, each once; frozen ones too, as torch::optim has them.
Groups one_group(const torch::OrderedDict<std::string, torch::Tensor>& parameters) {
  const Registration all = register_parameters(named(parameters), 0, {});
  std::vector<torch::Tensor> tensors;
  for (const auto* list : {&all.trainable, &all.frozen}) {
    for (const RegisteredParameter& parameter : *list) tensors.push_back(parameter.tensor);
  }
  Groups groups;
  groups.emplace_back(std::move(tensors));
  return groups;
}

using GroupOf = std::function<size_t(const std::string& name, const torch::Tensor& tensor)>;

/// Each tensor once, in the group of its first name; frozen ones too.
Groups groups_of(const torch::OrderedDict<std::string, torch::Tensor>& parameters,
                 const std::vector<NamedGroup>& named_groups, const GroupOf& group_of) {
  FUSEDBUN_REQUIRE(!named_groups.empty(), ConfigError, "the optimizer was given no group");
  std::vector<std::vector<torch::Tensor>> tensors(named_groups.size());
  const Registration all = register_parameters(named(parameters), 0, {});
  for (const auto* list : {&all.trainable, &all.frozen}) {
    for (const RegisteredParameter& parameter : *list) {
      const size_t group = group_of(parameter.name, parameter.tensor);
      FUSEDBUN_REQUIRE(group < tensors.size(), ConfigError,
                       "parameter '" + parameter.name + "' is in group " + std::to_string(group) +
                           ", and there are " + std::to_string(tensors.size()));
      tensors[group].push_back(parameter.tensor);
    }
  }
  Groups groups;
  for (size_t g = 0; g < tensors.size(); ++g)
    groups.emplace_back(std::move(tensors[g]),
                        std::make_unique<FusedbunOptions>(named_groups[g].options));
  return groups;
}

/// LibTorch merges a group's options with the defaults for its own optimizers only; for any other it drops them (2.15).
void keep_own_options(torch::optim::OptimizerParamGroup& added,
                      const torch::optim::OptimizerParamGroup& given) {
  if (given.has_options()) added.set_options(given.options().clone());
}

Channels checked(Channels channels) {
  FUSEDBUN_REQUIRE(channels.data != nullptr && channels.host != nullptr, ConfigError,
                   "a sharded optimizer needs two channels: take them from Job::channels()");
  FUSEDBUN_REQUIRE(channels.data->size() == channels.host->size() &&
                       channels.data->rank() == channels.host->rank(),
                   ConfigError, "the data and the host channel connect different ranks");
  return channels;
}

}  // namespace

ShardedFusedbun::ShardedFusedbun(Channels channels,
                                 const torch::OrderedDict<std::string, torch::Tensor>& parameters,
                                 FusedbunOptions defaults, ShardedOptions options)
    : Optimizer(one_group(parameters), std::make_unique<FusedbunOptions>(defaults)) {
  engine_ = std::make_unique<StepEngine>(checked(channels), std::move(options), param_groups_);
  Registration all = register_parameters(named(parameters), 0, {});
  engine_->add_parameters(std::move(all.trainable), std::move(all.frozen));
  require_some();
}

ShardedFusedbun::ShardedFusedbun(Channels channels, const Groups& groups, FusedbunOptions defaults,
                                 ShardedOptions options)
    : Optimizer(groups, std::make_unique<FusedbunOptions>(defaults)) {
  engine_ = std::make_unique<StepEngine>(checked(channels), std::move(options), param_groups_);
  Registration all;
  std::vector<RegisteredParameter> seen;
  for (size_t g = 0; g < groups.size(); ++g) {
    keep_own_options(param_groups_[g], groups[g]);
    const Registration group = register_parameters(named(groups[g], g), static_cast<int>(g), seen);
    for (const auto& parameter : group.trainable) all.trainable.push_back(parameter);
    for (const auto& parameter : group.frozen) all.frozen.push_back(parameter);
    std::ranges::copy(group.trainable, std::back_inserter(seen));
    std::ranges::copy(group.frozen, std::back_inserter(seen));
  }
  engine_->add_parameters(std::move(all.trainable), std::move(all.frozen));
  require_some();
}

ShardedFusedbun::ShardedFusedbun(Channels channels,
                                 const torch::OrderedDict<std::string, torch::Tensor>& parameters,
                                 const std::vector<NamedGroup>& groups, const GroupOf& group_of,
                                 ShardedOptions options)
    : Optimizer(groups_of(parameters, groups, group_of),
                std::make_unique<FusedbunOptions>(groups.front().options)),
      named_(groups) {
  for (size_t g = 0; g < groups.size(); ++g)
    param_groups_[g].set_options(
        std::make_unique<FusedbunOptions>(groups[g].options));  // LibTorch drops them
  engine_ = std::make_unique<StepEngine>(checked(channels), std::move(options), param_groups_);
  Registration all = register_parameters(named(parameters), 0, {});
  for (auto* list : {&all.trainable, &all.frozen}) {
    for (RegisteredParameter& parameter : *list)
      parameter.group = static_cast<int>(group_of(parameter.name, parameter.tensor));
  }
  engine_->add_parameters(std::move(all.trainable), std::move(all.frozen));
  require_some();
}

ShardedFusedbun::~ShardedFusedbun() = default;

std::string ShardedFusedbun::group_name(size_t group) const {
  if (group < named_.size()) return named_[group].name;
  return param_groups_.size() == 1 ? "default" : "group" + std::to_string(group);
}

bool ShardedFusedbun::is_exempt_from_decay(size_t group) const {
  return group < named_.size() && named_[group].is_exempt_from_decay;
}

void ShardedFusedbun::require_some() const {
  FUSEDBUN_REQUIRE(!engine_->model().registered.empty(), ConfigError,
                   "the optimizer was given no parameter that requires a gradient");
}

torch::Tensor ShardedFusedbun::step(LossClosure closure) {
  return step(StepOptions{}, std::move(closure));
}

torch::Tensor ShardedFusedbun::step(const StepOptions& options, LossClosure closure) {
  torch::Tensor loss;
  if (closure) {
    at::AutoGradMode enable_grad(true);
    loss = closure();
  }
  engine_->step(options);
  return loss;
}

torch::Tensor ShardedFusedbun::scale_loss(const torch::Tensor& loss) {
  return engine_->loss_scaler().scaled(loss);
}
LossScaleState ShardedFusedbun::loss_scale() const {
  return engine_->loss_scaler().state();
}

void ShardedFusedbun::write_parameters(const std::function<void()>& write) {
  engine_->write_parameters(write);
}

void ShardedFusedbun::add_param_group(const torch::optim::OptimizerParamGroup& group) {
  engine_->begin_add_group();
  const size_t index = param_groups_.size();
  const auto problem_before = engine_->problem_of_groups();
  FUSEDBUN_REQUIRE(problem_before.empty(), ConfigError, problem_before);
  Registration added = register_parameters(named(group, index), static_cast<int>(index),
                                           engine_->model().registered);
  Optimizer::add_param_group(group);
  keep_own_options(param_groups_[index], group);
  try {
    engine_->add_parameters(std::move(added.trainable), std::move(added.frozen));
  } catch (const ConfigError&) {
    param_groups_.pop_back();
    throw;
  }
}

ShardedFusedbun::NoSync::NoSync(ShardedFusedbun& optimizer) : optimizer_(optimizer) {
  optimizer_.engine_->enter_no_sync();
}
ShardedFusedbun::NoSync::~NoSync() {
  optimizer_.engine_->leave_no_sync();
}

void ShardedFusedbun::set_hessian_diagonal(const torch::Tensor& parameter, torch::Tensor diagonal) {
  engine_->update().set_hessian_diagonal(parameter, std::move(diagonal));
}
void ShardedFusedbun::finish() {
  engine_->finish();
}
void ShardedFusedbun::set_control(changes::ControlPort* port) {
  engine_->consensus().set_control(port);
}
const changes::StepReport& ShardedFusedbun::report() const {
  return engine_->consensus().report();
}
changes::LeaveRequest ShardedFusedbun::leave_request() const {
  return engine_->consensus().leave_request();
}
double ShardedFusedbun::held_seconds() const {
  return engine_->consensus().held_seconds();
}
bool ShardedFusedbun::checkpoint_requested() const {
  return engine_->consensus().checkpoint_requested();
}
void ShardedFusedbun::request_leave(changes::LeaveRequest request) noexcept {
  engine_->consensus().request_leave(request);
}
double ShardedFusedbun::max_grad_norm() const {
  return engine_->options().max_grad_norm;
}
changes::JobCapabilities ShardedFusedbun::capabilities() const {
  const ShardedOptions& options = engine_->options();
  return {.clips_gradients = !options.step_in_backward || options.clip_by_previous_norm};
}
bool ShardedFusedbun::shares_memory() const {
  return engine_->shares_memory();
}
int64_t ShardedFusedbun::job_step() const {
  return engine_->model().job_step;
}
changes::ActiveChanges::Saved ShardedFusedbun::active_changes() const {
  return engine_->consensus().saved_changes();
}
int64_t ShardedFusedbun::skipped_steps() const {
  return engine_->consensus().skipped_steps();
}
std::vector<ShardedFusedbun::StepOutcome> ShardedFusedbun::take_outcomes() {
  return engine_->take_outcomes();
}
int ShardedFusedbun::outcome_delay() const {
  return engine_->outcome_delay();
}
void ShardedFusedbun::settle() {
  engine_->settle();
}
const plan::ShardPlan& ShardedFusedbun::shard_plan() const {
  return engine_->model().plan;
}
const torch::Tensor& ShardedFusedbun::parameter(int index) const {
  return engine_->model().registered[static_cast<size_t>(index)].tensor;
}
int64_t ShardedFusedbun::state_bytes() const {
  return engine_->update().state_bytes();
}
int64_t ShardedFusedbun::planned_state_bytes() const {
  return engine_->planned_state_bytes();
}
std::vector<ShardedFusedbun::OwnedRows> ShardedFusedbun::owned_rows() const {
  engine_->settle();
  return engine_->update().owned_rows();
}
ShardedFusedbun::ReplicatedState ShardedFusedbun::state_to_save() {
  return engine_->state_to_save();
}
void ShardedFusedbun::restore(const ReplicatedState& state,
                              const std::function<void(const OwnedRows& rows)>& read_rows) {
  engine_->restore(state, read_rows);
}
void ShardedFusedbun::save(torch::serialize::OutputArchive& archive) const {
  engine_->save(archive);
}
void ShardedFusedbun::load(torch::serialize::InputArchive& archive) {
  engine_->load(archive);
}

}  // namespace fusedbun
