#pragma once
// Small plain structs that ranks tell each other, as bytes: every rank is the same program.
//
// Thread safety: as the communicator's. Collective.
#include <cstdint>
#include <type_traits>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

/// [rank] -> that rank's record.
template <class Record>
std::vector<Record> gather_records(Communicator& host, const Record& mine) {
  static_assert(std::is_trivially_copyable_v<Record>);
  constexpr auto kBytes = static_cast<int64_t>(sizeof(Record));
  std::vector<Record> all(static_cast<size_t>(host.size()));
  host.all_gather({const_cast<Record*>(&mine), kBytes, DataType::u8},
                  {all.data(), kBytes * host.size(), DataType::u8}, Counts(host.size(), kBytes))
      .wait();
  return all;
}

/// Rank 0's record, on every rank.
template <class Record>
Record broadcast_record(Communicator& host, Record of_rank_0) {
  static_assert(std::is_trivially_copyable_v<Record>);
  host.broadcast({&of_rank_0, static_cast<int64_t>(sizeof(Record)), DataType::u8}, 0).wait();
  return of_rank_0;
}

}  // namespace fusedbun::comm
