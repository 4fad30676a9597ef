// ShardPlan against a second implementation that deals rows out one by one, over random models.
#include <set>

#include "fusedbun/dist/plan/load_forecast.h"
#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::plan {
namespace {

constexpr int kModels = 4000;

/// Owners by dealing: [parameter][row] = rank.
using Owners = std::vector<std::vector<int>>;

/// The first `total` mod `parts` parts are one longer.
std::vector<int> deal(size_t total, int parts) {
  std::vector<int> owners;
  for (int part = 0; part < parts; ++part) {
    const size_t size = total / parts + (static_cast<size_t>(part) < total % parts ? 1 : 0);
    owners.insert(owners.end(), size, part);
  }
  return owners;
}

bool is_stack(const ParameterSpec& spec) {
  return spec.shape.size() > 2 && spec.matrix_view == MatrixView::last_two;
}
int64_t matrices_of(const ParameterSpec& spec) {
  return spec.elements() / (*(spec.shape.end() - 1) * *(spec.shape.end() - 2));
}

/// The most parts of which each fills a bucket and each rank has a row, or a whole matrix of a stack. Vectors, and matrices that are
/// not cut, have one.
int dumb_parts(const ParameterSpec& spec, const PlanOptions& options) {
  if (spec.shape.size() < 2) return 1;
  const bool is_whole =
      !is_stack(spec) && spec.rows() < options.min_rows_per_rank * options.world_size;
  if (is_whole) return 1;
  const int64_t units = is_stack(spec) ? matrices_of(spec) : spec.rows();
  const int64_t bytes = spec.elements() * (spec.type == ElementType::f64 ? 8 : 4);
  int parts = 1;
  while ((parts + 1) * options.bucket_bytes <= bytes && (parts + 1) * options.world_size <= units) {
    ++parts;
  }
  return parts;
}

/// Buckets, one type after the other, then sorted by their last parameter.
std::vector<std::vector<int>> dumb_buckets(const std::vector<ParameterSpec>& parameters, int first,
                                           const PlanOptions& options) {
  std::vector<std::vector<int>> buckets;
  for (ElementType type :
       {ElementType::f32, ElementType::f64, ElementType::bf16, ElementType::f16}) {
    std::vector<int> bucket;
    int64_t bytes = 0;
    for (int p = static_cast<int>(parameters.size()) - 1; p >= first; --p) {
      if (parameters[p].type != type || parameters[p].elements() == 0) continue;
      bucket.push_back(p);
      bytes += parameters[p].elements() * (type == ElementType::f64 ? 8 : 4);
      if (bytes < options.bucket_bytes) continue;
      buckets.push_back(bucket);
      // The other parts of a spread one travel alone.
      buckets.insert(buckets.end(), dumb_parts(parameters[p], options) - 1, {p});
      bucket.clear();
      bytes = 0;
    }
    if (!bucket.empty()) buckets.push_back(bucket);
  }
  std::stable_sort(buckets.begin(), buckets.end(),
                   [](const auto& a, const auto& b) { return a.back() > b.back(); });
  return buckets;
}

/// What the header of shard_plan.h says, element by element.
class DumbPlan {
 public:
  explicit DumbPlan(const PlanOptions& options) : options_(options), load_(options.world_size) {}

  void append(const std::vector<ParameterSpec>& added) {
    const int first = static_cast<int>(parameters_.size());
    for (const ParameterSpec& parameter : added) {
      parameters_.push_back(parameter);
      owners.emplace_back(parameter.elements() == 0 ? 0 : parameter.rows(), -1);
    }
    const auto fresh = dumb_buckets(parameters_, first, options_);
    std::vector<int> wholes;
    std::set<int> seen;
    for (const auto& bucket : fresh) {
      for (int group = 0; group <= 2; ++group) deal_pack(bucket, group);
      for (int p : bucket) {
        if (parameters_[p].shape.size() < 2 || !seen.insert(p).second) continue;
        if (is_stack(parameters_[p])) {
          const int64_t matrices = matrices_of(parameters_[p]);
          if (matrices < options_.world_size) {
            wholes.push_back(p);
          } else {
            own_matrices(p, deal(matrices, options_.world_size));
          }
          continue;
        }
        if (parameters_[p].rows() >= options_.min_rows_per_rank * options_.world_size) {
          owners[p] = deal(parameters_[p].rows(), options_.world_size);
          for (int rank : owners[p]) load_[rank] += parameters_[p].columns();
        } else {
          wholes.push_back(p);
        }
      }
    }
    while (!wholes.empty()) {
      const int p = take_largest(wholes);
      is_stack(parameters_[p]) ? place_matrices(p) : place(p);
    }
    buckets.insert(buckets.end(), fresh.begin(), fresh.end());
  }

