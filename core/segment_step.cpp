#include "fusedbun/core/segment_step.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <atomic>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/core/gpu/device_api.h"
#include "fusedbun/core/gradient_kernels.h"
#include "fusedbun/core/low_precision.h"
#include "fusedbun/core/step_cpu.h"
#include "fusedbun/core/step_reference.h"
#include "fusedbun/core/stochastic_rounding.h"

namespace fusedbun {
namespace {

std::atomic<bool> reference_forced{false};

SecondMoment make_second_moment(const RowRange& range, const Options& options,
                                const at::TensorOptions& type) {
  SecondMoment moment;
  if (range.is_vector || options.accumulator == Accumulator::full) {
    moment.full = at::zeros({range.rows(), range.columns}, type);
    return moment;
  }
  if (options.accumulator != Accumulator::mean_col) moment.row = at::zeros({range.rows()}, type);
  moment.col = at::zeros({range.matrices() * range.columns}, type);
  return moment;
}

// What a low-precision parameter has beyond its own bits, as its type and the options ask for; what is there already stays.
void keep_beyond(const torch::Tensor& rows, const Options& options, SegmentState& state) {
  const at::ScalarType arithmetic = arithmetic_type(rows.scalar_type());
  const bool is_low = rows.scalar_type() != arithmetic;
  if (!is_low || options.low_precision != LowPrecision::master) {
    state.master.reset();
  } else if (!state.master.defined()) {
    state.master = rows.detach().to(arithmetic).contiguous();
  }
  if (!is_low || options.low_precision != LowPrecision::remainder) {
    state.remainder.reset();
  } else if (!state.remainder.defined()) {
    state.remainder = at::zeros(rows.sizes(), rows.options().dtype(at::kShort));
  }
}

bool keeps_beyond(at::ScalarType parameter, const Options& options, const SegmentState& state) {
  const bool is_low = parameter != arithmetic_type(parameter);
  return state.master.defined() == (is_low && options.low_precision == LowPrecision::master) &&
         state.remainder.defined() == (is_low && options.low_precision == LowPrecision::remainder);
}

int64_t bytes_of(const torch::Tensor& tensor) {
  return tensor.defined() ? tensor.numel() * tensor.element_size() : 0;
}
int64_t bytes_of(const SecondMoment& moment) {
  return bytes_of(moment.full) + bytes_of(moment.row) + bytes_of(moment.col);
}

// A bfloat16 or float16 parameter is stepped in float32, and is the rounding of that; where it is not its master's, the program wrote it,
// and the master follows. For bfloat16 the fused passes do all of this while they hold the values.
class LowPrecisionStep {
 public:
  LowPrecisionStep(SegmentStep& step, SegmentState& state, StepPath path)
      : step_(step),
        state_(state),
        parameter_(step.parameter),
        is_low_(arithmetic_type(parameter_.scalar_type()) != parameter_.scalar_type()),
        in_the_pass_(path == StepPath::fused_cpu && parameter_.scalar_type() == at::kBFloat16) {
    if (state.master.defined()) {
      if (!in_the_pass_) follow_parameter(parameter_, state);
      step_.parameter = state.master;
    } else if (is_low_ && !in_the_pass_) {
      step_.parameter = stepped_values(parameter_, state);
    }
  }
  /// The bfloat16 parameter for a fused pass that rounds into it; null: there is none.
  uint16_t* rounded_in_the_pass() const {
    return in_the_pass_ ? static_cast<uint16_t*>(parameter_.data_ptr()) : nullptr;
  }
  void round_into_parameter() {
    const torch::Tensor values = std::exchange(step_.parameter, parameter_);
    if (!is_low_ || in_the_pass_) return;
    if (state_.master.defined()) {
      parameter_.copy_(values);
    } else if (state_.remainder.defined()) {
      put_with_remainder(values, parameter_, state_.remainder);
    } else {
      const int64_t first = step_.range.row_begin * step_.range.columns;
      round_stochastically(values, seed_of(step_), first, parameter_);
      if (step_.parameter_sum_of_squares != nullptr)
        *step_.parameter_sum_of_squares = parameter_.to(at::kDouble).square().sum().item<double>();
    }
  }
  static uint32_t seed_of(const SegmentStep& step) {
    return rounding_seed(step.scalars.step_seed, parameter_seed(step.parameter_index));
  }

