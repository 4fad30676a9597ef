#include "fusedbun/launcher/train/token_file.h"

#include <cstring>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

constexpr int32_t kShortMagic = 20240520, kLongMagic = 20240801;

int32_t word(std::span<const char> start, size_t index) {
  int32_t value = 0;
  std::memcpy(&value, start.data() + index * sizeof value, sizeof value);
  return value;
}

}  // namespace

bool is_token_file(const std::filesystem::path& path) {
  return path.extension() == ".bin";
}

TokenLayout token_layout(const std::filesystem::path& path, std::span<const char> start,
                         int64_t file_bytes, int64_t vocab) {
  constexpr int64_t kShortVocab = 65536;
  TokenLayout layout{.token_bytes = vocab <= kShortVocab ? 2 : 4};
  const bool has_header = std::ssize(start) >= kTokenHeaderBytes &&
                          (word(start, 0) == kShortMagic || word(start, 0) == kLongMagic);
  if (has_header) {
    layout.header_bytes = kTokenHeaderBytes;
    layout.token_bytes = word(start, 0) == kShortMagic ? 2 : 4;
  }
  const int64_t content = file_bytes - layout.header_bytes;
  FUSEDBUN_REQUIRE(content % layout.token_bytes == 0, DataError,
                   path.string() + " has " + std::to_string(content) +
                       " bytes of tokens, which are no whole number of " +
                       std::to_string(layout.token_bytes) +
                       " bytes each: it was cut, or is no file of tokens");
  layout.tokens = content / layout.token_bytes;
  if (!has_header) return layout;
  const int64_t said = static_cast<uint32_t>(word(start, 2));
  FUSEDBUN_REQUIRE(said == layout.tokens, DataError,
                   path.string() + " says that it has " + std::to_string(said) +
                       " tokens, and has " + std::to_string(layout.tokens) +
                       ": it was cut, or written to after its header");
  return layout;
}

}  // namespace fusedbun::train
