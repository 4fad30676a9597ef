#pragma once
// What the writer and the reader of a manifest must spell alike (FORMAT.md).
//
// Thread safety: constants.
#include <string_view>

namespace fusedbun::checkpoint {

inline constexpr std::string_view kManifestFormat = "fusedbun.checkpoint";
inline constexpr std::string_view kDigestField = "xxh3_128";
/// The last field, around its 32 digits; it is the digest of all bytes before this. The same in every version.
inline constexpr std::string_view kBeforeDigest = ",\n  \"xxh3_128\": \"";
inline constexpr std::string_view kAfterDigest = "\"\n}\n";

}  // namespace fusedbun::checkpoint
