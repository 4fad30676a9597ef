#pragma once
// ShardPlan: who owns which rows, and what travels together. A pure function of the parameters and
// the world size, so every rank computes the same plan alone.
//
// Words: a *segment* is rows of one parameter that one rank owns and that travel together. A *slice* says how a parameter
// is divided:
//   split  a matrix with at least min_rows_per_rank·W rows: W ranges of n/W rows, the first n mod W
//          one row longer
//   stack  the matrices of a parameter of three or more dimensions with matrix_view = last_two, never cut themselves: W even
//          ranges of them, or, where there are fewer than ranks, one on each of as many least loaded ranks, placed as the
//          whole ones
//   whole  a smaller matrix: all rows with the least loaded rank (in elements; ties: the lowest),
//          placed after the others, largest first
//   pack   the 0-D and 1-D parameters of one bucket and group laid end to end: W ranges of elements,
//          cut anywhere, the first ones one element longer
// A *bucket* is what travels in one collective: parameters of one type in reverse order of
// registration, closed when its gradients reach bucket_bytes. Its memory is rank-major: [rank 0's
// segments | rank 1's | ...], so one reduce-scatter and one all-gather serve it. Buckets leave in
// the order in which their last gradients are expected.
// A split matrix or stack of twice bucket_bytes or more is *spread* over consecutive buckets: the k-th of them carries the k-th
// part of every rank's rows, so a rank's rows stay one range while they are reduced, stepped and gathered part by part.
//
// Invariants: 1. Every row of every parameter belongs to exactly one segment. 2. Nothing is padded:
// portions of a bucket differ between ranks by what does not divide. 3. Zero-size parameters are in
// no slice. 4. A bucket holds one element type. 5. Appending parameters never moves existing
// segments. 6. The rows of a parameter that a rank owns are one range.
//
// Thread safety: values.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fusedbun/core/options.h"
#include "fusedbun/core/row_range.h"
#include "fusedbun/dist/plan/parameter_spec.h"

namespace fusedbun::plan {

struct PlanOptions {
  int world_size = 1;
  /// A matrix with fewer rows per rank than this stays whole.
  int64_t min_rows_per_rank = 4;
  /// A bucket is closed when its gradients reach this size; larger matrices are spread in parts of at least this size.
  int64_t bucket_bytes = 25 << 20;
};

enum class SliceKind : uint8_t { row_sharded, single_owner, flattened, stacked };

/// Rows of one parameter on one rank that travel in one bucket, and where they lie in the rank's portion of it.
struct Segment {
  int parameter = 0;  ///< index into ShardPlan::parameters
  RowRange range;
  int64_t offset = 0;  ///< elements from the start of the rank's portion
};

struct Bucket {
  ElementType type = ElementType::f32;
  std::vector<int> parameters;                 ///< in the order their gradients are expected
  std::vector<std::vector<Segment>> segments;  ///< [rank], in order of offset, without gaps
  std::vector<int64_t> counts;                 ///< [rank] elements of the rank's portion
  std::vector<int64_t> offsets;                ///< [rank] elements before the rank's portion

  int64_t elements() const;
};

/// Buckets [begin, end).
struct BucketRange {
  int begin = 0;
  int end = 0;

  int size() const { return end - begin; }
  bool empty() const { return begin == end; }
};

/// All rows of one parameter that one rank owns.
struct OwnedRange {
  int parameter = 0;
  RowRange range;
};

struct ShardPlan {
  PlanOptions options;
  std::vector<ParameterSpec> parameters;  ///< in order of registration
  std::vector<SliceKind> slices;          ///< [parameter]
  std::vector<BucketRange>
      buckets_of;  ///< [parameter] one, or those that it is spread over; none for zero-size ones
  std::vector<Bucket> buckets;  ///< in launch order
  std::vector<int64_t> load;    ///< [rank] elements owned

  /// Adds parameters (a late param group) in new buckets; existing ones stay as they are.
  void append(std::span<const ParameterSpec> added);

  /// The table a person would draw: buckets, slices, owners and why, elements per rank, and the
  /// warning if there is one.
  std::string describe() const;
  /// One sentence with a proposal where the busiest rank owns over 2 % more elements than the
  /// average; else nothing.
  std::optional<std::string> warning() const;
};

/// Throws ConfigError for a world size or option below 1, a negative dimension or group, or a name
/// used twice.
ShardPlan make_plan(std::span<const ParameterSpec> parameters, const PlanOptions& options);

/// What `rank` owns in the buckets from `first_bucket` on, in the order of buckets.
std::vector<OwnedRange> owned_ranges(const ShardPlan& plan, int rank, int first_bucket = 0);

/// How a parameter is divided.
SliceKind slice_of(const ParameterSpec& parameter, const PlanOptions& options);

/// Bytes of optimizer state rank `rank` holds under the plan, by the formula (t and message memory
/// not counted). `group_options[g]` are the options of group g.
int64_t state_bytes(const ShardPlan& plan, int rank, std::span<const Options> group_options);

/// Where the column statistics of split matrices lie in the step message: sums (float64) and, for
/// sm3, maxima (float64, exchanged as the integers of their bits). Offsets are -1 for parameters
/// that need none.
struct ColumnLayout {
  std::vector<int64_t> sum_offset;  ///< [parameter]
  std::vector<int64_t> max_offset;  ///< [parameter]
  /// One entry per parameter with scale_by_parameter_rms: the sum of the squares of its values;
  /// after the column sums.
  std::vector<int64_t> square_offset;
  int64_t sum_entries = 0;
  int64_t max_entries = 0;
};
ColumnLayout column_layout(const ShardPlan& plan, std::span<const Options> group_options);

/// One sentence about parameters of three or more dimensions that look like stacks of matrices (few rows of very many
/// columns, and matrices in their last two dimensions) and are seen as one matrix each; else nothing.
std::optional<std::string> matrix_view_advice(std::span<const ParameterSpec> parameters);

/// 64-bit digest (XXH3) of everything that must be equal on all ranks, and one line per parameter
/// to name a difference: "h.0.weight [512, 128] f32 group 0".
uint64_t digest(const ShardPlan& plan);
std::string line_of(const ParameterSpec& parameter);

}  // namespace fusedbun::plan
