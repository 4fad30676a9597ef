#pragma once
// Fusedbun as a LibTorch user expects an optimizer: options with a builder, param groups, closures, zero_grad, state
// that saves and loads with torch::save, learning rate schedulers of torch::optim. One process, no communication; for
// sharded training see dist/step/sharded_fusedbun.h, which has the same shape.
//
//   fusedbun::Fusedbun optimizer(model->parameters(), fusedbun::FusedbunOptions::recommended(3e-3).Lambda(0.1));
//
// The plain constructor's defaults are SGD with momentum (use_rms is false); use a preset.
//
// Thread safety: as torch::optim: one thread at a time.
#include <torch/optim/optimizer.h>
#include <torch/optim/serialize.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fusedbun/core/options.h"
#include "fusedbun/core/segment_step.h"
#include "fusedbun/core/tensor_snapshot.h"

namespace fusedbun {

/// `Options` as LibTorch's param groups carry them. Builder calls chain; each has a reader of the same name.
class FusedbunOptions : public torch::optim::OptimizerCloneableOptions<FusedbunOptions> {
 public:
  explicit FusedbunOptions(double lr) { values_.lr = lr; }
  explicit FusedbunOptions(const Options& values) : values_(values) {}
  static FusedbunOptions of_preset(std::string_view name, double lr) {
    return FusedbunOptions(preset(name, lr));
  }
  static FusedbunOptions recommended(double lr) { return of_preset("recommended", lr); }
  static FusedbunOptions sm3(double lr) { return of_preset("sm3", lr); }
  static FusedbunOptions compact(double lr) { return of_preset("compact", lr); }
  static FusedbunOptions fusedbun(double lr) { return of_preset("fusedbun", lr); }
  static FusedbunOptions fusion(double lr) { return of_preset("fusion", lr); }

  const Options& values() const { return values_; }
  Options& values() { return values_; }

#define FUSEDBUN_OPTION(type, name)   \
  FusedbunOptions& name(type value) { \
    values_.name = value;             \
    return *this;                     \
  }                                   \
  type name() const {                 \
    return values_.name;              \
  }
  FUSEDBUN_HYPERPARAMETERS(FUSEDBUN_OPTION)
  FUSEDBUN_OPTION(Accumulator, accumulator)
  FUSEDBUN_OPTION(Denominator, denominator)
  FUSEDBUN_OPTION(Decay, decay)
  FUSEDBUN_OPTION(Momentum, momentum)
  FUSEDBUN_OPTION(MomentumAt, momentum_at)
  FUSEDBUN_OPTION(Mask, mask)
  FUSEDBUN_OPTION(MaskScope, mask_scope)
  FUSEDBUN_OPTION(HessianSource, hessian_source)
  FUSEDBUN_OPTION(MomentumDtype, momentum_dtype)
  FUSEDBUN_OPTION(Nonfinite, nonfinite)
  FUSEDBUN_OPTION(MatrixView, matrix_view)
  FUSEDBUN_OPTION(LowPrecision, low_precision)
  FUSEDBUN_OPTION(bool, prepare_hessian)
  FUSEDBUN_OPTION(bool, scale_by_parameter_rms)
  FUSEDBUN_OPTION(bool, bias_correction)
  FUSEDBUN_OPTION(double, beta_cap)
  FUSEDBUN_OPTION(bool, centralize_single_column)
#undef FUSEDBUN_OPTION

  double get_lr() const override {
    return values_.lr;
  }
  void set_lr(const double lr) override {
    values_.lr = lr;
  }
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;

 private:
  Options values_;
};

/// The sum of squares of a parameter's values as the last step left them, and what the parameter was then: a program that
/// has written it since is noticed, and the values are added up anew. A write that TensorSnapshot does not see (its header
/// says which) makes the next step take the old sum.
struct CachedSumOfSquares {
  double sum = 0;
  TensorSnapshot of = {};  ///< of an undefined tensor: not known
  /// On a GPU, in place of `sum`: float64 [2], the sum, and that of the step under way.
  torch::Tensor on_device = {};
};

/// What is kept about one parameter: the state of its one segment (all rows) and its own step count.
class FusedbunParamState : public torch::optim::OptimizerCloneableParamState<FusedbunParamState> {
 public:
  int64_t step = 0;  ///< t: the steps that changed this parameter
  /// On a GPU: of the steps that `step` counts, those that the device has told since that it skipped.
  std::shared_ptr<int64_t> told_skips = std::make_shared<int64_t>(0);
  void take_back_skips() { step -= std::exchange(*told_skips, 0); }
  SegmentState segment;
  CachedSumOfSquares squares;  ///< scale_by_parameter_rms alone; not saved
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
};

class FusedbunDevice;

/// A parameter is what the user's tensor is at the step: after torch::load, copy_, set_data, `model->to(...)` or a write
/// through `.data()` the step goes on from the new values (float32 masters of bfloat16 and float16 parameters included), and
/// after a change of type or device the state moves along. A step counts as an in-place write: autograd refuses a backward
/// pass through values that a step has replaced.
///
/// Parameters on one GPU are stepped by a handful of kernels, whatever their number, and step() does not wait for them. The GPU decides by
/// itself whether a NaN or inf skips a step, so FusedbunParamState::step may count up to three such steps too many until skipped_steps(),
/// save() or a later step has heard of them.
class Fusedbun : public torch::optim::Optimizer {
 public:
  ~Fusedbun() override;
  Fusedbun(Fusedbun&&) noexcept;
  /// Throws ConfigError for an option out of range, naming field, value and range.
  explicit Fusedbun(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                    FusedbunOptions defaults);
  explicit Fusedbun(std::vector<torch::Tensor> parameters, FusedbunOptions defaults);

  void add_param_group(const torch::optim::OptimizerParamGroup& group);

  /// Calls `closure` first, with gradients enabled, and returns its loss (undefined without one). Parameters without a
  /// gradient are untouched. With nonfinite = skip a NaN or inf gradient anywhere leaves everything as it was. Throws
  /// ConfigError, before anything has changed, for options out of range or of another optimizer, sparse gradients, a
  /// gradient of another shape or device than its parameter, a parameter in two groups, and a parameter whose shape is not
  /// the one that its state was made for.
  torch::Tensor step(LossClosure closure = nullptr) override;

  /// The diagonal for HessianSource::external, the parameter's shape; used by the next step and then dropped.
  void set_hessian_diagonal(const torch::Tensor& parameter, torch::Tensor diagonal);

  /// How many steps were skipped for non-finite gradients.
  /// On a GPU it waits for the steps that are under way.
  int64_t skipped_steps() const;
  /// Calls of step(), skipped ones too.
  int64_t job_step() const { return job_step_; }
  /// As a saved state has them.
  void set_step_counts(int64_t job_step, int64_t skipped_steps);

  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;

 private:
  /// Throws ConfigError for what step() refuses.
  void require_steppable() const;
  /// False if a group with nonfinite = skip has a NaN or inf gradient.
  bool gradients_allow_step() const;
  /// Where all parameters that have a gradient are on one GPU, with options that its kernels take: steps them there. Else false.
  bool step_on_device();
  void step_one_by_one();
  /// Waits for the steps that a GPU has under way; t of the parameters is right then.
  void settle() const;
  void leave_device();

  int64_t job_step_ = 0;
  int64_t skipped_steps_ = 0;  ///< except for those that device_ counts
  std::unique_ptr<FusedbunDevice> device_;
  ska::flat_hash_map<void*, torch::Tensor> hessian_diagonals_;
};

}  // namespace fusedbun