  Owners owners;
  std::vector<std::vector<int>> buckets;
  const std::vector<int64_t>& load() const { return load_; }

 private:
  void deal_pack(const std::vector<int>& bucket, int group) {
    std::vector<std::pair<int, int64_t>> elements;
    for (int p : bucket) {
      if (parameters_[p].shape.size() >= 2 || parameters_[p].group != group) continue;
      for (int64_t i = 0; i < parameters_[p].elements(); ++i) elements.emplace_back(p, i);
    }
    const std::vector<int> ranks = deal(elements.size(), options_.world_size);
    for (size_t i = 0; i < elements.size(); ++i) {
      owners[elements[i].first][elements[i].second] = ranks[i];
      ++load_[ranks[i]];
    }
  }

  int take_largest(std::vector<int>& wholes) const {
    size_t largest = 0;
    for (size_t i = 1; i < wholes.size(); ++i) {
      if (parameters_[wholes[i]].elements() > parameters_[wholes[largest]].elements()) largest = i;
    }
    const int parameter = wholes[largest];
    wholes.erase(wholes.begin() + static_cast<std::ptrdiff_t>(largest));
    return parameter;
  }

  /// All rows of matrix i to matrix_owners[i].
  void own_matrices(int parameter, const std::vector<int>& matrix_owners) {
    const ParameterSpec& spec = parameters_[parameter];
    const int64_t rows = *(spec.shape.end() - 2), columns = *(spec.shape.end() - 1);
    owners[parameter].clear();
    for (int rank : matrix_owners) {
      owners[parameter].insert(owners[parameter].end(), rows, rank);
      load_[rank] += rows * columns;
    }
  }

  void place_matrices(int parameter) {
    std::vector<int> chosen;
    for (int64_t i = matrices_of(parameters_[parameter]); i > 0; --i) {
      int least = -1;
      for (int rank = 0; rank < options_.world_size; ++rank) {
        const bool taken = std::find(chosen.begin(), chosen.end(), rank) != chosen.end();
        if (!taken && (least < 0 || load_[rank] < load_[least])) least = rank;
      }
      chosen.push_back(least);
    }
    std::sort(chosen.begin(), chosen.end());
    own_matrices(parameter, chosen);
  }

  void place(int parameter) {
    int least = 0;
    for (int rank = 1; rank < options_.world_size; ++rank) {
      if (load_[rank] < load_[least]) least = rank;
    }
    owners[parameter].assign(parameters_[parameter].rows(), least);
    load_[least] += parameters_[parameter].elements();
  }

