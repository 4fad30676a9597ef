#include "fusedbun/dist/step/same_start.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/records.h"

namespace fusedbun {
namespace {

std::string broadcast_text(comm::Communicator& host, std::string text) {
  int64_t size = static_cast<int64_t>(text.size());
  host.broadcast(comm::Buffer::of(std::span(&size, 1)), 0).wait();
  text.resize(size);
  if (size > 0) host.broadcast({text.data(), size, comm::DataType::u8}, 0).wait();
  return text;
}

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = text.find('\n', begin);
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

/// What one rank says of its first difference; plain memory, exchanged once.
struct Difference {
  int64_t line = -1;  ///< -1: none
  char text[248] = {};
};

Difference first_difference(std::span<const std::string> mine,
                            std::span<const std::string> theirs) {
  const size_t common = std::min(mine.size(), theirs.size());
  Difference difference;
  for (size_t i = 0; i < std::max(mine.size(), theirs.size()); ++i) {
    if (i < common && mine[i] == theirs[i]) continue;
    difference.line = static_cast<int64_t>(i);
    const std::string own = i < mine.size() ? mine[i] : "nothing";
    std::strncpy(difference.text, own.c_str(), sizeof(difference.text) - 1);
    break;
  }
  return difference;
}

}  // namespace

void require_same_on_all_ranks(comm::Communicator& host, std::span<const std::string> lines) {
  if (host.size() == 1) return;
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  const std::vector<std::string> first = split_lines(broadcast_text(host, text));

  const std::vector<Difference> all = comm::gather_records(host, first_difference(lines, first));
  for (int rank = 0; rank < host.size(); ++rank) {
    const Difference& theirs = all[rank];
    if (theirs.line < 0) continue;
    const size_t line = static_cast<size_t>(theirs.line);
    const std::string expected = line < first.size() ? first[line] : "nothing";
    throw ConfigError(
        "rank " + std::to_string(rank) + " has '" + theirs.text + "' where rank 0 has '" +
        expected +
        "': all ranks must build the same model with the same options in the same order");
  }
}

}  // namespace fusedbun