 private:
  SegmentStep& step_;
  SegmentState& state_;
  torch::Tensor parameter_;
  bool is_low_;
  bool in_the_pass_;
};

template <class T>
T* data_or_null(const torch::Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<T>() : nullptr;
}

template <class T>
fused::MomentMemory<T> memory_of(const SecondMoment& moment, const torch::Tensor& partials,
                                 const Options& options) {
  fused::MomentMemory<T> memory;
  memory.full = data_or_null<T>(moment.full);
  memory.row = data_or_null<T>(moment.row);
  memory.col = data_or_null<T>(moment.col);
  if (columns_are_maxima(options)) {
    memory.column_maxima = data_or_null<T>(partials);
  } else {
    memory.column_sums = data_or_null<double>(partials);
  }
  return memory;
}

// What a fused pass is given; `gradients` are the summands' pointers, which must outlive it.
template <class T>
fused::PassArguments<T> arguments_of(bool begin, const SegmentStep& step, const SegmentState& state,
                                     const Options& options, uint16_t* low_precision_parameter,
                                     const std::vector<const void*>& gradients) {
  const bool has_momentum = state.momentum_buffer.defined();
  auto a = begin ? fused::begin_arguments<T>(step.range, step.scalars, options, has_momentum)
                 : fused::finish_arguments<T>(step.range, step.scalars, options, has_momentum);
  if (step.parameter.element_size() == sizeof(T)) a.parameter = step.parameter.data_ptr<T>();
  a.low_precision_parameter = low_precision_parameter;
  a.remainder = reinterpret_cast<uint16_t*>(data_or_null<int16_t>(state.remainder));
  a.rounding_seed = LowPrecisionStep::seed_of(step);
  a.gradients = gradients.data();
  a.gradient_count = static_cast<int>(gradients.size());
  a.gradient = gradients.front();
  a.gradient_type = element_type(step.gradients.front().scalar_type());
  if (has_momentum) a.momentum = state.momentum_buffer.data_ptr();
  a.moment = memory_of<T>(state.exp_avg_sq, column_entries_of(step.column_partials, 0, step.range),
                          options);
  if (options.prepare_hessian) {
    a.hessian = memory_of<T>(state.exp_hessian,
                             column_entries_of(step.column_partials, 1, step.range), options);
  }
  return a;
}

std::vector<const void*> pointers_of(const std::vector<torch::Tensor>& tensors) {
  std::vector<const void*> pointers;
  for (const torch::Tensor& tensor : tensors) pointers.push_back(tensor.const_data_ptr());
  return pointers;
}

void fused_cpu(bool begin, const SegmentStep& step, const SegmentState& state,
               const Options& options, uint16_t* low_precision_parameter) {
  const std::vector<const void*> gradients = pointers_of(step.gradients);
  const CpuExecution execution{.parallel_for = on_torch_threads};
  const auto run = [&]<class T>(T) {
    const auto a = arguments_of<T>(begin, step, state, options, low_precision_parameter, gradients);
    begin ? cpu_begin(a, step.parameter_sum_of_squares, execution)
          : cpu_finish(a, step.parameter_sum_of_squares, execution);
  };
  step.parameter.scalar_type() == at::kDouble ? run(double{}) : run(float{});
}

// A state that was made for other options has other tensors; stepping it would forget or invent something.
void require_fit(const SegmentStep& step, const SegmentState& state, const Options& options) {
  const bool keeps_full = step.range.is_vector || options.accumulator == Accumulator::full;
  const bool fits = state.exp_avg_sq.full.defined() == keeps_full &&
                    state.exp_avg_sq.col.defined() != keeps_full &&
                    state.momentum_buffer.defined() == (options.momentum_beta > 0) &&
                    (state.exp_hessian.full.defined() || state.exp_hessian.col.defined()) ==
                        options.prepare_hessian &&
                    keeps_beyond(step.parameter.scalar_type(), options, state);
  FUSEDBUN_REQUIRE(fits, ConfigError,
                   "the optimizer's structure (" + describe(options) +
                       ") is not the one that its state was made for; structural options and "
                       "momentum_beta = 0 are fixed when the optimizer is made");
}

// Paths that take one gradient, of the arithmetic's type, get the sum.
void add_up_gradients(SegmentStep& step) {
  const at::ScalarType arithmetic = arithmetic_type(step.parameter.scalar_type());
  std::vector<torch::Tensor>& gradients = step.gradients;
  const bool is_alone = gradients.size() == 1;
  torch::Tensor sum = gradients.front().to(arithmetic, /*non_blocking=*/false, /*copy=*/!is_alone);
  for (size_t i = 1; i < gradients.size(); ++i) sum.add_(gradients[i]);
  gradients = {sum};
}

StepPath path_of(const SegmentStep& step, const Options& options) {
  return step_path(options, step.parameter.device(), arithmetic_type(step.parameter.scalar_type()));
}

// --- one matrix ---------------------------------------------------------------------------------

void begin_matrix(SegmentStep& step, SegmentState& state, const Options& options) {
  const StepPath path = path_of(step, options);
  LowPrecisionStep low_precision(step, state, path);
  switch (path) {
    case StepPath::fused_cpu:
      fused_cpu(/*begin=*/true, step, state, options, low_precision.rounded_in_the_pass());
      break;
    case StepPath::
        device:  // a DeviceStep is the fast way; one segment alone takes LibTorch's operations
    case StepPath::reference:
      reference_begin(step, state, options);
      break;
  }
  low_precision.round_into_parameter();
}

void absorb_matrix(const torch::Tensor& column_totals, const RowRange& range,
                   const StepScalars& scalars, SegmentState& state, const Options& options) {
  const torch::Tensor& col = state.exp_avg_sq.col;
  const StepPath path = step_path(options, col.device(), col.scalar_type());
  if (path != StepPath::fused_cpu || columns_are_maxima(options)) {
    return reference_absorb(column_totals, range, scalars, state, options);
  }
  int64_t which = 0;
  for (const SecondMoment* moment : {&state.exp_avg_sq, &state.exp_hessian}) {
    if (!moment->col.defined()) continue;
    const torch::Tensor totals = column_entries_of(column_totals, which++, range);
    const double* sums = totals.data_ptr<double>();
    if (moment->col.scalar_type() == at::kDouble) {
      cpu_absorb_sums(sums, range, scalars.beta, moment->col.data_ptr<double>());
    } else {
      cpu_absorb_sums(sums, range, scalars.beta, moment->col.data_ptr<float>());
    }
  }
}

void finish_matrix(SegmentStep& step, SegmentState& state, const Options& options) {
  const StepPath path = path_of(step, options);
  LowPrecisionStep low_precision(step, state, path);
  switch (path) {
    case StepPath::fused_cpu:
      fused_cpu(/*begin=*/false, step, state, options, low_precision.rounded_in_the_pass());
      break;
    case StepPath::device:
    case StepPath::reference:
      reference_finish(step, state, options);
      break;
  }
  low_precision.round_into_parameter();
}

// --- a stack of matrices: views of one after the other ------------------------------------------

// The rows of matrix i of a segment that holds whole matrices; all of them where it is no stack.
RowRange rows_of_matrix(const RowRange& range, int64_t i) {
  if (range.matrix_rows == 0) return range;
  RowRange rows = range;
  rows.row_begin = range.row_begin + i * range.matrix_rows;
  rows.row_end = rows.row_begin + range.matrix_rows;
  return rows;
}

// The same rows as one matrix, which knows of no other.
RowRange matrix_of(const RowRange& range, int64_t i) {
  RowRange matrix = rows_of_matrix(range, i);
  matrix.rows_total = range.rows_per_matrix();
  matrix.matrix_rows = 0;
  return matrix;
}

torch::Tensor rows_of(const torch::Tensor& tensor, const RowRange& range, const RowRange& part) {
  if (!tensor.defined()) return tensor;
  return tensor.narrow(0, part.row_begin - range.row_begin, part.rows());
}

SegmentStep step_of_matrix(const SegmentStep& step, int64_t i) {
  const RowRange rows = rows_of_matrix(step.range, i);
  SegmentStep matrix = step;
  matrix.parameter = rows_of(step.parameter, step.range, rows);
  for (torch::Tensor& gradient : matrix.gradients) gradient = rows_of(gradient, step.range, rows);
  matrix.hessian_diagonal = rows_of(step.hessian_diagonal, step.range, rows);
  matrix.kept_update_input = rows_of(step.kept_update_input, step.range, rows);
  matrix.range = matrix_of(step.range, i);
  matrix.column_partials = column_entries_of_rows(step.column_partials, step.range, rows);
  return matrix;
}

using PartOfAStep = void (*)(SegmentStep&, SegmentState&, const Options&);

void for_each_matrix(SegmentStep& step, SegmentState& state, const Options& options,
                     PartOfAStep part) {
  if (step.range.matrix_rows == 0) return part(step, state, options);
  std::vector<torch::Tensor> kept;
  for (int64_t i = 0; i < step.range.matrices(); ++i) {
    SegmentStep matrix = step_of_matrix(step, i);
    double squares = 0;
    if (step.parameter_sum_of_squares != nullptr) matrix.parameter_sum_of_squares = &squares;
    SegmentState its_state = state_of_rows(state, step.range, rows_of_matrix(step.range, i));
    part(matrix, its_state, options);
    if (step.parameter_sum_of_squares != nullptr) *step.parameter_sum_of_squares += squares;
    if (matrix.kept_update_input.defined()) kept.push_back(matrix.kept_update_input);
  }
  if (!kept.empty()) step.kept_update_input = at::cat(kept);
}

}  // namespace

ElementType element_type(torch::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return ElementType::f32;
    case at::kDouble:
      return ElementType::f64;
    case at::kBFloat16:
      return ElementType::bf16;
    case at::kHalf:
      return ElementType::f16;
    default:
      break;
  }
  FUSEDBUN_ASSERT(false, std::string("no ElementType is ") + c10::toString(type));
}

