#include "fusedbun/dist/plan/shard_plan.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <set>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

/// Range `index` of `total` things cut into `parts` ranges as even as possible, longer ones first.
std::pair<int64_t, int64_t> even_range(int64_t total, int64_t parts, int64_t index) {
  const int64_t longer = total % parts;
  const int64_t begin = index * (total / parts) + std::min(index, longer);
  return {begin, begin + total / parts + (index < longer ? 1 : 0)};
}

void check_parameters(const std::vector<ParameterSpec>& present,
                      std::span<const ParameterSpec> added) {
  std::set<std::string_view> names;
  for (const ParameterSpec& parameter : present) names.insert(parameter.name);
  for (const ParameterSpec& parameter : added) {
    FUSEDBUN_REQUIRE(names.insert(parameter.name).second, ConfigError,
                     "two parameters are named '" + parameter.name + "': give each its own name");
    FUSEDBUN_REQUIRE(
        std::ranges::all_of(parameter.shape, [](int64_t dimension) { return dimension >= 0; }),
        ConfigError, "parameter " + line_of(parameter) + " has a negative dimension");
    FUSEDBUN_REQUIRE(parameter.group >= 0, ConfigError,
                     "parameter " + line_of(parameter) + " has a negative group");
  }
}

/// Who owns what of the parameters being appended: [parameter - first][rank] ranges of rows, then
/// laid out by buckets.
class Assignment {
 public:
  explicit Assignment(ShardPlan& plan) : plan_(plan), world_size_(plan.options.world_size) {}

  void assign(int bucket_begin) {
    const int bucket_end = static_cast<int>(plan_.buckets.size());
    for (int b = bucket_begin; b < bucket_end; ++b) {
      assign_packs(plan_.buckets[b]);
      for (int parameter : plan_.buckets[b].parameters) {
        if (plan_.buckets_of[parameter].begin != b) continue;  // a later part of a spread one
        if (plan_.slices[parameter] == SliceKind::row_sharded) assign_split(parameter);
        if (is_even_stack(parameter)) assign_stack(parameter);
      }
    }
    assign_wholes(bucket_begin);
    for (int b = bucket_begin; b < bucket_end; ++b) lay_out(b);
  }

 private:
  void own(int rank, int parameter, std::pair<int64_t, int64_t> rows) {
    RowRange range = plan_.parameters[parameter].all_rows();
    range.row_begin = rows.first;
    range.row_end = rows.second;
    owned_[parameter].emplace_back(rank, range);
    plan_.load[rank] += range.elements();
  }

  void assign_split(int parameter) {
    const int64_t rows = plan_.parameters[parameter].rows();
    for (int rank = 0; rank < world_size_; ++rank)
      own(rank, parameter, even_range(rows, world_size_, rank));
  }

  /// True for a stack of at least as many matrices as ranks.
  bool is_even_stack(int parameter) const {
    return plan_.slices[parameter] == SliceKind::stacked &&
           plan_.parameters[parameter].stacked_matrices() >= world_size_;
  }

  void assign_stack(int parameter) {
    const RowRange all = plan_.parameters[parameter].all_rows();
    for (int rank = 0; rank < world_size_; ++rank) {
      const auto [begin, end] = even_range(all.matrices(), world_size_, rank);
      own(rank, parameter, {begin * all.matrix_rows, end * all.matrix_rows});
    }
  }

  /// Fewer matrices than ranks: one each to the least loaded, in the order of ranks.
  void assign_short_stack(int parameter) {
    const RowRange all = plan_.parameters[parameter].all_rows();
    std::vector<int> ranks(world_size_);
    std::iota(ranks.begin(), ranks.end(), 0);
    std::ranges::stable_sort(ranks, {}, [&](int rank) { return plan_.load[rank]; });
    ranks.resize(all.matrices());
    std::ranges::sort(ranks);
    for (size_t i = 0; i < ranks.size(); ++i) {
      const int64_t begin = static_cast<int64_t>(i) * all.matrix_rows;
      own(ranks[i], parameter, {begin, begin + all.matrix_rows});
    }
  }

