#include "fusedbun/dist/changes/change.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::changes {
namespace {

// ---- how a row of the table is written ------------------------------------------------------------

constexpr double kAny = std::numeric_limits<double>::max();  // every finite value

constexpr FieldSpec real(Field field, std::string_view name, std::string_view description) {
  return {
      .field = field, .name = name, .option_name = name, .max = kAny, .description = description};
}

/// A field of the optimizer's options, of each group: floating point or bool.
template <auto kMember>
constexpr FieldSpec option(Field field, std::string_view name, std::string_view option_name,
                           std::string_view description) {
  using Value = std::remove_cvref_t<decltype(std::declval<Options>().*kMember)>;
  FieldSpec spec = real(field, name, description);
  spec.option_name = option_name;
  spec.per_group = true;
  spec.is_bool = std::is_same_v<Value, bool>;
  if (spec.is_bool) spec.max = 1;
  spec.get = [](const Options& options) { return static_cast<double>(options.*kMember); };
  spec.set = [](Options& options, double value) { options.*kMember = static_cast<Value>(value); };
  return spec;
}

constexpr FieldSpec positive(FieldSpec spec) {
  spec.min_exclusive = true;
  return spec;
}

constexpr FieldSpec below(FieldSpec spec, double max) {
  spec.max = max;
  spec.max_exclusive = true;
  return spec;
}

constexpr FieldSpec kFieldSpecs[] = {
    option<&Options::lr>(
        Field::learning_rate, "learning_rate", "lr",
        "step size; pins this value against the schedule until unpin_learning_rate"),
    positive(option<&Options::eps>(Field::eps, "eps", "eps",
                                   "mask threshold and floor of the denominator")),
    option<&Options::beta_decay>(
        Field::beta_decay, "beta_decay", "beta_decay",
        "decay of the second moment: below 1 with decay ema, above 0 with decay power"),
    option<&Options::Lambda>(Field::weight_decay, "weight_decay", "Lambda",
                             "decoupled weight decay"),
    below(positive(option<&Options::momentum_beta>(
              Field::momentum_beta, "momentum_beta", "momentum_beta",
              "decay of the momentum; fixed where it was 0 at the start")),
          1),
    option<&Options::centralize>(Field::centralize, "centralize", "centralize",
                                 "subtract each matrix row's mean from the gradient"),
    option<&Options::use_rms>(Field::use_rms, "use_rms", "use_rms",
                              "divide by the root of the second moment"),
    real(Field::max_grad_norm, "max_grad_norm",
         "clip the averaged gradient to this global 2-norm; 0 = off"),
    real(Field::lr_scale, "lr_scale", "factor over the scheduled learning rate"),
    {.field = Field::unpin_learning_rate,
     .name = "unpin_learning_rate",
     .option_name = "unpin_lr",
     .min = 1,
     .max = 1,
     .is_bool = true,
     .per_group = true,
     .description = "back to the schedule; value 1"},
};

}  // namespace

std::span<const FieldSpec> field_specs() {
  return kFieldSpecs;
}

const FieldSpec& spec_of(Field field) {
  const auto spec = std::ranges::find(kFieldSpecs, field, &FieldSpec::field);
  FUSEDBUN_ASSERT(spec != std::end(kFieldSpecs),
                  "field " + std::to_string(static_cast<int>(field)) + " is unknown");
  return *spec;
}

std::optional<FieldSpec> find_field(std::string_view name) {
  for (const FieldSpec& spec : kFieldSpecs) {
    if (spec.name == name || spec.option_name == name) return spec;
  }
  return std::nullopt;
}

std::string_view name_of(Field field) {
  return spec_of(field).name;
}

bool allows(const FieldSpec& spec, double value) {
  const bool above = spec.min_exclusive ? value > spec.min : value >= spec.min;
  const bool under = spec.max_exclusive ? value < spec.max : value <= spec.max;
  return above && under && (!spec.is_bool || value == 0 || value == 1);  // NaN compares false
}

void ActiveChanges::accept(std::span<const ChangeEntry> entries) {
  const int64_t known_before = known_revision_;
  for (const ChangeEntry& entry : entries) {
    FUSEDBUN_ASSERT(entry.revision > known_before && entry.revision >= known_revision_,
                    "revision " + std::to_string(entry.revision) + " arrived after revision " +
                        std::to_string(known_revision_));
    known_revision_ = entry.revision;
    chain_hash_ = XXH3_64bits_withSeed(&entry, sizeof entry, chain_hash_);
    if (entry.field == Field::cancel) {
      cancel(entry);
      continue;
    }
    const auto later = std::ranges::upper_bound(
        pending_, std::pair(entry.effective_step, entry.revision), {},
        [](const ChangeEntry& other) { return std::pair(other.effective_step, other.revision); });
    pending_.insert(later, entry);
  }
}

void ActiveChanges::cancel(const ChangeEntry& cancellation) {
  const size_t cancelled = std::erase_if(pending_, [&](const ChangeEntry& entry) {
    return static_cast<double>(entry.revision) == cancellation.value;
  });
  FUSEDBUN_ASSERT(cancelled > 0, "revision " + std::to_string(cancellation.revision) +
                                     " cancels a change that is not pending");
}

void ActiveChanges::enter_step(int64_t job_step, std::span<Options* const> group_options) {
  FUSEDBUN_ASSERT(group_options.size() == lr_pin_.size(),
                  "changes and options differ in their number of groups");
  const auto due_end = std::ranges::find_if(
      pending_, [&](const ChangeEntry& entry) { return entry.effective_step > job_step; });
  for (const ChangeEntry& entry : std::span(pending_.begin(), due_end)) apply(entry, group_options);
  pending_.erase(pending_.begin(), due_end);
}

void ActiveChanges::apply(const ChangeEntry& entry, std::span<Options* const> group_options) {
  active_revision_ = std::max(active_revision_, entry.revision);
  if (entry.field == Field::max_grad_norm) {
    max_grad_norm_ = entry.value;
    return;
  }
  if (entry.field == Field::lr_scale) {
    lr_scale_ = entry.value;
    return;
  }
  const int group_count = static_cast<int>(lr_pin_.size());
  FUSEDBUN_ASSERT(entry.group >= -1 && entry.group < group_count,
                  "a change names group " + std::to_string(entry.group));
  const int first = entry.group < 0 ? 0 : entry.group;
  const int last = entry.group < 0 ? group_count - 1 : entry.group;
  for (int group = first; group <= last; ++group) {
    if (entry.field == Field::learning_rate) {
      lr_pin_[group] = entry.value;
    } else if (entry.field == Field::unpin_learning_rate) {
      lr_pin_[group].reset();
    } else {
      spec_of(entry.field).set(*group_options[group], entry.value);
    }
  }
}

void ActiveChanges::restore(const Overrides& saved) {
  FUSEDBUN_ASSERT(saved.lr_pin.size() == lr_pin_.size(), "overrides of another number of groups");
  lr_pin_ = saved.lr_pin;
  max_grad_norm_ = saved.max_grad_norm;
  lr_scale_ = saved.lr_scale;
}

void ActiveChanges::restore(const Saved& saved) {
  restore(saved.overrides);
  active_revision_ = saved.active_revision;
  known_revision_ = saved.known_revision;
  chain_hash_ = saved.chain_hash;
  pending_ = saved.scheduled;
}

double ActiveChanges::effective_lr(int group, double scheduled_lr) const {
  return lr_pin_[group].value_or(scheduled_lr * lr_scale_);
}

}  // namespace fusedbun::changes
