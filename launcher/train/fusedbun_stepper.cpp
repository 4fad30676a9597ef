#include "fusedbun/dist/job/job.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"
#include "fusedbun/launcher/model/gpt2_file.h"
#include "fusedbun/launcher/train/change_notes.h"
#include "fusedbun/launcher/train/stepper.h"

namespace fusedbun::train {
namespace {

using Parameters = torch::OrderedDict<std::string, torch::Tensor>;

bool is_matrix(const torch::Tensor& parameter) {
  return parameter.dim() >= 2;
}

/// "default", and beside it "no_decay" where weight decay is not of all that is trained.
std::vector<NamedGroup> named_groups_of(const Parameters& parameters,
                                        const StepperOptions& options) {
  std::vector<NamedGroup> groups{
      {.name = "default", .options = FusedbunOptions(options.optimizer)}};
  bool has_matrices = false, has_vectors = false;
  for (const auto& item : parameters) {
    if (!item.value().requires_grad()) continue;
    (is_matrix(item.value()) ? has_matrices : has_vectors) = true;
  }
  if (options.decays_all || !has_vectors) return groups;
  Options no_decay = options.optimizer;
  no_decay.Lambda = 0;
  if (!has_matrices) {
    groups[0].options = FusedbunOptions(no_decay);
    return groups;
  }
  groups.push_back(
      {.name = "no_decay", .options = FusedbunOptions(no_decay), .is_exempt_from_decay = true});
  return groups;
}

class FusedbunStepper : public Stepper {
 public:
  FusedbunStepper(Job& job, model::CausalLm& model, const StepperOptions& options,
                  ResumeRequest* resume)
      : job_(job),
        model_(model),
        groups_(named_groups_of(model.named_parameters(), options)),
        optimizer_(
            job.channels(), model.named_parameters(), groups_,
            [this](const std::string&, const torch::Tensor& parameter) -> size_t {
              return groups_.size() > 1 && !is_matrix(parameter) ? 1 : 0;
            },
            {.bucket_bytes = options.bucket_bytes,
             .max_grad_norm = options.max_grad_norm,
             .clip_by_previous_norm = options.clip_by_previous_norm,
             .gradient_divisor = {},
             .dynamic_loss_scale = options.loss_scale,
             .gradient_wire = options.bf16_on_wire ? GradientWire::bf16 : GradientWire::exact,
             .update_wire = options.bf16_on_wire ? UpdateWire::bf16 : UpdateWire::exact,
             .step_in_backward = options.step_in_backward,
             .host_window = options.host_window,
             .release = GradientRelease::in_hook,
             .trace = options.trace,
             .notice = options.notice}),
        companions_(options.companions),
        scales_loss_(options.loss_scale.has_value()),
        bf16_on_wire_(options.bf16_on_wire),
        step_in_backward_(options.step_in_backward) {
    if (resume != nullptr) resume->loaded = job.resume(contents({}), resume->from);
    job.serve(optimizer_);
    if (job.rank() != 0) return;
    std::vector<std::string> groups;
    for (size_t group = 0; group < optimizer_.param_groups().size(); ++group)
      groups.push_back(optimizer_.group_name(group));
    change_notes_.emplace(std::move(groups), optimizer_.job_step());
  }

  void begin(double lr) override {
    for (auto& group : optimizer_.param_groups()) group.options().set_lr(lr);
  }

  void accumulate(const std::function<void()>& backward) override {
    const auto local = optimizer_.no_sync();
    backward();
  }

  torch::Tensor scale_loss(const torch::Tensor& loss) override {
    return optimizer_.scale_loss(loss);
  }
  StepOutcome step() override {
    optimizer_.step();
    const changes::StepReport& report = optimizer_.report();
    StepOutcome outcome{report.group_options[0].lr, report.gradient_norm, report.active_revision,
                        report.skipped_steps, take_scale()};
    for (size_t group = 0; group < report.group_options.size(); ++group) {
      outcome.group_rates.push_back({optimizer_.group_name(group), report.group_options[group].lr});
    }
    outcome.changes = changes_of(report.job_step);
    return outcome;
  }

  void finish() override { optimizer_.finish(); }
  changes::LeaveRequest leave_request() const override { return optimizer_.leave_request(); }
  void request_leave(changes::LeaveRequest request) noexcept override {
    optimizer_.request_leave(request);
  }
  double held_seconds() const override { return optimizer_.held_seconds(); }
  bool checkpoint_requested() const override { return optimizer_.checkpoint_requested(); }
  int64_t job_step() const override { return optimizer_.job_step(); }
  SaveStart save(const CheckpointTexts& values) override { return job_.save(contents(values)); }
  bool skips_nonfinite() const override { return values().nonfinite == Nonfinite::skip; }
  int64_t planned_state_bytes() const override { return optimizer_.planned_state_bytes(); }
  int64_t state_bytes() const override { return optimizer_.state_bytes(); }
  std::string plan() const override { return optimizer_.shard_plan().describe(); }
  plan::GradientTransport transport() const override {
    if (optimizer_.shares_memory()) return plan::GradientTransport::shared_memory;
    return job_.channels().data->device() == comm::DeviceKind::cpu
               ? plan::GradientTransport::point_to_point
               : plan::GradientTransport::collective;
  }
  std::string describe_transport() const override {
    std::string way =
        optimizer_.shares_memory()
            ? "host window: one replica of the parameters, gradients read where they are written"
            : "messages: reduce-scatter and all-gather";
    if (bf16_on_wire_ && !optimizer_.shares_memory()) way += ", gradients and updates as bfloat16";
    if (step_in_backward_) way += "; buckets are stepped during backward";
    return way;
  }

 private:
  std::vector<std::string> changes_of(int64_t job_step) {
    if (!change_notes_) return {};
    const int64_t before = change_notes_->known_revision();
    const int64_t known = optimizer_.active_changes().known_revision;
    if (known > before) change_notes_->accept(job_.accepted_changes(before, known), known);
    return change_notes_->take(job_step);
  }
  std::optional<StepOutcome::Scale> take_scale() {
    const std::vector<ShardedFusedbun::StepOutcome> heard = optimizer_.take_outcomes();
    if (!scales_loss_) return std::nullopt;
    StepOutcome::Scale scale{.used = optimizer_.loss_scale().scale,
                             .next = optimizer_.loss_scale()};
    for (const ShardedFusedbun::StepOutcome& outcome : heard) {
      scale.used = outcome.loss_scale;
      scale.has_skipped |= outcome.skipped;
    }
    return scale;
  }
  CheckpointContents contents(const CheckpointTexts& values) {
    return {.optimizer = &optimizer_,
            .model = &model_,
            .values = values,
            .is_stored_transposed =
                [this](std::string_view name) { return model::is_stored_transposed(model_, name); },
            .model_metadata = model::metadata_of(model_),
            .companions = companions_};
  }
  const Options& values() const {
    return static_cast<const FusedbunOptions&>(optimizer_.param_groups()[0].options()).values();
  }
  Job& job_;
  model::CausalLm& model_;
  std::vector<NamedGroup> groups_;
  ShardedFusedbun optimizer_;
  CheckpointTexts companions_;
  bool scales_loss_;
  bool bf16_on_wire_;
  bool step_in_backward_;
  std::optional<ChangeNotes> change_notes_;  ///< rank 0's
};

}  // namespace

std::unique_ptr<Stepper> make_fusedbun_stepper(Job& job, model::CausalLm& model,
                                               const StepperOptions& options,
                                               ResumeRequest* resume) {
  return std::make_unique<FusedbunStepper>(job, model, options, resume);
}

}  // namespace fusedbun::train
