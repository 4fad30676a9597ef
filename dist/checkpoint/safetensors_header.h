#pragma once
// The JSON header of a safetensors file: parsed and checked, and written. Pure functions of text;
// no file is touched, so that every rule can be tested and fuzzed in memory.
//
// Thread safety: pure functions.
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/checkpoint/safetensors.h"

namespace fusedbun::checkpoint {

struct HeaderEntry {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<int64_t> shape;
  int64_t begin = 0;  ///< bytes from the start of the data
  int64_t end = 0;    ///< one past the last
};

struct Header {
  std::vector<HeaderEntry> entries;  ///< by begin, without gap or overlap
  Metadata metadata;
};

inline constexpr int64_t kHeaderBytesMax = 100'000'000;
inline constexpr int64_t kTensorsMax = 1'000'000;
inline constexpr size_t kNameBytesMax = 4096;
inline constexpr size_t kRankMax = 8;

/// Bytes of a tensor of this type and shape. Throws DataError if the product overflows or is no
/// whole number of bytes.
int64_t tensor_bytes(Dtype dtype, std::span<const int64_t> shape);

/// Throws DataError with the broken rule; `data_bytes` is what follows the header in the file.
Header parse_header(std::string_view text, int64_t data_bytes);

/// The header's text, padded with spaces to a multiple of 8 bytes, so that the data is aligned.
std::string format_header(const Header& header);

}  // namespace fusedbun::checkpoint
