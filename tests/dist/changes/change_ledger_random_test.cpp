// The ledger against a dumb second implementation: a list of accepted changes that is folded from the beginning each time,
// and ranks that learn of changes as the step headers tell them.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "fusedbun/dist/changes/change_ledger.h"
#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::changes {
namespace {

using plan::between;
using plan::chance;
using plan::Random;
using plan::test_seed;

constexpr int kGroups = 3;
constexpr int kJob = -1;

Options initial() {
  return preset("recommended", 1e-3);
}

/// (group or kJob, field) -> value; a missing learning rate is the schedule's.
using Values = std::map<std::pair<int, Field>, double>;

Values values_of(const Settings& settings) {
  Values values;
  for (int group = 0; group < kGroups; ++group) {
    const Options& options = settings.groups[group];
    values[{group, Field::eps}] = options.eps;
    values[{group, Field::weight_decay}] = options.Lambda;
    values[{group, Field::use_rms}] = options.use_rms;
    if (settings.lr_pins[group]) values[{group, Field::learning_rate}] = *settings.lr_pins[group];
  }
  values[{kJob, Field::max_grad_norm}] = settings.max_grad_norm;
  values[{kJob, Field::lr_scale}] = settings.lr_scale;
  return values;
}

struct DumbModel {
  struct Change {
    int64_t effective_step;
    std::vector<ValuePatch> patches;
  };
  std::vector<Change> changes;  ///< [revision - 1]
  int64_t current = 0;

  Values values_at(int64_t step) const {
    Values values;
    for (int group = 0; group < kGroups; ++group) {
      values[{group, Field::eps}] = initial().eps;
      values[{group, Field::weight_decay}] = initial().Lambda;
      values[{group, Field::use_rms}] = initial().use_rms;
    }
    values[{kJob, Field::max_grad_norm}] = 0;
    values[{kJob, Field::lr_scale}] = 1;
    std::vector<size_t> order(changes.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::stable_sort(order, {}, [&](size_t i) { return changes[i].effective_step; });
    for (const size_t i : order) {
      if (changes[i].effective_step <= step) apply(changes[i].patches, values);
    }
    return values;
  }

  static void apply(const std::vector<ValuePatch>& patches, Values& values) {
    for (const ValuePatch& patch : patches) {
      if (patch.field == Field::max_grad_norm || patch.field == Field::lr_scale) {
        values[{kJob, patch.field}] = patch.value;
        continue;
      }
      for (int group = 0; group < kGroups; ++group) {
        if (patch.group != "*" && patch.group != "g" + std::to_string(group)) continue;
        if (patch.field == Field::unpin_learning_rate) {
          values.erase({group, Field::learning_rate});
        } else {
          values[{group, patch.field}] = patch.value;
        }
      }
    }
  }
};

class RandomRun {
 public:
  explicit RandomRun(uint64_t seed) : random_(seed) {
    std::vector<LedgerGroup> groups;
    for (int group = 0; group < kGroups; ++group)
      groups.push_back({"g" + std::to_string(group), 1, initial()});
    ledger_.emplace(groups, 0.0, 0);
    rank_options_.assign(kGroups, initial());
  }

  void act() {
    if (random_() % 3 == 0) {
      end_step();
    } else {
      request();
    }
    ASSERT_EQ(ledger_->newest_revision(), static_cast<int64_t>(model_.changes.size()));
    const int64_t step = ledger_->earliest_step() + static_cast<int64_t>(random_() % 20);
    ASSERT_EQ(values_of(ledger_->settings_at(step)), model_.values_at(step));
  }

  int64_t accepted() const { return ledger_->newest_revision(); }

 private:
  /// What a rank does with the boundary of step k: it reads the header in k + 1 and enters k + 2 with the new content.
  void end_step() {
    const int64_t step = model_.current++;
    ledger_->close_step(step);
    StepReport report;
    report.job_step = step;
    std::vector<Options*> pointers;
    for (Options& options : rank_options_) pointers.push_back(&options);
    rank_.enter_step(step, pointers);
    rank_.accept(ledger_->entries(rank_.known_revision(), announced_));
    announced_ = ledger_->newest_revision();
    report.group_options = rank_options_;
    report.max_grad_norm = rank_.max_grad_norm().value_or(0);
    report.lr_scale = rank_.lr_scale();
    ASSERT_EQ(values_of({rank_options_, pins(), report.max_grad_norm, report.lr_scale}),
              model_.values_at(step))
        << "a rank in step " << step;
    if (random_() % 4 != 0) ledger_->observe(report);  // nobody may have looked
  }

