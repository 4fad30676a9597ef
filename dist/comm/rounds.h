#pragma once
// Rounds: a collective as point-to-point messages. What a rank sends, receives and computes, decided from the call
// alone; Gloo and MPI both carry these.
//
//   reduce_scatter   everybody sends each peer its portion; each adds what it got, in rank order; piece by piece, so
//                    that one piece is added up, in the cache, while the next one travels
//   all_gather       up to kDirectRanks, or long: every rank sends its portion to all; else portions double (Bruck):
//                    log2 W steps
//   all_reduce       short: up to kDirectRanks every rank sends all of it to all; else sums go up a binomial tree to
//                    rank 0 and come down (rank order holds), max and bit_or double (log2 W steps). Long:
//                    reduce_scatter, then all_gather, of equal portions
//   exchange         its messages
//   broadcast        a binomial tree
//   barrier          one byte from every rank to every other; above kDirectRanks in log2 W steps (dissemination)
//
// Invariants: 1. The messages between two ranks match in number, order and size if the two calls match. 2. Empty
// portions send nothing. 3. A round's memory is touched by its messages only until all of them have moved, then by
// `then` only.
//
// Thread safety: values and a pure function.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "fusedbun/dist/comm/call.h"

namespace fusedbun::comm {

/// Messages that travel at the same time, then a computation.
struct Round {
  /// Its messages need nothing that the rounds before it compute: they start as soon as the round kRoundsAhead places
  /// before it has moved.
  bool starts_early = false;
  std::vector<Message> sends;
  std::vector<Message> receives;
  std::function<void()> then;     ///< may be empty
  std::shared_ptr<void> owned{};  ///< memory of its messages that is not the caller's
};

/// all_reduce of more bytes than this goes in two rounds and moves less.
inline constexpr int64_t kShortAllReduceBytes = 64 * 1024;
/// Among so few ranks a short collective is one round trip between all pairs; among more, messages per rank grow with
/// log2 W.
inline constexpr int kDirectRanks = 8;
/// An all_gather of longer portions (on average) goes straight to all: its bytes count, not its messages.
inline constexpr int64_t kShortPortionBytes = 16 * 1024;
/// The piece of a portion that one round of a reduce_scatter carries.
inline constexpr int64_t kPieceBytes = 1024 * 1024;

/// How many rounds that start early travel beside the one that is waited for. With one, the line falls silent between
/// the end of a piece and the start of the next.
inline constexpr size_t kRoundsAhead = 4;

std::vector<Round> rounds_of(const CollectiveCall& call, int rank, int size);

}  // namespace fusedbun::comm
