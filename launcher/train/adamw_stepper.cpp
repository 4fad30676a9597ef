#include <ATen/ATen.h>
#include <torch/optim/adamw.h>
#include <torch/utils.h>

#include <atomic>
#include <cmath>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/job.h"
#include "fusedbun/launcher/model/causal_lm.h"
#include "fusedbun/launcher/train/stepper.h"

namespace fusedbun::train {
namespace {

torch::optim::AdamWOptions adamw_options(const Options& options) {
  return torch::optim::AdamWOptions(options.lr)
      .betas({options.momentum_beta, options.beta_decay})
      .eps(options.eps)
      .weight_decay(options.Lambda);
}

std::vector<torch::Tensor> trained_parameters(const model::CausalLm& model) {
  std::vector<torch::Tensor> parameters = model.parameters();
  std::erase_if(parameters, [](const torch::Tensor& each) { return !each.requires_grad(); });
  return parameters;
}

std::vector<torch::optim::OptimizerParamGroup> adamw_groups(
    const std::vector<torch::Tensor>& parameters, const StepperOptions& options) {
  std::vector<torch::Tensor> decayed, others;
  for (const torch::Tensor& parameter : parameters)
    (options.decays_all || parameter.dim() >= 2 ? decayed : others).push_back(parameter);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  const auto add = [&](std::vector<torch::Tensor> members, double weight_decay) {
    if (members.empty()) return;
    groups.emplace_back(std::move(members),
                        std::make_unique<torch::optim::AdamWOptions>(
                            adamw_options(options.optimizer).weight_decay(weight_decay)));
  };
  add(std::move(decayed), options.optimizer.Lambda);
  add(std::move(others), 0);
  return groups;
}

/// All gradients travel in one all-reduce; state is kept whole on every rank. The message's last element counts the
/// ranks that were asked to leave, so that all leave at the same step.
class AdamwStepper : public Stepper {
 public:
  AdamwStepper(Job& job, model::CausalLm& model, const StepperOptions& options)
      : data_(*job.channels().data),
        parameters_(trained_parameters(model)),
        optimizer_(adamw_groups(parameters_, options), adamw_options(options.optimizer)),
        max_grad_norm_(options.max_grad_norm),
        divisor_(static_cast<double>(data_.size()) * options.accumulation) {
    FUSEDBUN_REQUIRE(data_.device() == comm::DeviceKind::cpu, ConfigError,
                     "optimizer = adamw is for comparisons on the CPU: use --device cpu");
    for (const torch::Tensor& parameter : parameters_) {
      data_.broadcast(buffer_of(parameter), 0).wait();
      elements_ += parameter.numel();
    }
    message_ = at::empty({elements_ + 1}, at::kFloat);
  }

  void begin(double lr) override {
    for (auto& group : optimizer_.param_groups()) group.options().set_lr(lr);
  }
  void accumulate(const std::function<void()>& backward) override { backward(); }

  StepOutcome step() override {
    average_gradients();
    const torch::Tensor gradient = message_.narrow(0, 0, elements_);
    double norm = 0;
    if (max_grad_norm_ > 0) {
      norm = gradient.norm().item<double>();
      if (norm > max_grad_norm_) gradient.mul_(max_grad_norm_ / norm);
    }
    optimizer_.step();
    for (const torch::Tensor& parameter : parameters_) parameter.mutable_grad().reset();
    ++job_step_;
    const double lr = optimizer_.param_groups()[0].options().get_lr();
    return {.lr = lr, .grad_norm = norm, .group_rates = {{"default", lr}}};
  }

  void finish() override {}
  changes::LeaveRequest leave_request() const override { return leaving_; }
  void request_leave(changes::LeaveRequest request) noexcept override { asked_ = request; }
  bool checkpoint_requested() const override { return false; }
  int64_t job_step() const override { return job_step_; }
  SaveStart save(const CheckpointTexts&) override {
    FUSEDBUN_ASSERT(false, "AdamW has no checkpoints, and nobody asks it for one");
  }
  bool skips_nonfinite() const override { return false; }
  int64_t planned_state_bytes() const override {
    return 2 * elements_ * static_cast<int64_t>(sizeof(float));
  }

  int64_t state_bytes() const override {
    int64_t bytes = 0;
    for (const auto& [parameter, state] : optimizer_.state()) {
      const auto& moments = static_cast<const torch::optim::AdamWParamState&>(*state);
      bytes += static_cast<int64_t>(moments.exp_avg().nbytes() + moments.exp_avg_sq().nbytes());
    }
    return bytes;
  }

  std::string describe_transport() const override { return "messages: all-reduce"; }
  plan::GradientTransport transport() const override { return plan::GradientTransport::collective; }
  std::string plan() const override { return "every rank keeps the state of all parameters\n"; }

 private:
  static comm::Buffer buffer_of(const torch::Tensor& tensor) {
    return {tensor.data_ptr(), tensor.numel(), comm::DataType::f32};
  }

  /// Leaves each parameter's gradient as a view of the reduced message.
  void average_gradients() {
    const torch::NoGradGuard no_grad;
    int64_t begin = 0;
    for (const torch::Tensor& parameter : parameters_) {
      torch::Tensor place = message_.narrow(0, begin, parameter.numel()).view(parameter.sizes());
      parameter.grad().defined() ? place.copy_(parameter.grad()) : place.zero_();
      parameter.mutable_grad() = place;
      begin += parameter.numel();
    }
    message_[elements_] = asked_.load() == changes::LeaveRequest::none ? 0.0 : 1.0;
    data_.all_reduce(buffer_of(message_), comm::ReduceOp::sum).wait();
    if (message_[elements_].item<double>() > 0) leaving_ = changes::LeaveRequest::drain;
    message_.narrow(0, 0, elements_).div_(divisor_);
  }

  comm::Communicator& data_;
  std::vector<torch::Tensor> parameters_;
  torch::optim::AdamW optimizer_;
  double max_grad_norm_;
  double divisor_;
  int64_t elements_ = 0;
  int64_t job_step_ = 0;
  torch::Tensor message_;  ///< [elements_ + 1]
  std::atomic<changes::LeaveRequest> asked_{changes::LeaveRequest::none};
  changes::LeaveRequest leaving_ = changes::LeaveRequest::none;
};

}  // namespace

std::unique_ptr<Stepper> make_adamw_stepper(Job& job, model::CausalLm& model,
                                            const StepperOptions& options) {
  return std::make_unique<AdamwStepper>(job, model, options);
}

}  // namespace fusedbun::train