torch::ScalarType scalar_type_of(ElementType type) {
  switch (type) {
    case ElementType::f32:
      return at::kFloat;
    case ElementType::f64:
      return at::kDouble;
    case ElementType::bf16:
      return at::kBFloat16;
    case ElementType::f16:
      return at::kHalf;
  }
  FUSEDBUN_ASSERT(false, "every ElementType has a ScalarType");
}

void on_torch_threads(int64_t count, const std::function<void(int64_t)>& task) {
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) task(i);
  });
}

torch::Tensor column_entries_of(const torch::Tensor& entries, int64_t which,
                                const RowRange& range) {
  return entries.defined() ? entries.narrow(0, which * range.columns, range.columns) : entries;
}

torch::ScalarType arithmetic_type(torch::ScalarType parameter) {
  FUSEDBUN_REQUIRE(at::isFloatingType(parameter), ConfigError,
                   std::string("a parameter of type ") + c10::toString(parameter) +
                       " cannot be optimized: use a floating point type");
  return parameter == at::kDouble ? at::kDouble : at::kFloat;
}

void require_low_precision(torch::ScalarType parameter, const Options& options,
                           const std::string& name) {
  FUSEDBUN_REQUIRE(options.low_precision == LowPrecision::master || parameter != at::kHalf,
                   ConfigError,
                   "low_precision = " + std::string(name_of(options.low_precision)) +
                       " is for bfloat16 parameters, and " + name +
                       " is float16: give it low_precision = master, or bfloat16");
}

