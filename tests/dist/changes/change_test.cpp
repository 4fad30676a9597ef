#include "fusedbun/dist/changes/change.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <set>

#include "fusedbun/core/option_fields.h"
#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::changes {
namespace {

using plan::between;
using plan::chance;
using plan::Random;
using plan::test_seed;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// What holds at a step, for comparison.
struct Folded {
  std::vector<Options> options;
  std::vector<std::optional<double>> lr_pin;
  std::optional<double> max_grad_norm = std::nullopt;
  double lr_scale = 1;
  int64_t active_revision = 0;
};

/// An entry and the first step that is entered after it was accepted.
struct Accepted {
  ChangeEntry entry;
  int64_t known_at_step;
};

void apply(const ChangeEntry& entry, Folded& folded) {
  folded.active_revision = std::max(folded.active_revision, entry.revision);
  if (entry.field == Field::max_grad_norm) folded.max_grad_norm = entry.value;
  if (entry.field == Field::lr_scale) folded.lr_scale = entry.value;
  for (int group = 0; group < static_cast<int>(folded.options.size()); ++group) {
    if (entry.group >= 0 && entry.group != group) continue;
    Options& options = folded.options[group];
    if (entry.field == Field::learning_rate) folded.lr_pin[group] = entry.value;
    if (entry.field == Field::unpin_learning_rate) folded.lr_pin[group] = std::nullopt;
    if (entry.field == Field::eps) options.eps = entry.value;
    if (entry.field == Field::beta_decay) options.beta_decay = entry.value;
    if (entry.field == Field::weight_decay) options.Lambda = entry.value;
    if (entry.field == Field::momentum_beta) options.momentum_beta = entry.value;
    if (entry.field == Field::centralize) options.centralize = entry.value == 1;
    if (entry.field == Field::use_rms) options.use_rms = entry.value == 1;
  }
}

/// The state at `job_step`, folded from nothing: the second, dumb implementation.
Folded refold(std::vector<Accepted> history, int64_t job_step,
              const std::vector<Options>& initial) {
  Folded folded{.options = initial, .lr_pin = std::vector<std::optional<double>>(initial.size())};
  const auto used_at = [](const Accepted& change) {
    return std::max(change.known_at_step, change.entry.effective_step);
  };
  std::stable_sort(history.begin(), history.end(), [&](const Accepted& a, const Accepted& b) {
    return std::tuple(used_at(a), a.entry.effective_step, a.entry.revision) <
           std::tuple(used_at(b), b.entry.effective_step, b.entry.revision);
  });
  for (const Accepted& change : history) {
    if (used_at(change) <= job_step) apply(change.entry, folded);
  }
  return folded;
}

ChangeEntry random_entry(Random& random, int64_t revision, int64_t effective_step, int groups) {
  const auto specs = field_specs();
  const FieldSpec& spec = specs[between(random, 0, static_cast<int64_t>(specs.size()) - 1)];
  const double value = spec.is_bool ? static_cast<double>(between(random, 0, 1))
                                    : static_cast<double>(between(random, 1, 999)) / 1000;
  return {.revision = revision,
          .effective_step = effective_step,
          .field = spec.field,
          .group = spec.per_group ? static_cast<int32_t>(between(random, -1, groups - 1)) : -1,
          .value = value};
}

std::vector<Options*> pointers(std::vector<Options>& options) {
  std::vector<Options*> result;
  for (Options& group : options) result.push_back(&group);
  return result;
}

void expect_equal(const ActiveChanges& active, const std::vector<Options>& options,
                  const Folded& expected) {
  EXPECT_EQ(active.active_revision(), expected.active_revision);
  EXPECT_EQ(active.max_grad_norm(), expected.max_grad_norm);
  EXPECT_EQ(active.lr_scale(), expected.lr_scale);
  for (int group = 0; group < static_cast<int>(options.size()); ++group) {
    EXPECT_EQ(active.lr_pin(group), expected.lr_pin[group]);
    EXPECT_EQ(active.effective_lr(group, 0.5),
              expected.lr_pin[group].value_or(0.5 * expected.lr_scale));
    EXPECT_EQ(describe(options[group]), describe(expected.options[group]));
  }
}

TEST(ActiveChangesRandom, AreWhatRefoldingFromTheStartGives) {
  const uint64_t seed = test_seed();
  Random random(seed);
  for (int job = 0; job < 300 && !testing::Test::HasFailure(); ++job) {
    SCOPED_TRACE("seed " + std::to_string(seed) + " job " + std::to_string(job));
    const int groups = static_cast<int>(between(random, 1, 3));
    std::vector<Options> options(groups, preset("recommended", 0.1));
    const std::vector<Options> initial = options;
    ActiveChanges active(groups);
    std::vector<Accepted> history;
    int64_t revision = 0;
    for (int64_t step = 0; step < 40; ++step) {
      std::vector<ChangeEntry> accepted;
      for (int64_t change = between(random, 0, 2); change > 0; --change) {
        ++revision;
        // Now and then at a step that is past, as after a restart.
        const int64_t effective = step + between(random, chance(random, 0.1) ? -3 : 0, 6);
        for (int64_t field = between(random, 1, 3); field > 0; --field) {
          accepted.push_back(random_entry(random, revision, effective, groups));
          history.push_back({accepted.back(), step});
        }
      }
      active.accept(accepted);
      EXPECT_EQ(active.known_revision(), revision);
      active.enter_step(step, pointers(options));
      expect_equal(active, options, refold(history, step, initial));
    }
  }
}

TEST(ActiveChanges, AreAppliedByRevisionWithinAStep) {
  std::vector<Options> options(1);
  ActiveChanges active(1);
  active.accept(std::vector<ChangeEntry>{{1, 5, Field::eps, 0, 0.1}});
  active.accept(std::vector<ChangeEntry>{{2, 5, Field::eps, 0, 0.2}});
  active.accept(std::vector<ChangeEntry>{{3, 4, Field::eps, 0, 0.3}});
  active.enter_step(4, pointers(options));
  EXPECT_EQ(options[0].eps, 0.3);
  EXPECT_EQ(active.active_revision(), 3);
  active.enter_step(5, pointers(options));
  EXPECT_EQ(options[0].eps, 0.2);
  EXPECT_EQ(active.active_revision(), 3);
}

TEST(ActiveChanges, PinStandsAgainstScheduleAndScaleUntilUnpinned) {
  std::vector<Options> options(2);
  ActiveChanges active(2);
  active.accept(std::vector<ChangeEntry>{{1, 0, Field::learning_rate, 0, 0.25},
                                         {1, 0, Field::lr_scale, -1, 2}});
  active.accept(std::vector<ChangeEntry>{{2, 1, Field::unpin_learning_rate, -1, 1}});
  active.enter_step(0, pointers(options));
  EXPECT_EQ(active.effective_lr(0, 0.5), 0.25);
  EXPECT_EQ(active.effective_lr(1, 0.5), 1.0);
  active.enter_step(1, pointers(options));
  EXPECT_EQ(active.effective_lr(0, 0.5), 1.0);
  EXPECT_TRUE(std::isnan(options[0].lr)) << "lr is folded, never written";
}

TEST(ActiveChanges, ALateGroupIsOutsideEarlierChanges) {
  std::vector<Options> options(1);
  ActiveChanges active(1);
  active.accept(std::vector<ChangeEntry>{{1, 0, Field::learning_rate, -1, 0.25}});
  active.enter_step(0, pointers(options));
  active.add_group();
  options.emplace_back();
  active.accept(std::vector<ChangeEntry>{{2, 1, Field::eps, -1, 0.5}});
  active.enter_step(1, pointers(options));
  EXPECT_EQ(active.lr_pin(1), std::nullopt);
  EXPECT_EQ(options[1].eps, 0.5);
}

TEST(ActiveChanges, ChainDependsOnContentAndNotOnPortions) {
  const std::vector<ChangeEntry> entries = {
      {1, 5, Field::eps, 0, 0.1}, {1, 5, Field::use_rms, 0, 1}, {2, 3, Field::lr_scale, -1, 2}};
  ActiveChanges at_once(1), one_by_one(1);
  at_once.accept(entries);
  one_by_one.accept(std::span(entries).first(2));
  one_by_one.accept(std::span(entries).last(1));
  EXPECT_EQ(at_once.chain_hash(), one_by_one.chain_hash());

  std::set<uint64_t> hashes = {at_once.chain_hash(), ActiveChanges(1).chain_hash()};
  const auto add = [&](size_t index, auto spoil) {
    auto other = entries;
    spoil(other[index]);
    ActiveChanges active(1);
    active.accept(other);
    hashes.insert(active.chain_hash());
  };
  add(2, [](ChangeEntry& entry) { entry.revision = 3; });
  add(0, [](ChangeEntry& entry) { entry.effective_step = 6; });
  add(0, [](ChangeEntry& entry) { entry.field = Field::beta_decay; });
  add(0, [](ChangeEntry& entry) { entry.group = -1; });
  add(0, [](ChangeEntry& entry) { entry.value = std::nextafter(0.1, 1); });
  EXPECT_EQ(hashes.size(), 7u);
}

TEST(ActiveChangesDeathTest, RevisionsComeInOrderAndOnce) {
  ActiveChanges active(1);
  active.accept(std::vector<ChangeEntry>{{2, 0, Field::eps, 0, 0.1}});
  EXPECT_DEATH(active.accept(std::vector<ChangeEntry>{{1, 0, Field::eps, 0, 0.1}}),
               "revision 1 arrived after");
  EXPECT_DEATH(active.accept(std::vector<ChangeEntry>{{2, 0, Field::eps, 0, 0.1}}),
               "revision 2 arrived after");
}

TEST(ActiveChangesDeathTest, AGroupMustExist) {
  std::vector<Options> options(1);
  ActiveChanges active(1);
  active.accept(std::vector<ChangeEntry>{{1, 0, Field::eps, 1, 0.1}});
  EXPECT_DEATH(active.enter_step(0, pointers(options)), "a change names group 1");
}

TEST(FieldSpecs, AreFoundByBothNames) {
  EXPECT_EQ(find_field("weight_decay")->field, Field::weight_decay);
  EXPECT_EQ(find_field("Lambda")->field, Field::weight_decay);
  EXPECT_EQ(find_field("lr")->field, Field::learning_rate);
  EXPECT_EQ(find_field("lambda"), std::nullopt);
  EXPECT_EQ(name_of(Field::lr_scale), "lr_scale");
}

TEST(FieldSpecs, EveryFieldOnceWithUniqueNames) {
  std::set<int32_t> fields;
  std::set<std::string_view> names;
  for (const FieldSpec& spec : field_specs()) {
    EXPECT_TRUE(fields.insert(static_cast<int32_t>(spec.field)).second);
    EXPECT_TRUE(names.insert(spec.name).second);
    EXPECT_FALSE(spec.description.empty());
    EXPECT_EQ(name_of(spec.field), spec.name);
    EXPECT_EQ(spec.per_group, spec.field != Field::max_grad_norm && spec.field != Field::lr_scale);
  }
  EXPECT_EQ(*fields.begin(), 1);
  EXPECT_EQ(*fields.rbegin(), static_cast<int32_t>(fields.size()));
}

TEST(FieldSpecs, AllowTheirRange) {
  const auto allowed = [](std::string_view name, double value) {
    return allows(*find_field(name), value);
  };
  for (const FieldSpec& spec : field_specs()) {
    for (double value : {kNaN, kInf, -kInf, -1.0}) EXPECT_FALSE(allows(spec, value)) << spec.name;
  }
  EXPECT_TRUE(allowed("lr", 0));
  EXPECT_TRUE(allowed("lr", 1e30));
  EXPECT_FALSE(allowed("eps", 0));
  EXPECT_TRUE(allowed("eps", 1e-30));
  EXPECT_FALSE(allowed("momentum_beta", 0));
  EXPECT_TRUE(allowed("momentum_beta", 0.999));
  EXPECT_FALSE(allowed("momentum_beta", 1));
  EXPECT_TRUE(allowed("max_grad_norm", 0));
  EXPECT_TRUE(allowed("use_rms", 0));
  EXPECT_TRUE(allowed("use_rms", 1));
  EXPECT_FALSE(allowed("use_rms", 0.5));
  EXPECT_TRUE(allowed("unpin_learning_rate", 1));
  EXPECT_FALSE(allowed("unpin_learning_rate", 0));
}

/// What the table lets through must not be refused by the optimizer's own judge, except for beta_decay with decay ema.
TEST(FieldSpecs, AgreeWithValidateOfOptions) {
  for (double value : {0.0, 1e-300, 0.5, 0.999, 1.0, 2.0, 1e300}) {
    for (const FieldSpec& spec : field_specs()) {
      if (!spec.per_group || spec.is_bool || !allows(spec, value)) continue;
      if (spec.field == Field::beta_decay && value == 0) continue;  // power: above 0
      Options options = preset("recommended", 0.1);
      ActiveChanges active(1);
      active.accept(std::vector<ChangeEntry>{{1, 0, spec.field, 0, value}});
      active.enter_step(0, std::vector<Options*>{&options});
      options.lr = active.effective_lr(0, options.lr);
      EXPECT_NO_THROW(validate(options)) << spec.name << " = " << value;
    }
  }
}

// What the recipe for a hyperparameter says: core/options.h, this table, the contract (whose fields contract_test compares).
TEST(FieldSpecs, EveryHyperparameterOfTheOptimizerHasARowThatReadsAndSetsIt) {
  Options options;
  visit_hyperparameters(options, [&](const char* name, auto& field) {
    const auto spec = find_field(name);
    ASSERT_TRUE(spec && spec->get != nullptr && spec->set != nullptr) << name;
    field = {};
    spec->set(options, 1);
    EXPECT_EQ(static_cast<double>(field), 1) << name;
    EXPECT_EQ(spec->get(options), 1) << name;
  });
}

}  // namespace
}  // namespace fusedbun::changes
