#pragma once
// StepHeader: 64 bytes that every rank tells every other once per job step, off the critical path,
// and the verdict on them.
//
// A rank sends the header of step k at the end of step k and reads the others' in step k + 1.
// Fields that must be equal are compared; rank 0's `newest_revision` announces changes whose
// content is then broadcast once.
//
// Thread safety: values.
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace fusedbun::plan {

struct StepHeader {
  int64_t job_step = 0;         ///< must be equal
  int64_t active_revision = 0;  ///< newest change in use in this step; must be equal
  int64_t newest_revision = 0;  ///< newest change rank 0 has accepted; only rank 0's is read
  uint64_t chain_hash = 0;      ///< of all changes known here; must be equal
  uint64_t state_digest = 0;    ///< of step counts and effective hyperparameters; must be equal
  int64_t skipped_steps = 0;    ///< must be equal
  uint32_t flags = 0;           ///< kLeaving, kStopping, kSaving, kPausing
  uint32_t rank = 0;            ///< sender, equal to its place
  int64_t reserved = 0;         ///< 0

  static constexpr uint32_t kLeaving = 1;   ///< this rank was asked to leave after the next step
  static constexpr uint32_t kStopping = 2;  ///< the same, for good (StopJob)
  static constexpr uint32_t kSaving = 4;    ///< it was asked for a checkpoint after the next step
  static constexpr uint32_t kPausing = 8;   ///< it was asked to hold the job after the next step
};
static_assert(sizeof(StepHeader) == 64);

/// One sentence naming the ranks and the field that differ ("rank 2 is in job step 41 where rank 0
/// is in 40"), or nothing.
std::optional<std::string> disagreement(std::span<const StepHeader> headers);

}  // namespace fusedbun::plan
