#pragma once
// The optimizer's options: what the arithmetic of one step may depend on, and nothing else.
//
// Invariants: 1. Options are plain values; copy means copy. 2. `validate` is the only judge of a value, used by the
// constructor of the optimizer and by the control plane alike. 3. Structure is fixed when an optimizer is made, because
// it decides what is stored; Hyperparameters may change between two steps (momentum_beta only within (0,1)).
//
// Thread safety: values; share them as you would an int.
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fusedbun {

/// What is kept of the second moment of an n×m matrix: row and column means, column means alone, row and column maxima
/// (SM3), or all n·m entries. 0-D and 1-D parameters always keep all.
enum class Accumulator { mean, mean_col, sm3, full };
/// Which estimate normalises the step: the element's own blend with the reconstruction of the stored statistics
/// (local: no communication before the update), or the reconstruction of the new ones (global).
enum class Denominator { local, global };
/// beta_t = beta_decay, or 1 - t^(-beta_decay) (Adafactor's).
enum class Decay { ema, power };
/// buf = b·buf + (1-b)·x, or b·buf + x.
enum class Momentum { ema, heavy_ball };
/// The buffer holds normalised updates, or gradients before mask and statistics.
enum class MomentumAt { update, gradient };
/// What happens where |g| <= eps: g := 0 (zero), g := 0 and the second moment stays (hold), or nothing (off).
enum class Mask { zero, hold, off };
enum class MaskScope { all, matrices };
/// What feeds exp_hessian when prepare_hessian: masked gradient, raw gradient, or the caller's diagonal.
enum class HessianSource { same, raw, external };
/// How the momentum buffer is stored: in the type of the arithmetic, or rounded to bfloat16.
enum class MomentumDtype { master, bf16 };
/// How a parameter of three or more dimensions is seen: as one matrix whose rows are its first dimension (leading: linear
/// and convolution weights), or as a stack of matrices of its last two (last_two: [experts, D, F], [layers, D, D]), each
/// with separate row and column statistics. Parameters of fewer dimensions are the same under both.
enum class MatrixView { leading, last_two };
/// How a bfloat16 parameter keeps what its type cannot hold between two steps: in a float32 master (4 bytes; float16 parameters too), in
/// the 16 bits that the master has beyond it (2 bytes: remainder, the master's bits), or not at all: new values are rounded up or down
/// with the probabilities that make the mean right (stochastic_rounding.h). Parameters of other types are stepped as they are.
enum class LowPrecision { master, remainder, stochastic };
/// A NaN or inf gradient anywhere: skip the whole step on all ranks, or let it through.
enum class Nonfinite { skip, propagate };

/// May change between two steps of a running job.
struct Hyperparameters {
  /// Step size; required, finite, >= 0. NaN here means "not given" and is refused by `validate`.
  double lr = std::numeric_limits<double>::quiet_NaN();
  /// Mask threshold and the floor of the denominator; finite, > 0.
  double eps = 1e-8;
  /// Decay of the second moment: in [0,1) for Decay::ema, > 0 for Decay::power.
  double beta_decay = 0.8;
  /// Decoupled weight decay; finite, >= 0.
  double Lambda = 0.01;
  /// Decay of the momentum; in [0,1). 0 means that no buffer is stored, which is fixed at construction.
  double momentum_beta = 0.9;
  /// Subtract each matrix row's mean from the gradient (Adalite's gradient centralisation).
  bool centralize = false;
  /// Divide by the root of the second moment. Off (the plain default), the step is SGD with momentum.
  bool use_rms = false;
};

/// Every field of Hyperparameters: whatever prints, saves, parses, compares or sets them walks this list.
#define FUSEDBUN_HYPERPARAMETERS(FIELD) \
  FIELD(double, lr)                     \
  FIELD(double, eps)                    \
  FIELD(double, beta_decay)             \
  FIELD(double, Lambda)                 \
  FIELD(double, momentum_beta)          \
  FIELD(bool, centralize)               \
  FIELD(bool, use_rms)

/// Fixed when the optimizer is made: decides what is stored and what is exchanged.
struct Structure {
  bool operator==(const Structure&) const = default;

  Accumulator accumulator = Accumulator::mean;
  Denominator denominator = Denominator::local;
  Decay decay = Decay::ema;
  Momentum momentum = Momentum::ema;
  MomentumAt momentum_at = MomentumAt::update;
  Mask mask = Mask::zero;
  MaskScope mask_scope = MaskScope::all;
  HessianSource hessian_source = HessianSource::same;
  MomentumDtype momentum_dtype = MomentumDtype::master;
  Nonfinite nonfinite = Nonfinite::skip;
  MatrixView matrix_view = MatrixView::leading;
  LowPrecision low_precision = LowPrecision::master;
  /// Keep a second, separate second moment (exp_hessian) and divide by its root instead.
  bool prepare_hessian = false;
  /// Step relative to the parameter's own RMS (Adafactor's scale_parameter); lr is then about 0.1.
  bool scale_by_parameter_rms = false;
  /// Divide the second moment by 1 - beta_decay^t (ema) and the momentum by 1 - b^t (ema).
  bool bias_correction = false;
  /// The largest beta_t; in (0,1], 1: no cap. Where nothing is remembered (a row that had no gradient before), an element
  /// moves by at most lr / sqrt(1 - beta_cap), at whatever t: 31.6·lr with 0.999, as AdamW's with beta2 = 0.999. Without a
  /// cap Decay::power lets that grow as t^(beta_decay/2): 100·lr at t = 100,000.
  double beta_cap = 1;
  /// Centralise n×1 matrices too (their gradient then vanishes). Only the golden cases set it.
  bool centralize_single_column = false;
};

struct Options : Hyperparameters, Structure {};

/// Throws ConfigError "field = value: allowed range" for the first value out of range.
void validate(const Options& options);

/// The named presets: recommended, sm3, compact, lean, elementwise, fusedbun, fusion.
///
/// fusedbun and fusion are the two original descriptions of the optimizer with all their defaults, so they leave centralize,
/// use_rms and prepare_hessian (fusion) off: SGD with momentum until one is turned on. lean is fusedbun's structure, and the
/// same options; elementwise is fusion's with centralize and use_rms on. In Python: core/fusedbun_reference.py.
const std::vector<std::string>& preset_names();

/// The preset's options with learning rate `lr`. Throws ConfigError naming the nearest preset for an unknown name.
Options preset(std::string_view name, double lr);

/// The entry of `allowed` (not empty) that is the fewest letters away from `name`: what a message suggests.
std::string nearest_name(std::string_view name, std::span<const std::string> allowed);

/// One line for logs: every field that differs from the defaults, "field=value".
std::string describe(const Options& options);

/// The structural options in which a saved optimizer differs from the one here, "accumulator (sm3, here mean)"; empty if none.
/// Whether there is momentum counts as one.
std::string structural_difference(const Options& saved, const Options& here);

/// Name of an enumerator as the documents spell it ("mean_col"), and back; `parse` throws ConfigError listing the
/// allowed names. Defined for every enum above.
template <class Enum>
std::string_view name_of(Enum value);
template <class Enum>
Enum parse(std::string_view name);

}  // namespace fusedbun
