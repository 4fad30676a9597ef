#pragma once
// Token files: the two layouts of .bin that people have.
//   llm.c     256 int32: magic (20240520: tokens of 16 bits, 20240801: of 32), version, number of tokens, zeros; then the tokens
//   nanoGPT   tokens and nothing else: 16 bits, or 32 where the vocabulary has more than 65,536 ids
// All little endian.
//
// Thread safety: pure functions.
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace fusedbun::train {

struct TokenLayout {
  int64_t header_bytes = 0;
  int64_t token_bytes = 2;
  int64_t tokens = 0;
};

/// Whether a file of this name holds tokens: it ends in .bin.
bool is_token_file(const std::filesystem::path& path);

constexpr int64_t kTokenHeaderBytes = 1024;

/// Of the file `path` of `file_bytes`, which begins with `start` (at least kTokenHeaderBytes, or all there is). `vocab`: token ids of the
/// model. Throws DataError, naming the file, if its size is none that its header, or whole tokens, can have.
TokenLayout token_layout(const std::filesystem::path& path, std::span<const char> start,
                         int64_t file_bytes, int64_t vocab);

}  // namespace fusedbun::train
