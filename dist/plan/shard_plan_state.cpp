// What a ShardPlan implies for stored state: its bytes, and where column statistics lie in the step
// message.
#include "fusedbun/core/error.h"
#include "fusedbun/dist/plan/shard_plan.h"

namespace fusedbun::plan {
namespace {

const Options& options_of(const ParameterSpec& parameter, std::span<const Options> group_options) {
  FUSEDBUN_ASSERT(static_cast<size_t>(parameter.group) < group_options.size(),
                  "no options for the group of " + line_of(parameter));
  return group_options[parameter.group];
}

/// Entries of one second moment kept for some rows: row means, column means, or everything.
int64_t second_moment_entries(const RowRange& range, Accumulator accumulator) {
  if (range.is_vector) return range.elements();
  switch (accumulator) {
    case Accumulator::full:
      return range.elements();
    case Accumulator::mean_col:
      return range.matrices() * range.columns;
    case Accumulator::mean:
    case Accumulator::sm3:
      return range.rows() + range.matrices() * range.columns;
  }
  FUSEDBUN_ASSERT(false, "an accumulator outside its enum");
  return 0;
}

// Of one element, beside a parameter whose type is narrower than the arithmetic's.
int64_t bytes_beyond(ElementType type, const Options& options) {
  if (type != ElementType::bf16 && type != ElementType::f16) return 0;
  switch (options.low_precision) {
    case LowPrecision::master:
      return 4;
    case LowPrecision::remainder:
      return 2;
    case LowPrecision::stochastic:
      return 0;
  }
  FUSEDBUN_ASSERT(false, "a low_precision outside its enum");
  return 0;
}

int64_t state_bytes_of(const RowRange& range, ElementType type, const Options& options) {
  const int64_t arithmetic_bytes = arithmetic_bytes_of(type);
  int64_t momentum_bytes = arithmetic_bytes;
  if (options.momentum_beta == 0) {
    momentum_bytes = 0;
  } else if (options.momentum_dtype == MomentumDtype::bf16) {
    momentum_bytes = 2;
  }
  const int64_t second_moments = options.prepare_hessian ? 2 : 1;
  return range.elements() * (momentum_bytes + bytes_beyond(type, options)) +
         second_moments * arithmetic_bytes * second_moment_entries(range, options.accumulator);
}

}  // namespace

int64_t state_bytes(const ShardPlan& plan, int rank, std::span<const Options> group_options) {
  int64_t bytes = 0;
  for (const auto& [parameter, range] : owned_ranges(plan, rank)) {
    const ParameterSpec& spec = plan.parameters[parameter];
    bytes += state_bytes_of(range, spec.type, options_of(spec, group_options));
  }
  return bytes;
}

ColumnLayout column_layout(const ShardPlan& plan, std::span<const Options> group_options) {
  const size_t count = plan.parameters.size();
  ColumnLayout layout{.sum_offset = std::vector<int64_t>(count, -1),
                      .max_offset = std::vector<int64_t>(count, -1),
                      .square_offset = std::vector<int64_t>(count, -1)};
  for (size_t p = 0; p < count; ++p) {
    const ParameterSpec& parameter = plan.parameters[p];
    const Options& options = options_of(parameter, group_options);
    const bool has_columns =
        plan.slices[p] == SliceKind::row_sharded && !plan.buckets_of[p].empty();
    if (!has_columns || options.accumulator == Accumulator::full) continue;
    const bool maxima = options.accumulator == Accumulator::sm3;
    int64_t& entries = maxima ? layout.max_entries : layout.sum_entries;
    (maxima ? layout.max_offset : layout.sum_offset)[p] = entries;
    entries += parameter.columns() * (options.prepare_hessian ? 2 : 1);
  }
  for (size_t p = 0; p < count; ++p) {
    const bool scaled = options_of(plan.parameters[p], group_options).scale_by_parameter_rms;
    if (scaled && !plan.buckets_of[p].empty()) layout.square_offset[p] = layout.sum_entries++;
  }
  return layout;
}

}  // namespace fusedbun::plan
