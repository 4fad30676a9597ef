#pragma once
// Collectives of small objects and texts, outside the hot path: what ranks tell one another when they connect, start,
// compare and fail. Objects travel as bytes (every rank is the same program), texts with any bytes and of any length.
//
// All are collective: every rank calls the same one at the same place of the communicator's program order, and waits
// for it. Each throws what a wait of `host` throws (PeerLostError, TimeoutError).
//
// Thread safety: as the communicator's.
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

/// [rank] -> that rank's object.
template <class Object>
std::vector<Object> all_gather_object(Communicator& host, const Object& mine) {
  static_assert(std::is_trivially_copyable_v<Object>);
  constexpr auto kBytes = static_cast<int64_t>(sizeof(Object));
  std::vector<Object> all(static_cast<size_t>(host.size()));
  host.all_gather({const_cast<Object*>(&mine), kBytes, DataType::u8},
                  {all.data(), kBytes * host.size(), DataType::u8}, Counts(host.size(), kBytes))
      .wait();
  return all;
}

/// The object of rank `root`, on every rank. The others' arguments are not read.
template <class Object>
Object broadcast_object(Communicator& host, Object object, int root) {
  static_assert(std::is_trivially_copyable_v<Object>);
  host.broadcast({&object, static_cast<int64_t>(sizeof(Object)), DataType::u8}, root).wait();
  return object;
}

/// [rank] -> that rank's text. Two all_gathers.
std::vector<std::string> all_gather_text(Communicator& host, std::string_view mine);

/// The text of rank `root`, on every rank. Two broadcasts, or one if it is empty.
std::string broadcast_text(Communicator& host, std::string text, int root);
/// The texts of rank `root`, on every rank, at the cost of one text.
std::vector<std::string> broadcast_texts(Communicator& host, const std::vector<std::string>& texts,
                                         int root);

/// Before all ranks throw the same error: the first to leave breaks the connections over which another may still be hearing
/// why. Collective; what fails here does not matter any more.
void wait_until_all_have_heard(Communicator& host) noexcept;

/// Throws ConfigError on every rank unless all ranks have rank 0's lines. It names the first rank that differs, that rank's
/// first different line beside rank 0's, and ends with `advice`: "rank 1 has 'x' where rank 0 has 'y': <advice>".
void verify_equal_across_ranks(Communicator& host, std::span<const std::string> lines,
                               std::string_view advice);

/// Runs `action`, which calls no collective, on this rank. If it threw on any rank, all ranks throw the error of the
/// lowest such rank: the same type and sentence. An exception that is not a fusedbun::Error arrives as
/// Error(unclassified).
void rethrow_on_all_ranks(Communicator& host, const std::function<void()>& action);

}  // namespace fusedbun::comm