SegmentState make_segment_state(const torch::Tensor& parameter_rows, const RowRange& range,
                                const Options& options) {
  const at::ScalarType arithmetic = arithmetic_type(parameter_rows.scalar_type());
  const auto type = at::TensorOptions().dtype(arithmetic).device(parameter_rows.device());
  SegmentState state;
  if (options.momentum_beta > 0) {
    const bool bf16 = options.momentum_dtype == MomentumDtype::bf16;
    state.momentum_buffer =
        at::zeros({range.rows(), range.columns}, bf16 ? type.dtype(at::kBFloat16) : type);
  }
  state.exp_avg_sq = make_second_moment(range, options, type);
  if (options.prepare_hessian) state.exp_hessian = make_second_moment(range, options, type);
  keep_beyond(parameter_rows.reshape({range.rows(), range.columns}), options, state);
  return state;
}

void fit_segment_state(const torch::Tensor& parameter_rows, const Options& options,
                       SegmentState& state) {
  const at::ScalarType arithmetic = arithmetic_type(parameter_rows.scalar_type());
  const auto fit = [&](torch::Tensor& tensor, at::ScalarType type) {
    if (tensor.defined()) tensor = tensor.to(parameter_rows.device(), type);
  };
  fit(state.remainder, at::kShort);
  visit_tensors(state, [&](const char*, torch::Tensor& tensor) {
    if (tensor.is_same(state.remainder)) return;
    const bool is_rounded_momentum = tensor.defined() && tensor.is_same(state.momentum_buffer) &&
                                     tensor.scalar_type() == at::kBFloat16;
    fit(tensor, is_rounded_momentum ? at::kBFloat16 : arithmetic);
  });
  keep_beyond(parameter_rows, options, state);
}