  PlanOptions options_;
  std::vector<ParameterSpec> parameters_;
  std::vector<int64_t> load_;
};

/// The plan's owners; fails where a row has two, or is outside its parameter.
Owners owners_of(const ShardPlan& plan) {
  Owners owners;
  for (const ParameterSpec& parameter : plan.parameters) {
    owners.emplace_back(parameter.elements() == 0 ? 0 : parameter.rows(), -1);
  }
  for (const Bucket& bucket : plan.buckets) {
    for (int rank = 0; rank < plan.options.world_size; ++rank) {
      for (const Segment& segment : bucket.segments[rank]) {
        for (int64_t row = segment.range.row_begin; row < segment.range.row_end; ++row) {
          EXPECT_EQ(owners.at(segment.parameter).at(row), -1) << "a row with two owners";
          owners.at(segment.parameter).at(row) = rank;
        }
      }
    }
  }
  return owners;
}

/// Segments of a bucket lie one after the other, in the bucket's own order, and describe their parameter.
void check_layout(const ShardPlan& plan, const Bucket& bucket) {
  int64_t before = 0;
  for (int rank = 0; rank < plan.options.world_size; ++rank) {
    int64_t end = 0;
    for (const Segment& segment : bucket.segments[rank]) {
      const ParameterSpec& parameter = plan.parameters[segment.parameter];
      EXPECT_EQ(segment.offset, end);
      EXPECT_GT(segment.range.rows(), 0);
      EXPECT_EQ(segment.range.rows_total, parameter.rows());
      EXPECT_EQ(segment.range.columns, parameter.columns());
      EXPECT_EQ(segment.range.is_vector, parameter.shape.size() < 2);
      const bool is_stack =
          parameter.shape.size() > 2 && parameter.matrix_view == MatrixView::last_two;
      EXPECT_EQ(segment.range.matrix_rows, is_stack ? *(parameter.shape.end() - 2) : 0);
      EXPECT_EQ(parameter.type, bucket.type);
      const BucketRange& buckets = plan.buckets_of[segment.parameter];
      EXPECT_GE(&bucket, &plan.buckets[buckets.begin]);
      EXPECT_LE(&bucket, &plan.buckets[buckets.end - 1]);
      end += segment.range.elements();
    }
    EXPECT_EQ(bucket.counts[rank], end);
    EXPECT_EQ(bucket.offsets[rank], before);
    before += end;
  }
  EXPECT_EQ(bucket.elements(), before);
}

/// Every rank's rows of a parameter, dealt out to its parts, travel in its buckets in this order, and are one range together.
void check_parts(const ShardPlan& plan, int parameter, const std::vector<int>& owners) {
  const ParameterSpec& spec = plan.parameters[parameter];
  const int64_t unit = is_stack(spec) ? *(spec.shape.end() - 2) : 1;
  const BucketRange& buckets = plan.buckets_of[parameter];
  EXPECT_EQ(buckets.size(), dumb_parts(spec, plan.options));
  for (int rank = 0; rank < plan.options.world_size; ++rank) {
    const auto rows = std::count(owners.begin(), owners.end(), rank);
    int64_t row = std::find(owners.begin(), owners.end(), rank) - owners.begin();
    std::vector<OwnedRange> owned = owned_ranges(plan, rank);
    std::erase_if(owned, [&](const OwnedRange& range) { return range.parameter != parameter; });
    ASSERT_EQ(owned.size(), rows > 0 ? 1u : 0u);
    if (rows == 0) continue;
    EXPECT_EQ(owned[0].range.row_begin, row);
    EXPECT_EQ(owned[0].range.rows(), rows);
    const std::vector<int> parts = deal(static_cast<size_t>(rows / unit), buckets.size());
    for (int part = 0; part < buckets.size(); ++part) {
      for (const Segment& segment : plan.buckets[buckets.begin + part].segments[rank]) {
        if (segment.parameter != parameter) continue;
        EXPECT_EQ(segment.range.row_begin, row);
        EXPECT_EQ(segment.range.rows(), unit * std::count(parts.begin(), parts.end(), part));
        row = segment.range.row_end;
      }
    }
  }
}

/// How far the ranks' shares of a pack, or of a split matrix, lie apart.
int64_t spread(const std::vector<int64_t>& shares) {
  return *std::max_element(shares.begin(), shares.end()) -
         *std::min_element(shares.begin(), shares.end());
}

void check_balance(const ShardPlan& plan, const Owners& owners) {
  for (const Bucket& bucket : plan.buckets) {
    std::vector<std::vector<int64_t>> packs(3, std::vector<int64_t>(plan.options.world_size));
    for (int p : bucket.parameters) {
      std::vector<int64_t> rows(plan.options.world_size);
      for (int rank : owners[p]) {
        ++rows[rank];
        if (plan.slices[p] == SliceKind::flattened) ++packs[plan.parameters[p].group][rank];
      }
      if (plan.slices[p] == SliceKind::row_sharded) {
        EXPECT_LE(spread(rows), 1);
        EXPECT_GE(*std::min_element(rows.begin(), rows.end()), plan.options.min_rows_per_rank);
      }
      if (plan.slices[p] == SliceKind::single_owner) {
        EXPECT_EQ(std::count(rows.begin(), rows.end(), 0), plan.options.world_size - 1);
      }
    }
    for (const auto& pack : packs) EXPECT_LE(spread(pack), 1);
  }
}

std::vector<std::vector<int>> parameters_of(const std::vector<Bucket>& buckets) {
  std::vector<std::vector<int>> parameters;
  for (const Bucket& bucket : buckets) parameters.push_back(bucket.parameters);
  return parameters;
}

void check_plan(const ShardPlan& plan, const DumbPlan& dumb) {
  const Owners owners = owners_of(plan);
  EXPECT_EQ(owners, dumb.owners);
  EXPECT_EQ(parameters_of(plan.buckets), dumb.buckets);
  EXPECT_EQ(plan.load, dumb.load());
  for (const Bucket& bucket : plan.buckets) check_layout(plan, bucket);
  check_balance(plan, owners);
  for (size_t p = 0; p < plan.parameters.size(); ++p) {
    EXPECT_EQ(plan.buckets_of[p].empty(), plan.parameters[p].elements() == 0);
    if (!plan.buckets_of[p].empty()) check_parts(plan, static_cast<int>(p), owners[p]);
    EXPECT_EQ(std::count(owners[p].begin(), owners[p].end(), -1), 0) << "a row without an owner";
  }
}

TEST(ShardPlanRandom, DealsRowsAsTheDumbPlanDoes) {
  const uint64_t seed = test_seed();
  Random random(seed);
  for (int model = 0; model < kModels && !testing::Test::HasFailure(); ++model) {
    SCOPED_TRACE("seed " + std::to_string(seed) + " model " + std::to_string(model));
    const PlanOptions options = random_plan_options(random);
    const auto parameters = random_model(random, "p", 30);
    const ShardPlan plan = make_plan(parameters, options);
    DumbPlan dumb(options);
    dumb.append(parameters);
    check_plan(plan, dumb);
    EXPECT_EQ(digest(plan), digest(make_plan(parameters, options)));
    LoadForecast forecast(parameters, options.bucket_bytes);
    EXPECT_EQ(forecast.loads(options), plan.load);
  }
}

TEST(ShardPlanRandom, AppendMovesNothing) {
  const uint64_t seed = test_seed();
  Random random(seed);
  for (int model = 0; model < kModels / 4 && !testing::Test::HasFailure(); ++model) {
    SCOPED_TRACE("seed " + std::to_string(seed) + " model " + std::to_string(model));
    const PlanOptions options = random_plan_options(random);
    ShardPlan plan = make_plan({}, options);
    DumbPlan dumb(options);
    for (int portion = 0; portion < 4; ++portion) {
      const Owners before = owners_of(plan);
      const auto buckets_before = parameters_of(plan.buckets);
      const auto added = random_model(random, std::to_string(portion) + ".", 10);
      plan.append(added);
      dumb.append(added);
      check_plan(plan, dumb);
      const Owners after = owners_of(plan);
      const auto buckets_after = parameters_of(plan.buckets);
      ASSERT_GE(after.size(), before.size());
      EXPECT_TRUE(std::equal(before.begin(), before.end(), after.begin()));
      ASSERT_GE(buckets_after.size(), buckets_before.size());
      EXPECT_TRUE(std::equal(buckets_before.begin(), buckets_before.end(), buckets_after.begin()));
    }
  }
}

TEST(LoadForecast, LooksAtLittleForAThousandRanksAndParameters) {
  // None of 1,000 matrices can be split over 512 ranks and more, so all worlds down to there are tried.
  constexpr int kRanks = 1024, kParameters = 1000;
  std::vector<ParameterSpec> parameters;
  for (int p = 0; p < kParameters; ++p) parameters.push_back({std::to_string(p), {2047, 64}});
  const ShardPlan plan = make_plan(parameters, {.world_size = kRanks});
  ASSERT_TRUE(plan.warning().has_value());
  LoadForecast forecast(parameters, plan.options.bucket_bytes);
  for (int ranks = kRanks - 1; ranks >= 2; --ranks) forecast.loads({.world_size = ranks});
  // Making plans instead would look at kRanks·kRanks·kParameters/2 = 5e8 segments.
  EXPECT_LE(forecast.operations(), int64_t{kRanks} * (2 * kParameters + kRanks));
}

}  // namespace
}  // namespace fusedbun::plan