  std::vector<std::optional<double>> pins() const {
    std::vector<std::optional<double>> pins;
    for (int group = 0; group < kGroups; ++group) pins.push_back(rank_.lr_pin(group));
    return pins;
  }

  void request() {
    ChangeRequest request;
    bool is_valid = true;
    const size_t count = 1 + random_() % 3;
    for (size_t i = 0; i < count; ++i) request.patches.push_back(random_patch(is_valid));
    if (random_() % 3 == 0) {
      request.apply_at_step = model_.current + static_cast<int64_t>(random_() % 15) - 2;
      is_valid &= *request.apply_at_step >= model_.current + kLead;
    }
    request.etag = random_() % 2 == 0 ? "*" : ledger_->etag();
    if (random_() % 8 == 0) {
      request.etag = "\"0-outdated\"";
      is_valid = false;
    }
    is_valid &= !sets_twice(request.patches);
    const auto verdict = ledger_->propose(request);
    ASSERT_EQ(std::holds_alternative<AcceptedChange>(verdict), is_valid);
    if (!is_valid) return;
    const auto& change = std::get<AcceptedChange>(verdict);
    ASSERT_EQ(values_of(change.previous), model_.values_at(change.effective_step));
    if (random_() % 5 == 0) return;  // a dry run
    model_.changes.push_back(
        {request.apply_at_step.value_or(model_.current + kLead), request.patches});
    ASSERT_EQ(values_of(change.resulting), model_.values_at(change.effective_step));
    const std::string before = ledger_->etag();
    ledger_->commit(change);
    ASSERT_NE(ledger_->etag(), before);
  }

  ValuePatch random_patch(bool& is_valid) {
    constexpr Field kFields[] = {
        Field::learning_rate, Field::eps,      Field::weight_decay,       Field::use_rms,
        Field::max_grad_norm, Field::lr_scale, Field::unpin_learning_rate};
    const Field field = kFields[random_() % std::size(kFields)];
    const bool is_of_job = field == Field::max_grad_norm || field == Field::lr_scale;
    const int group = static_cast<int>(random_() % (kGroups + 1)) - 1;
    ValuePatch patch{is_of_job || group < 0 ? "*" : "g" + std::to_string(group), field,
                     1e-3 * static_cast<double>(1 + random_() % 1000)};
    if (field == Field::use_rms) patch.value = static_cast<double>(random_() % 2);
    if (field == Field::unpin_learning_rate) patch.value = 1;
    if (random_() % 20 == 0) {
      patch.value = -1;
      is_valid = false;
    }
    return patch;
  }

  static bool sets_twice(const std::vector<ValuePatch>& patches) {
    const auto slot = [](Field field) {
      return field == Field::unpin_learning_rate ? Field::learning_rate : field;
    };
    for (size_t i = 0; i < patches.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        if (patches[i].group == patches[j].group &&
            slot(patches[i].field) == slot(patches[j].field))
          return true;
      }
    }
    return false;
  }

  Random random_;
  std::optional<ChangeLedger> ledger_;
  DumbModel model_;
  ActiveChanges rank_{kGroups};
  std::vector<Options> rank_options_;
  int64_t announced_ = 0;
};

TEST(ChangeLedgerRandom, AgreesWithADumbModelAndWithTheRanks) {
  const uint64_t first_seed = test_seed();
  int64_t accepted = 0;
  for (uint64_t seed = first_seed; seed < first_seed + 40; ++seed) {
    RandomRun run(seed);
    for (int i = 0; i < 150; ++i) {
      run.act();
      ASSERT_FALSE(testing::Test::HasFatalFailure()) << "seed " << seed << ", action " << i;
    }
    accepted += run.accepted();
  }
  EXPECT_GT(accepted, 500) << "most requests are meant to be valid";
}

}  // namespace
}  // namespace fusedbun::changes
