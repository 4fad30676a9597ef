#pragma once
// Frame: what ranks tell each other over the heartbeat connection. On the wire: 8 bytes of header (bytes of the body,
// kind, version), then the body, numbers as they are in memory (all ranks of a job are built alike), texts cut to
// fixed lengths.
//
// Invariants: 1. What comes in is not believed: a length, kind, version or cause that cannot be is a DataError. 2.
// Nothing is allocated for a body longer than kBodyBytesMax.
//
// Thread safety: values and functions without state.
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "fusedbun/dist/plan/rank_status.h"
#include "fusedbun/dist/plan/rank_watch.h"

namespace fusedbun::health {

/// Used once, so that no proof can be repeated.
using Nonce = std::array<uint8_t, 16>;
/// HMAC-SHA-256 (proof.h).
using Proof = std::array<uint8_t, 32>;

/// Who a rank is; does not change.
struct RankInfo {
  int rank = 0;
  int local_rank = 0;
  int64_t pid = 0;
  std::string host = {};    ///< at most 63 bytes travel
  std::string device = {};  ///< "cpu" or "cuda:N"

  bool operator==(const RankInfo&) const = default;
};

/// Rank 0's first frame to a process that connects.
struct Challenge {
  Nonce nonce = {};

  bool operator==(const Challenge&) const = default;
};

/// The answer, and all that is read of a connection before its proof was checked.
struct Hello {
  RankInfo info = {};
  Nonce nonce = {};
  Proof proof = {};  ///< that the sender knows the token

  bool operator==(const Hello&) const = default;
};

/// Rank 0's answer to a Hello that proves itself. From here on the others.
struct Welcome {
  Proof proof = {};  ///< that rank 0 knows the token too

  bool operator==(const Welcome&) const = default;
};

struct Beat {
  plan::RankPosition position = {};
  uint64_t state_digest = 0;
  int64_t shard_bytes = 0;  ///< optimizer state of this rank
  plan::RankUsage usage = {};

  bool operator==(const Beat&) const = default;
};

/// I leave cleanly.
struct Bye {
  bool operator==(const Bye&) const = default;
};

/// Rank 0 to all others (plan::RankOrders).
struct Order {
  enum class Kind : uint8_t { dump = 0, exit = 1 };
  static constexpr size_t kTextBytesMax = 895;

  Kind kind = Kind::dump;
  uint64_t number = 0;    ///< of a dump; the answer carries it
  int code = 0;           ///< of an exit
  std::string text = {};  ///< the folder, or the reason; cut to kTextBytesMax

  bool operator==(const Order&) const = default;
};

/// To rank 0: a dump is written, or why it is not.
struct OrderAnswer {
  uint64_t number = 0;
  std::string problem = {};

  bool operator==(const OrderAnswer&) const = default;
};

/// plan::LostRank: the job cannot go on. Of another rank, of the receiver, or, as `failed`, of the sender.
using Frame =
    std::variant<Challenge, Hello, Welcome, Beat, plan::LostRank, Bye, Order, OrderAnswer>;

inline constexpr size_t kHeaderBytes = 8;
inline constexpr size_t kBodyBytesMax = 1024;
// On the wire:
inline constexpr size_t kHelloBytes = kHeaderBytes + 144;
inline constexpr size_t kWelcomeBytes = kHeaderBytes + sizeof(Welcome);

std::string encode(const Frame& frame);
/// Takes the first whole frame off the front of `bytes`; nothing while it is not whole. Throws DataError.
std::optional<Frame> take_frame(std::string& bytes);

}  // namespace fusedbun::health
