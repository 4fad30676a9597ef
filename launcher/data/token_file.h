#pragma once
// Token files: the two layouts of .bin that people have.
//   llm.c     256 int32: magic (20240520: tokens of 16 bits, 20240801: of 32), version, number of tokens, zeros; then the tokens
//   nanoGPT   tokens and nothing else: 16 bits, or 32 where the vocabulary has more than 65,536 ids
// All little endian.
//
// Thread safety: a TokenFile is read-only after construction; a TokenWriter has one thread.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/descriptor.h"

namespace fusedbun::data {

struct TokenLayout {
  int64_t header_bytes = 0;
  int64_t token_bytes = 2;
  int64_t tokens = 0;
  bool has_index = false;  ///< by TokenWriter: without the index beside it the file is not whole
};

/// Whether a file of this name holds tokens: it ends in .bin.
bool is_token_file(const std::filesystem::path& path);

constexpr int64_t kTokenHeaderBytes = 1024;

/// Of the file `path` of `file_bytes`, which begins with `start` (at least kTokenHeaderBytes, or all there is). `vocab`: token ids of the
/// model. Throws DataError, naming the file, if its size is none that its header, or whole tokens, can have.
TokenLayout token_layout(const std::filesystem::path& path, std::span<const char> start,
                         int64_t file_bytes, int64_t vocab);

/// A file of tokens that is open.
class TokenFile {
 public:
  /// `vocab` decides the width of tokens in nanoGPT's layout. Throws DataError for a file that is missing, empty, cut or no file.
  TokenFile(std::filesystem::path path, int64_t vocab);

  const std::filesystem::path& path() const { return path_; }
  const TokenLayout& layout() const { return layout_; }
  int64_t tokens() const { return layout_.tokens; }
  /// Says where in which file a token lies: "a.bin, byte 1030".
  std::string place_of(int64_t token) const;
  /// Reads tokens [begin, begin + out.size()). Throws DataError if they cannot be read.
  void read(int64_t begin, std::span<uint32_t> out) const;
  /// XXH3 of the size and of 1,024 places evenly spread over the file, so that ten gigabytes take no time.
  uint64_t fingerprint() const;

 private:
  void read_bytes(int64_t at, std::span<char> bytes) const;

  std::filesystem::path path_;
  run_folder::Descriptor descriptor_;
  TokenLayout layout_;
};

/// Writes a file in llm.c's layout, which appears whole or not at all, and its index beside it (document_index.h).
class TokenWriter {
 public:
  /// Tokens of 16 bits where `vocab` ids fit, else of 32. Throws IoError, here and below.
  TokenWriter(std::filesystem::path path, int64_t vocab);
  ~TokenWriter();
  /// One document; `loss` says which of its tokens carry loss, as [begin, end) in the document, in order and apart; empty: all do. Throws
  /// DataError for a token that is not below `vocab`, and when the header's count of tokens, 32 bits, would not hold them.
  struct LossSpan {
    uint32_t begin = 0, end = 0;
  };
  void add(std::span<const uint32_t> tokens, std::span<const LossSpan> loss);
  /// Makes the file, and then its index, durable under their names.
  void commit();

  int64_t tokens() const;
  int64_t documents() const;
  int64_t loss_tokens() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fusedbun::data