torch::Tensor stepped_values(const torch::Tensor& parameter_rows, const SegmentState& state) {
  if (state.master.defined()) return state.master;
  if (state.remainder.defined()) return with_remainder(parameter_rows, state.remainder);
  return parameter_rows.detach().to(arithmetic_type(parameter_rows.scalar_type()));
}

void follow_parameter(const torch::Tensor& parameter_rows, SegmentState& state) {
  if (!state.master.defined()) return;
  at::NoGradGuard no_grad;
  torch::Tensor& master = state.master;
  const torch::Tensor written = parameter_rows.to(at::kFloat);
  torch::Tensor is_rounding;
  if (parameter_rows.scalar_type() == at::kBFloat16) {
    // The rule of the fused passes, ties included: within half a unit of the parameter's last place, as the bits order.
    const torch::Tensor apart = master.view(at::kInt).sub(written.view(at::kInt));
    is_rounding = apart.ge(-0x8000).logical_and_(apart.le(0x8000));
  } else {
    is_rounding = master.to(parameter_rows.scalar_type()) == parameter_rows;
  }
  master.copy_(at::where(is_rounding, master, written));
}

torch::Tensor column_entries_of_rows(const torch::Tensor& entries, const RowRange& range,
                                     const RowRange& part) {
  if (!entries.defined() || range.matrix_rows == 0) return entries;
  const int64_t of_matrix = entries.numel() / range.matrices();
  return entries.narrow(0, (part.row_begin - range.row_begin) / range.matrix_rows * of_matrix,
                        part.matrices() * of_matrix);
}

SegmentState state_of_rows(const SegmentState& state, const RowRange& range, const RowRange& part) {
  if (part.rows() == range.rows()) return state;
  const auto rows = [&](const torch::Tensor& tensor) { return rows_of(tensor, range, part); };
  const auto moment = [&](const SecondMoment& all) {
    return SecondMoment{rows(all.full), rows(all.row),
                        column_entries_of_rows(all.col, range, part)};
  };
  return {.momentum_buffer = rows(state.momentum_buffer),
          .exp_avg_sq = moment(state.exp_avg_sq),
          .exp_hessian = moment(state.exp_hessian),
          .master = rows(state.master),
          .remainder = rows(state.remainder)};
}

