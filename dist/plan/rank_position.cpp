#include "fusedbun/dist/plan/rank_position.h"

#include <algorithm>
#include <array>

namespace fusedbun::plan {
namespace {

// From the highest bit down: job step, bucket + 1, phase.
constexpr int kPhaseBits = 8;
constexpr int kBucketBits = 16;
constexpr uint64_t kStepMax = (uint64_t{1} << (64 - kBucketBits - kPhaseBits)) - 1;

constexpr std::array<std::string_view, kPhaseCount> kNames = {
    "starting", "forward_backward", "reduce_scatter", "agreement",
    "update",   "all_gather",       "step_message",   "idle",
    "save",     "validate",         "paused"};

}  // namespace

bool takes_no_steps(Phase phase) {
  return phase == Phase::starting || phase == Phase::idle || phase == Phase::save ||
         phase == Phase::validate || phase == Phase::paused;
}

std::string_view name_of(Phase phase) {
  return kNames.at(static_cast<size_t>(phase));
}

std::optional<Phase> find_phase(uint8_t number) {
  return number < kNames.size() ? std::optional(static_cast<Phase>(number)) : std::nullopt;
}

uint64_t pack(const RankPosition& position) {
  const auto step =
      std::min(static_cast<uint64_t>(std::max<int64_t>(position.job_step, 0)), kStepMax);
  const auto bucket = static_cast<uint64_t>(
      std::clamp(position.bucket, RankPosition::kNoBucket, RankPosition::kBucketMax) + 1);
  return (step << (kBucketBits + kPhaseBits)) | (bucket << kPhaseBits) |
         static_cast<uint64_t>(position.phase);
}

RankPosition unpack(uint64_t word) {
  const auto bucket = static_cast<int>((word >> kPhaseBits) & 0xFFFF);
  return {.job_step = static_cast<int64_t>(word >> (kBucketBits + kPhaseBits)),
          .phase = find_phase(static_cast<uint8_t>(word)).value_or(Phase::starting),
          .bucket = bucket - 1};
}

std::string describe(const RankPosition& position) {
  std::string text(name_of(position.phase));
  if (position.bucket != RankPosition::kNoBucket)
    text += " of bucket " + std::to_string(position.bucket);
  return text + ", job step " + std::to_string(position.job_step);
}

}  // namespace fusedbun::plan
