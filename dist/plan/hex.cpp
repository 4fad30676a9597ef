#include "fusedbun/dist/plan/hex.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {

std::string to_hex(uint64_t value, size_t digits) {
  char text[16];
  const auto end = std::to_chars(std::begin(text), std::end(text), value, 16).ptr;
  const std::string plain(text, end);
  FUSEDBUN_ASSERT(plain.size() <= digits, "the number fits its field");
  return std::string(digits - plain.size(), '0') + plain;
}

std::optional<uint64_t> from_hex(std::string_view text) {
  const bool plain = std::ranges::all_of(
      text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
  uint64_t value = 0;
  const char* const end = text.data() + text.size();
  if (!plain || std::from_chars(text.data(), end, value, 16).ec != std::errc{}) return std::nullopt;
  return value;
}

}  // namespace fusedbun::plan
