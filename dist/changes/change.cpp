#include "fusedbun/dist/changes/change.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <limits>

#include "fusedbun/core/error.h"

namespace fusedbun::changes {
namespace {

constexpr double kAny = std::numeric_limits<double>::max();  // every finite value

constexpr FieldSpec real(Field field, std::string_view name, std::string_view option_name,
                         bool per_group, std::string_view description) {
  return {field, name, option_name, 0, kAny, false, false, false, per_group, description};
}

constexpr FieldSpec flag(Field field, std::string_view name, std::string_view option_name,
                         std::string_view description) {
  return {field, name, option_name, 0, 1, false, false, true, true, description};
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

constexpr FieldSpec only(FieldSpec spec, double value) {
  spec.min = spec.max = value;
  return spec;
}

constexpr FieldSpec kFieldSpecs[] = {
    real(Field::learning_rate, "learning_rate", "lr", true,
         "step size; pins this value against the schedule until unpin_learning_rate"),
    positive(real(Field::eps, "eps", "eps", true, "mask threshold and floor of the denominator")),
    real(Field::beta_decay, "beta_decay", "beta_decay", true,
         "decay of the second moment: below 1 with decay ema, above 0 with decay power"),
    real(Field::weight_decay, "weight_decay", "Lambda", true, "decoupled weight decay"),
    below(positive(real(Field::momentum_beta, "momentum_beta", "momentum_beta", true,
                        "decay of the momentum; fixed where it was 0 at the start")),
          1),
    flag(Field::centralize, "centralize", "centralize",
         "subtract each matrix row's mean from the gradient"),
    flag(Field::use_rms, "use_rms", "use_rms", "divide by the root of the second moment"),
    real(Field::max_grad_norm, "max_grad_norm", "max_grad_norm", false,
         "clip the averaged gradient to this global 2-norm; 0 = off"),
    real(Field::lr_scale, "lr_scale", "lr_scale", false, "factor over the scheduled learning rate"),
    only(flag(Field::unpin_learning_rate, "unpin_learning_rate", "unpin_lr",
              "back to the schedule; value 1"),
         1),
};

void apply_to_options(const ChangeEntry& entry, Options& options) {
  switch (entry.field) {
    case Field::eps:
      options.eps = entry.value;
      return;
    case Field::beta_decay:
      options.beta_decay = entry.value;
      return;
    case Field::weight_decay:
      options.Lambda = entry.value;
      return;
    case Field::momentum_beta:
      options.momentum_beta = entry.value;
      return;
    case Field::centralize:
      options.centralize = entry.value != 0;
      return;
    case Field::use_rms:
      options.use_rms = entry.value != 0;
      return;
    case Field::learning_rate:
    case Field::unpin_learning_rate:
    case Field::max_grad_norm:
    case Field::lr_scale:
    case Field::cancel:
      break;
  }
  FUSEDBUN_ASSERT(
      false, "field " + std::to_string(static_cast<int>(entry.field)) + " is none of the options'");
}

}  // namespace

std::span<const FieldSpec> field_specs() {
  return kFieldSpecs;
}

std::optional<FieldSpec> find_field(std::string_view name) {
  for (const FieldSpec& spec : kFieldSpecs) {
    if (spec.name == name || spec.option_name == name) return spec;
  }
  return std::nullopt;
}

std::string_view name_of(Field field) {
  const auto spec = std::ranges::find(kFieldSpecs, field, &FieldSpec::field);
  FUSEDBUN_ASSERT(spec != std::end(kFieldSpecs),
                  "field " + std::to_string(static_cast<int>(field)) + " is unknown");
  return spec->name;
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
      apply_to_options(entry, *group_options[group]);
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
