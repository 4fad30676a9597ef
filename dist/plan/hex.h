#pragma once
// Hashes as people and files read them.
//
// Thread safety: functions without state.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fusedbun::plan {

/// Lower case, with leading zeros; `value` fits into `digits`, which are at most 16.
std::string to_hex(uint64_t value, size_t digits = 16);

/// The value of a text of lower-case digits, at most 16; nothing for any other text.
std::optional<uint64_t> from_hex(std::string_view text);

}  // namespace fusedbun::plan
