// The digest of a ShardPlan: ranks that compute different plans must find out before the first
// collective.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "fusedbun/dist/plan/shard_plan.h"

namespace fusedbun::plan {

uint64_t digest(const ShardPlan& plan) {
  std::string text;
  const auto number = [&](int64_t value) { text += std::to_string(value) + ' '; };
  number(plan.options.world_size);
  number(plan.options.min_rows_per_rank);
  number(plan.options.bucket_bytes);
  for (const ParameterSpec& parameter : plan.parameters) {
    number(static_cast<int64_t>(parameter.name.size()));  // a name may hold anything, line ends too
    text += line_of(parameter) + '\n';
  }
  // The layout follows from the parameters, unless ranks run different builds or appended in
  // different portions.
  for (const Bucket& bucket : plan.buckets) {
    for (int parameter : bucket.parameters) number(parameter);
    text += '\n';
    for (const auto& segments : bucket.segments) {
      for (const Segment& segment : segments) {
        number(segment.parameter);
        number(segment.range.row_begin);
        number(segment.range.row_end);
        number(segment.offset);
      }
      text += '\n';
    }
  }
  return XXH3_64bits(text.data(), text.size());
}

}  // namespace fusedbun::plan