  /// The vectors of each group laid end to end are cut into W ranges; a range may hold parts of
  /// several vectors.
  void assign_packs(const Bucket& bucket) {
    std::map<int, std::vector<int>> packs;  // by group
    for (int parameter : bucket.parameters) {
      if (plan_.slices[parameter] == SliceKind::flattened)
        packs[plan_.parameters[parameter].group].push_back(parameter);
    }
    for (const auto& [group, members] : packs) {
      int64_t total = 0;
      for (int parameter : members) total += plan_.parameters[parameter].elements();
      int64_t member_begin = 0;
      for (int parameter : members) {
        const int64_t size = plan_.parameters[parameter].elements();
        for (int rank = 0; rank < world_size_; ++rank) {
          const auto [begin, end] = even_range(total, world_size_, rank);
          const int64_t first = std::max(begin - member_begin, int64_t{0});
          const int64_t last = std::min(end - member_begin, size);
          if (first < last) own(rank, parameter, {first, last});
        }
        member_begin += size;
      }
    }
  }

  /// Last, because only they can even out what the others left; largest first, because a large one
  /// placed late cannot be evened out any more (Graham's longest-processing-time rule).
  void assign_wholes(int bucket_begin) {
    std::vector<int> wholes;
    for (size_t b = bucket_begin; b < plan_.buckets.size(); ++b) {
      std::ranges::copy_if(
          plan_.buckets[b].parameters, std::back_inserter(wholes), [&](int parameter) {
            return plan_.slices[parameter] == SliceKind::single_owner ||
                   (plan_.slices[parameter] == SliceKind::stacked && !is_even_stack(parameter));
          });
    }
    std::ranges::stable_sort(wholes, std::ranges::greater{},
                             [&](int parameter) { return plan_.parameters[parameter].elements(); });
    for (int parameter : wholes) {
      if (plan_.slices[parameter] == SliceKind::stacked) {
        assign_short_stack(parameter);
        continue;
      }
      const auto least = std::ranges::min_element(plan_.load);
      own(static_cast<int>(least - plan_.load.begin()), parameter,
          {0, plan_.parameters[parameter].rows()});
    }
  }

  /// The rows of `owned` that travel in a bucket: all, or the bucket's part of them; a matrix of a stack is in one part.
  RowRange part_of(const RowRange& owned, int parameter, int bucket) const {
    const BucketRange& buckets = plan_.buckets_of[parameter];
    const int64_t unit = std::max<int64_t>(owned.matrix_rows, 1);
    const auto [begin, end] =
        even_range(owned.rows() / unit, buckets.size(), bucket - buckets.begin);
    RowRange part = owned;
    part.row_begin = owned.row_begin + begin * unit;
    part.row_end = owned.row_begin + end * unit;
    return part;
  }

  void lay_out(int index) {
    Bucket& bucket = plan_.buckets[index];
    bucket.segments.resize(world_size_);
    bucket.counts.assign(world_size_, 0);
    for (int parameter : bucket.parameters) {
      for (const auto& [rank, owned] : owned_[parameter]) {
        const RowRange range = part_of(owned, parameter, index);
        bucket.segments[rank].push_back(
            {.parameter = parameter, .range = range, .offset = bucket.counts[rank]});
        bucket.counts[rank] += range.elements();
      }
    }
    bucket.offsets.assign(world_size_, 0);
    for (int rank = 1; rank < world_size_; ++rank) {
      bucket.offsets[rank] = bucket.offsets[rank - 1] + bucket.counts[rank - 1];
    }
  }

  ShardPlan& plan_;
  const int world_size_;
  std::map<int, std::vector<std::pair<int, RowRange>>> owned_;  // [parameter] (rank, rows)
};

/// Over how many buckets a parameter is spread: as many as it fills, if every rank has a row (a matrix of a stack) for each.
int64_t parts_of(const ParameterSpec& parameter, const PlanOptions& options) {
  int64_t units = 0;  // that the rank with the fewest owns
  const SliceKind slice = slice_of(parameter, options);
  if (slice == SliceKind::row_sharded) units = parameter.rows() / options.world_size;
  if (slice == SliceKind::stacked) units = parameter.stacked_matrices() / options.world_size;
  const int64_t bytes = parameter.elements() * arithmetic_bytes_of(parameter.type);
  return std::max<int64_t>(std::min(units, bytes / options.bucket_bytes), 1);
}

