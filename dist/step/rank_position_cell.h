#pragma once
// RankPositionCell: where this rank stands, and how long it has been in each phase, written by the training thread, read by those who
// watch over the job. Words without a lock: a reader may see a digest or a time that is a phase older than the position, nothing worse.
//
// Thread safety: one thread writes, any thread reads.
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <ratio>
#include <type_traits>

#include "fusedbun/dist/plan/rank_position.h"

namespace fusedbun {

class RankPositionCell {
 public:
  void put(const plan::RankPosition& position) noexcept {
    const Clock::time_point now = Clock::now();
    std::atomic<int64_t>& spent = phase_ns_[static_cast<size_t>(this->position().phase)];
    spent.store(spent.load(std::memory_order_relaxed) + (now - entered_at_).count(),
                std::memory_order_relaxed);
    entered_at_ = now;
    position_.store(plan::pack(position), std::memory_order_relaxed);
  }
  /// Within this job step.
  void enter(plan::Phase phase) noexcept { put({.job_step = position().job_step, .phase = phase}); }
  void set_state_digest(uint64_t digest) noexcept {
    digest_.store(digest, std::memory_order_relaxed);
  }

  plan::RankPosition position() const noexcept {
    return plan::unpack(position_.load(std::memory_order_relaxed));
  }
  /// Of step counts and effective hyperparameters after the last step that ended; equal on all ranks.
  uint64_t state_digest() const noexcept { return digest_.load(std::memory_order_relaxed); }
  /// [Phase], of phases that have ended.
  std::array<int64_t, plan::kPhaseCount> phase_us() const noexcept {
    std::array<int64_t, plan::kPhaseCount> spent{};
    for (size_t phase = 0; phase < spent.size(); ++phase)
      spent[phase] = phase_ns_[phase].load(std::memory_order_relaxed) / 1000;
    return spent;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static_assert(std::is_same_v<Clock::period, std::nano>);

  std::atomic<uint64_t> position_{0};
  std::atomic<uint64_t> digest_{0};
  std::array<std::atomic<int64_t>, plan::kPhaseCount> phase_ns_{};
  Clock::time_point entered_at_ = Clock::now();  ///< the writer's
};

}  // namespace fusedbun
