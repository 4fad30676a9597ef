#pragma once
// PositionBoard: where this rank stands, written by the training thread, read by whoever watches over the job. Two words, no
// lock: a reader may see a digest that is a step older than the position, nothing worse.
//
// Thread safety: one thread writes, any thread reads.
#include <atomic>
#include <cstdint>

#include "fusedbun/dist/plan/rank_position.h"

namespace fusedbun {

class PositionBoard {
 public:
  void put(const plan::RankPosition& position) noexcept {
    position_.store(plan::pack(position), std::memory_order_relaxed);
  }
  /// Within the job step at hand.
  void enter(plan::Phase phase) noexcept { put({.job_step = position().job_step, .phase = phase}); }
  void set_state_digest(uint64_t digest) noexcept {
    digest_.store(digest, std::memory_order_relaxed);
  }

  plan::RankPosition position() const noexcept {
    return plan::unpack(position_.load(std::memory_order_relaxed));
  }
  /// Of step counts and effective hyperparameters after the last step that ended; equal on all ranks.
  uint64_t state_digest() const noexcept { return digest_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> position_{0};
  std::atomic<uint64_t> digest_{0};
};

}  // namespace fusedbun