/// Buckets over the parameters from `first` on, last registered first, one open bucket per element
/// type. Gradients are expected in that order, so a bucket is complete when its last parameter is:
/// that orders the buckets.
std::vector<Bucket> fill_buckets(const ShardPlan& plan, int first) {
  std::vector<Bucket> closed;
  std::map<ElementType, Bucket> open;
  std::map<ElementType, int64_t> open_bytes;
  const auto close = [&](ElementType type) {
    closed.push_back(std::move(open.extract(type).mapped()));
    open_bytes.erase(type);
  };
  for (int parameter = static_cast<int>(plan.parameters.size()) - 1; parameter >= first;
       --parameter) {
    const ParameterSpec& spec = plan.parameters[parameter];
    if (spec.elements() == 0) continue;
    const int64_t parts = parts_of(spec, plan.options);
    for (int64_t part = 0; part < parts; ++part) {
      Bucket& bucket = open[spec.type];
      bucket.type = spec.type;
      bucket.parameters.push_back(parameter);
      // One of several parts is large enough to close its bucket.
      open_bytes[spec.type] += spec.elements() * arithmetic_bytes_of(spec.type) / parts;
      if (open_bytes[spec.type] >= plan.options.bucket_bytes) close(spec.type);
    }
  }
  while (!open.empty()) close(open.begin()->first);
  std::ranges::stable_sort(closed, std::ranges::greater{},
                           [](const Bucket& bucket) { return bucket.parameters.back(); });
  return closed;
}

}  // namespace

SliceKind slice_of(const ParameterSpec& parameter, const PlanOptions& options) {
  if (parameter.is_vector()) return SliceKind::flattened;
  if (parameter.stacked_matrices() > 0) return SliceKind::stacked;
  // Divided, not multiplied: min_rows_per_rank may be huge, to keep every matrix whole.
  return parameter.rows() / options.world_size >= options.min_rows_per_rank
             ? SliceKind::row_sharded
             : SliceKind::single_owner;
}

int64_t Bucket::elements() const {
  return offsets.back() + counts.back();
}

void ShardPlan::append(std::span<const ParameterSpec> added) {
  check_parameters(parameters, added);
  const int first_parameter = static_cast<int>(parameters.size());
  const int first_bucket = static_cast<int>(buckets.size());
  parameters.insert(parameters.end(), added.begin(), added.end());
  for (const ParameterSpec& parameter : added) slices.push_back(slice_of(parameter, options));
  buckets_of.resize(parameters.size());
  std::ranges::move(fill_buckets(*this, first_parameter), std::back_inserter(buckets));
  for (int b = first_bucket; b < static_cast<int>(buckets.size()); ++b) {
    for (int parameter : buckets[b].parameters) {
      BucketRange& range = buckets_of[parameter];
      if (range.empty()) range.begin = b;
      range.end = b + 1;
    }
  }
  Assignment(*this).assign(first_bucket);
}

std::vector<OwnedRange> owned_ranges(const ShardPlan& plan, int rank, int first_bucket) {
  std::vector<OwnedRange> owned;
  for (int b = first_bucket; b < static_cast<int>(plan.buckets.size()); ++b) {
    for (const Segment& segment : plan.buckets[b].segments[rank]) {
      // A spread one ends its bucket, and its next part begins the next.
      if (b > plan.buckets_of[segment.parameter].begin) {
        FUSEDBUN_ASSERT(owned.back().parameter == segment.parameter &&
                            owned.back().range.row_end == segment.range.row_begin,
                        "the parts of a rank's rows follow one another");
        owned.back().range.row_end = segment.range.row_end;
      } else {
        owned.push_back({segment.parameter, segment.range});
      }
    }
  }
  return owned;
}

ShardPlan make_plan(std::span<const ParameterSpec> parameters, const PlanOptions& options) {
  const auto require_positive = [](std::string_view name, int64_t value) {
    FUSEDBUN_REQUIRE(value >= 1, ConfigError,
                     std::string(name) + " = " + std::to_string(value) + ": must be at least 1");
  };
  require_positive("world_size", options.world_size);
  require_positive("min_rows_per_rank", options.min_rows_per_rank);
  require_positive("bucket_bytes", options.bucket_bytes);
  ShardPlan plan;
  plan.options = options;
  plan.load.assign(options.world_size, 0);
  plan.append(parameters);
  return plan;
}

}  // namespace fusedbun::plan
