#include "fusedbun/dist/changes/change_log_frames.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <optional>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/plan/hex.h"

namespace fusedbun::changes {
namespace {

constexpr size_t kLengthDigits = 8;
constexpr size_t kDurableDigits = 12;
constexpr size_t kHashDigits = 16;
constexpr size_t kHeaderBytes = kLengthDigits + 1 + kDurableDigits + 1 + kHashDigits + 1;
/// More than the first frame of a file, which says whose run it is, can have.
constexpr size_t kFirstFrameBytesMax = 4096;

uint64_t hash_of(std::string_view length, std::string_view durable, std::string_view json) {
  std::string hashed;
  hashed.reserve(length.size() + durable.size() + json.size() + 2);
  hashed.append(length).append(" ").append(durable).append(" ").append(json);
  return XXH3_64bits(hashed.data(), hashed.size());
}

struct Frame {
  std::string_view json;
  uint64_t durable_bytes = 0;
  size_t bytes = 0;
};

/// The frame at the beginning of `bytes`, if a whole one is there.
std::optional<Frame> read_frame(std::string_view bytes) {
  if (bytes.size() < kHeaderBytes + 1) return std::nullopt;
  const std::string_view length = bytes.substr(0, kLengthDigits);
  const std::string_view durable = bytes.substr(kLengthDigits + 1, kDurableDigits);
  const std::string_view hash = bytes.substr(kHeaderBytes - kHashDigits - 1, kHashDigits);
  const auto length_value = plan::from_hex(length);
  const auto durable_value = plan::from_hex(durable);
  const auto hash_value = plan::from_hex(hash);
  if (!length_value || !durable_value || !hash_value) return std::nullopt;
  if (*length_value > bytes.size() - kHeaderBytes - 1) return std::nullopt;
  const std::string_view json = bytes.substr(kHeaderBytes, *length_value);
  const bool separated =
      bytes[kLengthDigits] == ' ' && bytes[kLengthDigits + 1 + kDurableDigits] == ' ' &&
      bytes[kHeaderBytes - 1] == ' ' && bytes[kHeaderBytes + json.size()] == '\n';
  if (!separated || hash_of(length, durable, json) != *hash_value) return std::nullopt;
  return Frame{json, *durable_value, kHeaderBytes + json.size() + 1};
}

/// The most that any whole frame after a bad one says was on disk.
uint64_t durable_after(std::string_view bytes) {
  uint64_t durable = 0;
  for (size_t newline = bytes.find('\n'); newline != std::string_view::npos;
       newline = bytes.find('\n', newline + 1)) {
    if (const auto found = read_frame(bytes.substr(newline + 1)))
      durable = std::max(durable, found->durable_bytes);
  }
  return durable;
}

bool is_torn_first_frame(std::string_view bytes) {
  return bytes.size() <= kFirstFrameBytesMax &&
         (bytes.empty() || bytes[0] == '\0' || plan::from_hex(bytes.substr(0, 1)).has_value());
}

}  // namespace

std::string frame(std::string_view json, uint64_t durable_bytes) {
  const std::string length = plan::to_hex(json.size(), kLengthDigits);
  const std::string durable = plan::to_hex(durable_bytes, kDurableDigits);
  const std::string hash = plan::to_hex(hash_of(length, durable, json), kHashDigits);
  return length + " " + durable + " " + hash + " " + std::string(json) + "\n";
}

LogText read_frames(std::string_view bytes) {
  LogText text;
  uint64_t durable = 0;
  while (text.valid_bytes < bytes.size()) {
    const std::string_view rest = bytes.substr(text.valid_bytes);
    const auto next = read_frame(rest);
    if (!next) {
      FUSEDBUN_REQUIRE(
          text.valid_bytes > 0 || is_torn_first_frame(rest), DataError,
          "it is no log of changes, or one of another version: move it out of the run folder");
      FUSEDBUN_REQUIRE(std::max(durable, durable_after(rest)) <= text.valid_bytes, DataError,
                       "it was damaged after it had been written, at byte " +
                           std::to_string(text.valid_bytes) +
                           ": restore it, or move it out of the run folder");
      return text;
    }
    durable = std::max(durable, next->durable_bytes);
    text.records.emplace_back(next->json);
    text.valid_bytes += next->bytes;
  }
  return text;
}

}  // namespace fusedbun::changes
