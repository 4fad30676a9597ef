#pragma once
// RankPosition: where a rank stands within the job, small enough for one atomic word, so that the training thread
// tells it at no cost and a heartbeat carries it to the others.
//
// Thread safety: values.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fusedbun::plan {

/// What a rank is doing. The numbers travel between ranks.
enum class Phase : uint8_t {
  starting = 0,          ///< before its first step
  forward_backward = 1,  ///< the caller's own work between two steps: data, forward, backward
  reduce_scatter = 2,    ///< waits for the sum of a bucket's gradients
  agreement = 3,         ///< waits for what all ranks say of this step: finite, used, norm
  update = 4,            ///< steps its rows of a bucket
  all_gather = 5,        ///< waits for the other ranks' new rows of a bucket
  step_message = 6,      ///< header and column statistics between two steps
  idle = 7,              ///< its last step is done
  save = 8,              ///< writes files
  validate = 9,          ///< the loss on text or images held back
  paused = 10,           ///< held between two steps, on request
};

inline constexpr int kPhaseCount = 11;

/// In these phases nobody expects a step to end: a rank is not stalled, however long they last.
bool takes_no_steps(Phase phase);

/// "forward_backward", as the contract spells it.
std::string_view name_of(Phase phase);
std::optional<Phase> find_phase(uint8_t number);

struct RankPosition {
  static constexpr int kNoBucket = -1;
  static constexpr int kBucketMax = 0xFFFE;

  int64_t job_step = 0;  ///< it is in this job step; at most 2^40 - 1
  Phase phase = Phase::starting;
  int bucket =
      kNoBucket;  ///< the one that the phase is about; those above kBucketMax are told as that

  bool operator==(const RankPosition&) const = default;
};

uint64_t pack(const RankPosition& position);
RankPosition unpack(uint64_t word);

/// "reduce_scatter of bucket 3, job step 41"
std::string describe(const RankPosition& position);

}  // namespace fusedbun::plan
