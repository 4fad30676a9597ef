#include "fusedbun/core/fusedbun.h"

#include <ATen/ATen.h>
#include <torch/serialize/archive.h>

#include <cmath>
#include <optional>
#include <unordered_set>

#include "fusedbun/core/error.h"
#include "fusedbun/core/gpu/fusedbun_device.h"
#include "fusedbun/core/gradient_kernels.h"
#include "fusedbun/core/option_fields.h"

namespace fusedbun {
namespace {

using torch::Tensor;
using torch::optim::OptimizerParamGroup;
using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;

const Options& options_of(const OptimizerParamGroup& group) {
  const auto* options = dynamic_cast<const FusedbunOptions*>(&group.options());
  FUSEDBUN_REQUIRE(options != nullptr, ConfigError,
                   "the options of a param group are not FusedbunOptions: give the group "
                   "FusedbunOptions, or none to take the optimizer's");
  return options->values();
}

// A tied parameter is one tensor that a module lists twice; it is stepped once. In two groups it would have two sets of
// options, so that is refused.
OptimizerParamGroup checked(const OptimizerParamGroup& group, const FusedbunOptions& defaults,
                            const std::unordered_set<void*>& elsewhere) {
  std::unordered_set<void*> own;
  std::vector<Tensor> parameters;
  for (const Tensor& parameter : group.params()) {
    FUSEDBUN_REQUIRE(parameter.defined(), ConfigError, "a param group holds an undefined tensor");
    arithmetic_type(parameter.scalar_type());  // refuses integers
    void* identity = parameter.unsafeGetTensorImpl();
    FUSEDBUN_REQUIRE(!elsewhere.contains(identity), ConfigError,
                     "a parameter is in two param groups: put it in one");
    if (own.insert(identity).second) parameters.push_back(parameter);
  }
  OptimizerParamGroup result(
      std::move(parameters),
      group.has_options() ? group.options().clone() : std::make_unique<FusedbunOptions>(defaults));
  validate(options_of(result));
  return result;
}

RowRange all_rows(const Tensor& parameter, const Options& options) {
  const at::IntArrayRef sizes = parameter.sizes();
  return all_rows_of({sizes.data(), sizes.size()}, options.matrix_view);
}

// [rows, m] in row-major order: a view where the tensor's memory allows it, else a copy.
Tensor as_rows(const Tensor& tensor, const RowRange& range) {
  return tensor.detach().contiguous().view({range.rows(), range.columns});
}

bool squares_finite(const Tensor& gradient, at::ScalarType arithmetic) {
  const Tensor g = gradient.detach().to(arithmetic).contiguous();
  if (!g.device().is_cpu()) return at::isfinite(g.square()).all().item<bool>();
  return arithmetic == at::kDouble ? squares_are_finite(g.data_ptr<double>(), g.numel())
                                   : squares_are_finite(g.data_ptr<float>(), g.numel());
}

// Known from the last step, so that the values need not be read once more; added up anew if the program has written them since.
double root_mean_square(const Tensor& parameter, const Tensor& rows, const RowRange& range,
                        const Options& options, FusedbunParamState& state) {
  using Difference = TensorSnapshot::Difference;
  double sum = state.squares.sum;
  const bool is_known = state.squares.of.difference(parameter) == Difference::none &&
                        !state.squares.on_device.defined();
  if (!is_known) {
    follow_parameter(rows, state.segment);
    sum = sum_of_squares(stepped_values(rows, state.segment), range, options);
  }
  return std::sqrt(sum / static_cast<double>(rows.numel()));
}

bool has_state(const SegmentState& segment) {
  return segment.exp_avg_sq.full.defined() || segment.exp_avg_sq.col.defined();
}

void step_parameter(const Tensor& parameter, int64_t index, const Tensor& hessian_diagonal,
                    FusedbunParamState& state, const Options& options) {
  const RowRange range = all_rows(parameter, options);
  const Tensor rows = as_rows(parameter, range);
  if (!has_state(state.segment)) state.segment = make_segment_state(rows, range, options);
  fit_segment_state(rows, options, state.segment);
  SegmentState& segment = state.segment;
  const double rms =
      options.scale_by_parameter_rms ? root_mean_square(parameter, rows, range, options, state) : 1;
  ++state.step;

  SegmentStep step;
  step.parameter = rows;
  step.parameter_index = index;
  const at::ScalarType arithmetic = arithmetic_type(parameter.scalar_type());
  const bool is_half = parameter.grad().scalar_type() == at::kBFloat16 && arithmetic == at::kFloat;
  step.gradients = {as_rows(is_half ? parameter.grad() : parameter.grad().to(arithmetic), range)};
  if (hessian_diagonal.defined()) step.hessian_diagonal = as_rows(hessian_diagonal, range);
  step.range = range;
  step.scalars = step_scalars(options, state.step, rms);
  if (const int64_t entries = column_entries(range, options); entries > 0) {
    const auto type = columns_are_maxima(options) ? arithmetic : at::kDouble;
    step.column_partials = at::zeros({entries}, step.gradients.front().options().dtype(type));
  }
  double new_squares = 0;
  if (options.scale_by_parameter_rms) step.parameter_sum_of_squares = &new_squares;
  begin_step(step, segment, options);
  absorb_columns(step.column_partials, range, step.scalars, segment, options);
  finish_step(step, segment, options);
  if (!parameter.is_contiguous()) parameter.detach().copy_(rows.view(parameter.sizes()));
  // The passes write through pointers, of which autograd knows nothing: with this it refuses a backward pass that needs the
  // values from before the step.
  if (!parameter.is_inference()) parameter.unsafeGetTensorImpl()->bump_version();
  if (options.scale_by_parameter_rms) {
    state.squares = {new_squares, TensorSnapshot(parameter, TensorSnapshot::Sampling::few), {}};
  }
}

FusedbunDevice::Stepped stepped_of(const Tensor& parameter, int index, FusedbunParamState& state,
                                   const Options& options) {
  FusedbunDevice::Stepped stepped;
  stepped.index = index;
  stepped.parameter = parameter;
  stepped.range = all_rows(parameter, options);
  stepped.rows = as_rows(parameter, stepped.range);
  if (!has_state(state.segment))
    state.segment = make_segment_state(stepped.rows, stepped.range, options);
  fit_segment_state(stepped.rows, options, state.segment);
  const Tensor gradient = parameter.grad();
  const at::ScalarType arithmetic = arithmetic_type(parameter.scalar_type());
  const bool is_taken = arithmetic == at::kFloat && (gradient.scalar_type() == at::kBFloat16 ||
                                                     gradient.scalar_type() == at::kHalf);
  stepped.gradient_rows = as_rows(is_taken ? gradient : gradient.to(arithmetic), stepped.range);
  stepped.state = &state;
  stepped.options = &options;
  return stepped;
}

// "parameter 3 of group 0 [4, 5]"
std::string name_of(size_t parameter, size_t group, const Tensor& tensor) {
  return "parameter " + std::to_string(parameter) + " of group " + std::to_string(group) + " " +
         c10::str(tensor.sizes());
}

void require_fitting_gradient(const Tensor& parameter, const std::string& name) {
  const Tensor& gradient = parameter.grad();
  FUSEDBUN_REQUIRE(gradient.layout() == at::kStrided, ConfigError,
                   "the gradient of " + name +
                       " is sparse, and Fusedbun takes dense ones: use a dense layer (Embedding "
                       "with sparse = false)");
  FUSEDBUN_REQUIRE(
      gradient.sizes() == parameter.sizes() && gradient.device() == parameter.device(), ConfigError,
      "the gradient of " + name + " is " + c10::str(gradient.sizes()) + " on " +
          gradient.device().str() + " and the parameter on " + parameter.device().str() +
          ": they must agree; zero_grad() after changing a parameter");
}

// A parameter may change its type and device after its first step, but not its shape: the statistics of rows and columns
// would be those of others.
void require_same_shape(const Tensor& parameter, const FusedbunParamState& state,
                        const Options& options, const std::string& name) {
  const RowRange range = all_rows(parameter, options);
  const SegmentState& segment = state.segment;
  const auto fits = [](const Tensor& tensor, at::IntArrayRef sizes) {
    return !tensor.defined() || tensor.sizes() == sizes;
  };
  FUSEDBUN_REQUIRE(fits(segment.momentum_buffer, {range.rows(), range.columns}) &&
                       fits(segment.exp_avg_sq.full, {range.rows(), range.columns}) &&
                       fits(segment.exp_avg_sq.row, {range.rows()}) &&
                       fits(segment.exp_avg_sq.col, {range.matrices() * range.columns}),
                   ConfigError,
                   name +
                       " has not the shape that its optimizer state was made for: make a new "
                       "optimizer after changing shapes");
}

}  // namespace

// --- options and state in archives --------------------------------------------------------------

void FusedbunOptions::serialize(OutputArchive& archive) const {
  visit_options(values_, [&]<class Field>(std::string_view name, const Field& field) {
    if constexpr (std::is_enum_v<Field>) {
      archive.write(std::string(name), torch::IValue(std::string(name_of(field))));
    } else {
      archive.write(std::string(name), torch::IValue(field));
    }
  });
}

void FusedbunOptions::serialize(InputArchive& archive) {
  Options loaded;
  visit_options(loaded, [&]<class Field>(std::string_view name, Field& field) {
    torch::IValue value;
    const bool is_saved = archive.try_read(std::string(name), value);
    // What was saved before there were these options was made as their defaults make it.
    const bool is_later = name == "beta_cap" || name == "matrix_view" || name == "low_precision";
    if (!is_saved && is_later) return;
    FUSEDBUN_REQUIRE(is_saved, DataError,
                     "the saved optimizer has no option '" + std::string(name) + "'");
    if constexpr (std::is_enum_v<Field>) {
      field = parse<Field>(value.toStringRef());
    } else {
      field = value.to<Field>();
    }
  });
  validate(loaded);
  values_ = loaded;
}

namespace {

// A loaded state must be what this parameter would have under these options.
void require_fit(const Tensor& parameter, const FusedbunParamState& state, const Options& options) {
  const RowRange range = all_rows(parameter, options);
  SegmentState expected = make_segment_state(as_rows(parameter, range), range, options);
  SegmentState loaded = state.segment;
  std::vector<Tensor> tensors;
  visit_tensors(loaded, [&](const char*, Tensor& tensor) { tensors.push_back(tensor); });
  size_t index = 0;
  visit_tensors(expected, [&](const char* name, const Tensor& tensor) {
    const Tensor& have = tensors[index++];
    const bool fits = have.defined() == tensor.defined() &&
                      (!have.defined() || (have.sizes() == tensor.sizes() &&
                                           have.scalar_type() == tensor.scalar_type()));
    FUSEDBUN_REQUIRE(fits, DataError,
                     std::string("the saved state '") + name +
                         "' does not fit a parameter of shape " + c10::str(parameter.sizes()) +
                         " and type " + c10::toString(parameter.scalar_type()));
  });
}

}  // namespace

void FusedbunParamState::serialize(OutputArchive& archive) const {
  archive.write("step", torch::IValue(step));
  visit_tensors(segment, [&](const char* name, const Tensor& tensor) {
    if (tensor.defined()) archive.write(name, tensor, /*is_buffer=*/true);
  });
}

void FusedbunParamState::serialize(InputArchive& archive) {
  torch::IValue count;
  archive.read("step", count);
  step = count.toInt();
  visit_tensors(segment, [&](const char* name, Tensor& tensor) {
    Tensor loaded;
    if (archive.try_read(name, loaded, /*is_buffer=*/true)) tensor = loaded;
  });
}

// --- the optimizer ------------------------------------------------------------------------------

Fusedbun::Fusedbun(const std::vector<OptimizerParamGroup>& groups, FusedbunOptions defaults)
    : Optimizer(std::vector<OptimizerParamGroup>(), std::make_unique<FusedbunOptions>(defaults)) {
  validate(defaults.values());
  for (const auto& group : groups) add_param_group(group);
}

Fusedbun::Fusedbun(std::vector<Tensor> parameters, FusedbunOptions defaults)
    : Fusedbun({OptimizerParamGroup(std::move(parameters))}, std::move(defaults)) {}

Fusedbun::~Fusedbun() = default;
Fusedbun::Fusedbun(Fusedbun&&) noexcept = default;

void Fusedbun::add_param_group(const OptimizerParamGroup& group) {
  std::unordered_set<void*> elsewhere;
  for (const auto& known : param_groups()) {
    for (const Tensor& parameter : known.params())
      elsewhere.insert(parameter.unsafeGetTensorImpl());
  }
  const OptimizerParamGroup added =
      checked(group, static_cast<const FusedbunOptions&>(*defaults_), elsewhere);
  Optimizer::add_param_group(added);
  // LibTorch gives a group of an optimizer that is not its own the defaults, whatever options it came with.
  param_groups().back().set_options(added.options().clone());
}

Tensor Fusedbun::step(LossClosure closure) {
  Tensor loss;
  if (closure != nullptr) {
    at::AutoGradMode with_gradients(true);
    loss = closure();
  }
  at::NoGradGuard no_grad;
  require_steppable();
  if (!step_on_device()) {
    settle();
    step_one_by_one();
  }
  hessian_diagonals_.clear();
  ++job_step_;
  return loss;
}

void Fusedbun::step_one_by_one() {
  if (!gradients_allow_step()) {
    ++skipped_steps_;
    return;
  }
  int64_t index = -1;
  for (const auto& group : param_groups()) {
    const Options& options = options_of(group);
    for (const Tensor& parameter : group.params()) {
      ++index;
      if (!parameter.grad().defined() || parameter.numel() == 0) continue;
      void* identity = parameter.unsafeGetTensorImpl();
      auto& state = state_[identity];
      if (state == nullptr) state = std::make_unique<FusedbunParamState>();
      const auto diagonal = hessian_diagonals_.find(identity);
      step_parameter(parameter, index,
                     diagonal == hessian_diagonals_.end() ? Tensor() : diagonal->second,
                     static_cast<FusedbunParamState&>(*state), options);
    }
  }
}

bool Fusedbun::step_on_device() {
  std::optional<at::Device> device;
  for (const auto& group : param_groups()) {
    const Options& options = options_of(group);
    for (const Tensor& parameter : group.params()) {
      if (!parameter.grad().defined() || parameter.numel() == 0) continue;
      if (!device) device = parameter.device();
      const at::ScalarType arithmetic = arithmetic_type(parameter.scalar_type());
      const bool fits = *device == parameter.device() &&
                        has_device_step(options, parameter.scalar_type()) &&
                        step_path(options, parameter.device(), arithmetic) == StepPath::device;
      if (!fits) return false;
    }
  }
  if (!device) return false;
  if (device_ != nullptr && device_->device() != *device) leave_device();
  if (device_ == nullptr) {
    device_ = std::make_unique<FusedbunDevice>(device_api_of(*device), *device);
  }
  std::vector<FusedbunDevice::Stepped> stepped;
  int index = -1;
  for (const auto& group : param_groups()) {
    for (const Tensor& parameter : group.params()) {
      ++index;
      if (!parameter.grad().defined() || parameter.numel() == 0) continue;
      auto& state = state_[parameter.unsafeGetTensorImpl()];
      if (state == nullptr) state = std::make_unique<FusedbunParamState>();
      stepped.push_back(stepped_of(parameter, index, static_cast<FusedbunParamState&>(*state),
                                   options_of(group)));
    }
  }
  device_->step(stepped);
  for (const FusedbunDevice::Stepped& each : stepped) {
    if (!each.parameter.is_inference()) each.parameter.unsafeGetTensorImpl()->bump_version();
    if (!each.options->scale_by_parameter_rms) continue;
    each.state->squares.of = TensorSnapshot(each.parameter, TensorSnapshot::Sampling::few);
  }
  return true;
}

void Fusedbun::settle() const {
  if (device_ == nullptr) return;
  device_->settle();
  for (const auto& [parameter, state] : state_)
    static_cast<FusedbunParamState&>(*state).take_back_skips();
}

void Fusedbun::leave_device() {
  skipped_steps_ = skipped_steps();
  device_.reset();
}

int64_t Fusedbun::skipped_steps() const {
  settle();
  return skipped_steps_ + (device_ != nullptr ? device_->skipped_steps() : 0);
}

void Fusedbun::set_step_counts(int64_t job_step, int64_t skipped_steps) {
  settle();
  job_step_ = job_step;
  skipped_steps_ = skipped_steps - (device_ != nullptr ? device_->skipped_steps() : 0);
}

void Fusedbun::require_steppable() const {
  std::unordered_set<void*> seen;
  for (size_t g = 0; g < param_groups().size(); ++g) {
    const auto& group = param_groups()[g];
    validate(options_of(group));
    for (size_t p = 0; p < group.params().size(); ++p) {
      const Tensor& parameter = group.params()[p];
      void* identity = parameter.unsafeGetTensorImpl();
      // add_param_group has asked, unless it was called through a reference to torch::optim::Optimizer.
      FUSEDBUN_REQUIRE(
          seen.insert(identity).second, ConfigError,
          name_of(p, g, parameter) + " is listed a second time: put it in one group, once");
      if (!parameter.grad().defined()) continue;
      require_fitting_gradient(parameter, name_of(p, g, parameter));
      arithmetic_type(parameter.scalar_type());  // refuses integers
      require_low_precision(parameter.scalar_type(), options_of(group), name_of(p, g, parameter));
      const auto state = state_.find(identity);
      if (state == state_.end()) continue;
      require_same_shape(parameter, static_cast<const FusedbunParamState&>(*state->second),
                         options_of(group), name_of(p, g, parameter));
    }
  }
}

bool Fusedbun::gradients_allow_step() const {
  for (const auto& group : param_groups()) {
    if (options_of(group).nonfinite == Nonfinite::propagate) continue;
    for (const Tensor& parameter : group.params()) {
      const Tensor& gradient = parameter.grad();
      if (gradient.defined() &&
          !squares_finite(gradient, arithmetic_type(parameter.scalar_type()))) {
        return false;
      }
    }
  }
  return true;
}

void Fusedbun::set_hessian_diagonal(const Tensor& parameter, Tensor diagonal) {
  FUSEDBUN_REQUIRE(
      diagonal.defined() && diagonal.sizes() == parameter.sizes(), ConfigError,
      "the Hessian's diagonal must have the parameter's shape " + c10::str(parameter.sizes()));
  hessian_diagonals_[parameter.unsafeGetTensorImpl()] = std::move(diagonal);
}

void Fusedbun::save(OutputArchive& archive) const {
  settle();
  torch::optim::serialize<FusedbunParamState, FusedbunOptions>(archive, *this);
  archive.write("skipped_steps", torch::IValue(skipped_steps()));
  archive.write("job_step", torch::IValue(job_step_));
}

void Fusedbun::load(InputArchive& archive) {
  leave_device();   // it knows the old state
  state().clear();  // parameters that had no state when it was saved have none afterwards
  torch::optim::serialize<FusedbunParamState, FusedbunOptions>(archive, *this);
  torch::IValue skipped;
  archive.read("skipped_steps", skipped);
  skipped_steps_ = skipped.toInt();
  torch::IValue steps;
  job_step_ = archive.try_read("job_step", steps) ? steps.toInt() : 0;  // not in older archives
  for (const auto& group : param_groups()) {
    for (const Tensor& parameter : group.params()) {
      const auto entry = state().find(parameter.unsafeGetTensorImpl());
      if (entry == state().end()) continue;
      require_fit(parameter, static_cast<const FusedbunParamState&>(*entry->second),
                  options_of(group));
    }
  }
}

}  // namespace fusedbun
