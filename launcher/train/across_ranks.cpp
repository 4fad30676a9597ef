#include "fusedbun/launcher/train/across_ranks.h"

#include <numeric>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/records.h"

namespace fusedbun::train {

std::vector<double> sum_over_ranks(comm::Communicator& host, std::vector<double> values) {
  host.all_reduce(comm::Buffer::of(std::span(values)), comm::ReduceOp::sum).wait();
  return values;
}

void require_same_start(comm::Communicator& host, const std::vector<StartFact>& facts) {
  for (const StartFact& fact : facts) {
    const std::vector<int64_t> all = comm::gather_records(host, fact.value);
    for (size_t rank = 1; rank < all.size(); ++rank) {
      FUSEDBUN_REQUIRE(all[rank] == all[0], ConfigError,
                       fact.name + " is not the same on rank " + std::to_string(rank) +
                           " as on rank 0: start all ranks with the same flags and the same text");
    }
  }
}

std::vector<std::string> gather_texts(comm::Communicator& host, const std::string& text) {
  const comm::Counts lengths = comm::gather_records(host, static_cast<int64_t>(text.size()));
  std::string all(std::accumulate(lengths.begin(), lengths.end(), size_t{0}), '\0');
  host.all_gather(
          {const_cast<char*>(text.data()), static_cast<int64_t>(text.size()), comm::DataType::u8},
          {all.data(), static_cast<int64_t>(all.size()), comm::DataType::u8}, lengths)
      .wait();
  std::vector<std::string> texts;
  size_t begin = 0;
  for (const int64_t length : lengths) {
    texts.push_back(all.substr(begin, length));
    begin += length;
  }
  return texts;
}

}  // namespace fusedbun::train