int64_t state_bytes(const SegmentState& state) {
  return bytes_of(state.momentum_buffer) + bytes_of(state.exp_avg_sq) +
         bytes_of(state.exp_hessian) + bytes_of(state.master) + bytes_of(state.remainder);
}

int64_t column_entries(const RowRange& range, const Options& options) {
  if (range.is_vector || options.accumulator == Accumulator::full) return 0;
  return range.matrices() * range.columns * (options.prepare_hessian ? 2 : 1);
}

bool updates_in_begin(const RowRange& range, const Options& options) {
  return options.denominator == Denominator::local || column_entries(range, options) == 0;
}

double sum_of_squares(const torch::Tensor& rows, const RowRange& range, const Options& options) {
  if (!rows.device().is_cpu()) return rows.to(at::kDouble).square().sum().item<double>();
  const torch::Tensor lying = rows.to(arithmetic_type(rows.scalar_type())).contiguous();
  const auto sum_of = [&]<class T>(T) {
    double sum = 0;
    for (int64_t i = 0; i < range.matrices(); ++i) {
      const RowRange matrix = matrix_of(range, i);
      const fused::PassShape shape =
          fused::begin_arguments<T>(matrix, step_scalars(options, 1, 1), options, false);
      const T* const values =
          lying.const_data_ptr<T>() + (matrix.row_begin - range.row_begin) * range.columns;
      sum += sum_of_squares(values, shape.elements, shape.columns);
    }
    return sum;
  };
  return lying.scalar_type() == at::kDouble ? sum_of(double{}) : sum_of(float{});
}

bool columns_are_maxima(const Options& options) {
  return options.accumulator == Accumulator::sm3;
}

StepPath step_path(const Options& options, torch::Device device, torch::ScalarType arithmetic) {
  const bool has_type = arithmetic == at::kFloat || arithmetic == at::kDouble;
  if (reference_forced || !has_type) return StepPath::reference;
  if (has_device_api(device)) {
    return has_fused_cuda_step(options) ? StepPath::device : StepPath::reference;
  }
  return device.is_cpu() && has_fused_step(options) ? StepPath::fused_cpu : StepPath::reference;
}

void begin_step(SegmentStep& step, SegmentState& state, const Options& options) {
  require_fit(step, state, options);
  if (step.parameter_sum_of_squares != nullptr) *step.parameter_sum_of_squares = 0;
  if (step.range.elements() == 0) return;
  at::NoGradGuard no_grad;
  if (path_of(step, options) != StepPath::fused_cpu) add_up_gradients(step);
  for_each_matrix(step, state, options, begin_matrix);
}

void absorb_columns(const torch::Tensor& column_totals, const RowRange& range,
                    const StepScalars& scalars, SegmentState& state, const Options& options) {
  if (column_entries(range, options) == 0) return;
  at::NoGradGuard no_grad;
  for (int64_t i = 0; i < range.matrices(); ++i) {
    const RowRange rows = rows_of_matrix(range, i);
    SegmentState matrix = state_of_rows(state, range, rows);
    absorb_matrix(column_entries_of_rows(column_totals, range, rows), matrix_of(range, i), scalars,
                  matrix, options);
  }
}

void finish_step(SegmentStep& step, SegmentState& state, const Options& options) {
  if (updates_in_begin(step.range, options) || step.range.elements() == 0) return;
  at::NoGradGuard no_grad;
  if (step.parameter_sum_of_squares != nullptr) *step.parameter_sum_of_squares = 0;
  for_each_matrix(step, state, options, finish_matrix);
  step.kept_update_input.reset();
}

ForceReference::ForceReference() {
  FUSEDBUN_ASSERT(!reference_forced.exchange(true), "ForceReference is not nested");
}
ForceReference::~ForceReference() {
  reference_forced = false;
}

}  // namespace fusedbun
