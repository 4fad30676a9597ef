#include "fusedbun/dist/comm/object_collectives.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>

#include "fusedbun/core/error.h"

namespace fusedbun::comm {
namespace {

Buffer bytes_of_text(const std::string& text) {
  return {const_cast<char*>(text.data()), std::ssize(text), DataType::u8};
}

/// Each text behind its length.
std::string pack(std::span<const std::string> texts) {
  std::string packed;
  for (const std::string& text : texts) {
    const auto length = static_cast<uint64_t>(text.size());
    packed.append(reinterpret_cast<const char*>(&length), sizeof length).append(text);
  }
  return packed;
}

std::vector<std::string> unpack(std::string_view packed) {
  std::vector<std::string> texts;
  while (!packed.empty()) {
    uint64_t length = 0;
    FUSEDBUN_ASSERT(packed.size() >= sizeof length, "packed texts end inside a length");
    std::memcpy(&length, packed.data(), sizeof length);
    packed.remove_prefix(sizeof length);
    FUSEDBUN_ASSERT(packed.size() >= length, "packed texts end inside a text");
    texts.emplace_back(packed.substr(0, length));
    packed.remove_prefix(length);
  }
  return texts;
}

std::optional<Failure> capture_error(const std::function<void()>& action) {
  try {
    action();
    return std::nullopt;
  } catch (const Error& error) {
    return Failure{error.code(), error.what()};
  } catch (const std::exception& error) {
    return Failure{ExitCode::unclassified, error.what()};
  }
}

constexpr int64_t kEqual = -1;

int64_t first_difference(std::span<const std::string> mine, std::span<const std::string> theirs) {
  const auto [own, other] = std::ranges::mismatch(mine, theirs);
  return own == mine.end() && other == theirs.end() ? kEqual : own - mine.begin();
}

std::string line_at(std::span<const std::string> lines, int64_t index) {
  return index < std::ssize(lines) ? "'" + lines[static_cast<size_t>(index)] + "'" : "nothing";
}

}  // namespace

std::vector<std::string> all_gather_text(Communicator& host, std::string_view mine) {
  const Counts lengths = all_gather_object(host, static_cast<int64_t>(mine.size()));
  std::string all(std::accumulate(lengths.begin(), lengths.end(), size_t{0}), '\0');
  host.all_gather({const_cast<char*>(mine.data()), std::ssize(mine), DataType::u8},
                  bytes_of_text(all), lengths)
      .wait();
  std::vector<std::string> texts;
  size_t begin = 0;
  for (const int64_t length : lengths) {
    texts.push_back(all.substr(begin, static_cast<size_t>(length)));
    begin += static_cast<size_t>(length);
  }
  return texts;
}

std::string broadcast_text(Communicator& host, std::string text, int root) {
  const int64_t length = broadcast_object(host, static_cast<int64_t>(text.size()), root);
  text.resize(static_cast<size_t>(length));
  if (length > 0) host.broadcast(bytes_of_text(text), root).wait();
  return text;
}

std::vector<std::string> broadcast_texts(Communicator& host, const std::vector<std::string>& texts,
                                         int root) {
  return unpack(broadcast_text(host, host.rank() == root ? pack(texts) : "", root));
}

void wait_until_all_have_heard(Communicator& host) noexcept {
  try {
    host.barrier().wait();
  } catch (const std::exception&) {
    // A rank was faster: it has heard, and so has this one.
  }
}

void verify_equal_across_ranks(Communicator& host, std::span<const std::string> lines,
                               std::string_view advice) {
  if (host.size() == 1) return;
  const std::vector<std::string> expected = unpack(broadcast_text(host, pack(lines), 0));
  const std::vector<int64_t> differences =
      all_gather_object(host, first_difference(lines, expected));
  const auto differs =
      std::ranges::find_if(differences, [](int64_t line) { return line != kEqual; });
  if (differs == differences.end()) return;
  const auto rank = static_cast<int>(differs - differences.begin());
  const std::string theirs =
      broadcast_text(host, host.rank() == rank ? line_at(lines, *differs) : "", rank);
  wait_until_all_have_heard(host);
  throw ConfigError("rank " + std::to_string(rank) + " has " + theirs + " where rank 0 has " +
                    line_at(expected, *differs) + ": " + std::string(advice));
}

void rethrow_on_all_ranks(Communicator& host, const std::function<void()>& action) {
  const std::optional<Failure> mine = capture_error(action);
  const auto code = static_cast<int32_t>(mine ? mine->code : ExitCode::done);
  const std::vector<int32_t> codes = all_gather_object(host, code);
  const auto failed = std::ranges::find_if(codes, [](int32_t each) { return each != 0; });
  if (failed == codes.end()) return;
  const auto rank = static_cast<int>(failed - codes.begin());
  const Failure shared{static_cast<ExitCode>(*failed),
                       broadcast_text(host, mine ? mine->text : "", rank)};
  wait_until_all_have_heard(host);
  shared.raise();
}

}  // namespace fusedbun::comm
