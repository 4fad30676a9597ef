#pragma once
// Change: new hyperparameters for a running job, as every rank sees them. Who asked and why stays
// with rank 0's log.
//
// A change is validated as a whole on rank 0, gets the next revision, and is used from one job step
// on, the same on every rank. Its content travels once, as an array of ChangeEntry.
//
// Thread safety: values.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/core/options.h"

namespace fusedbun::changes {

/// The hyperparameters that may change while a job runs. max_grad_norm and lr_scale belong to the
/// job, the rest to a group.
enum class Field : int32_t {
  learning_rate = 1,  ///< lr: pins an absolute value against the schedule
  eps = 2,
  beta_decay = 3,
  weight_decay = 4,  ///< Lambda
  momentum_beta = 5,
  centralize = 6,
  use_rms = 7,
  max_grad_norm = 8,         ///< 0 = off
  lr_scale = 9,              ///< factor over the schedule
  unpin_learning_rate = 10,  ///< back to the schedule; value 1
  cancel = -1,  ///< no hyperparameter: takes the change of revision `value` back before its step
};

/// One field of one group at one revision: plain memory, 32 bytes on the wire.
struct ChangeEntry {
  int64_t revision = 0;
  int64_t effective_step = 0;  ///< first job step that uses it
  Field field = Field::learning_rate;
  int32_t group = -1;  ///< -1: all groups, or the job
  double value = 0;    ///< booleans as 0 and 1
};
static_assert(sizeof(ChangeEntry) == 32);

struct FieldSpec {
  Field field{};
  std::string_view name = {};         ///< the contract's: weight_decay
  std::string_view option_name = {};  ///< the optimizer's: Lambda
  double min = 0, max = 0;
  bool min_exclusive = false, max_exclusive = false;
  bool is_bool = false;
  bool per_group = false;
  std::string_view description = {};
  /// Of the options of a group; null for what is not one of them (the job's values, unpin_learning_rate).
  double (*get)(const Options& options) = nullptr;
  void (*set)(Options& options, double value) = nullptr;
};
/// The one table that the validator, the service and the command's help read.
std::span<const FieldSpec> field_specs();
/// By either name; nothing if unknown.
std::optional<FieldSpec> find_field(std::string_view name);
const FieldSpec& spec_of(Field field);
std::string_view name_of(Field field);
/// What the field sets: pin and unpin are two values of one thing.
constexpr Field slot_of(Field field) {
  return field == Field::unpin_learning_rate ? Field::learning_rate : field;
}
/// Is `value` in the field's range? Ranges that depend on the group's structure (beta_decay) are
/// judged by `validate` of core/options.h on the options as they would become. NaN and inf never
/// are.
bool allows(const FieldSpec& spec, double value);

/// An accepted change is used at the earliest this many job steps after the step whose header is
/// not yet sent.
inline constexpr int64_t kLead = 2;

/// What a job can do for a change. Fixed when its optimizer is constructed.
struct JobCapabilities {
  /// Gradients can be clipped. Not under step_in_backward, which writes parameters before the norm is known, unless it
  /// clips by the norm of the step before.
  bool clips_gradients = true;
};

/// The hyperparameters in force at one job step, folded from the changes. The optimizer's own
/// options hold what the user and the schedule set; this holds what people changed on top.
class ActiveChanges {
 public:
  explicit ActiveChanges(int group_count = 0) : lr_pin_(group_count) {}
  void add_group() { lr_pin_.emplace_back(); }
  int group_count() const { return static_cast<int>(lr_pin_.size()); }

  /// Takes accepted changes in. Entries come in order of revision, each revision in one call, once. A
  /// cancellation takes effect here, while what it cancels is not yet due.
  void accept(std::span<const ChangeEntry> entries);
  /// Applies what is due at `job_step` to `group_options` (all but lr, which is folded by
  /// effective_lr), in order of (effective_step, revision). Called once per step, before its first
  /// gradient hook. Group -1 means the groups there are now: one added later keeps its own options.
  void enter_step(int64_t job_step, std::span<Options* const> group_options);

  /// What holds beside the groups' own options, for a saved state: pins, scale, clip limit.
  struct Overrides {
    std::vector<std::optional<double>> lr_pin;  ///< [group]
    std::optional<double> max_grad_norm;
    double lr_scale = 1;
  };
  Overrides overrides() const { return {lr_pin_, max_grad_norm_, lr_scale_}; }
  /// For as many groups as there are.
  void restore(const Overrides& saved);

  /// All that it holds, for a checkpoint of the run that made the changes.
  struct Saved {
    Overrides overrides;
    int64_t active_revision = 0;
    int64_t known_revision = 0;
    uint64_t chain_hash = 0;
    std::vector<ChangeEntry> scheduled;  ///< not yet due, by (effective_step, revision)
  };
  Saved saved() const {
    return {overrides(), active_revision_, known_revision_, chain_hash_, pending_};
  }
  /// For as many groups as there are.
  void restore(const Saved& saved);

  double effective_lr(int group, double scheduled_lr) const;
  /// Empty: nobody changed it; the job's own setting holds.
  std::optional<double> max_grad_norm() const { return max_grad_norm_; }
  std::optional<double> lr_pin(int group) const { return lr_pin_[group]; }
  double lr_scale() const { return lr_scale_; }
  int64_t active_revision() const { return active_revision_; }  ///< newest in use
  int64_t known_revision() const { return known_revision_; }    ///< newest accepted
  /// XXH3 over all entries known, in order of revision, each seeded with the hash before it.
  uint64_t chain_hash() const { return chain_hash_; }

 private:
  void cancel(const ChangeEntry& cancellation);
  void apply(const ChangeEntry& entry, std::span<Options* const> group_options);

  std::vector<ChangeEntry> pending_;  ///< not yet due, by (effective_step, revision)
  std::vector<std::optional<double>> lr_pin_;
  std::optional<double> max_grad_norm_;
  double lr_scale_ = 1;
  int64_t active_revision_ = 0;
  int64_t known_revision_ = 0;
  uint64_t chain_hash_ = 0;
};

}  // namespace fusedbun::changes
