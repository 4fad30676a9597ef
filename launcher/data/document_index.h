#pragma once
// DocumentIndex: where the documents of a file of tokens begin, and which of its tokens carry loss. Kept beside the file, as
// NAME.bin.documents, and memory-mapped, so that opening it takes neither memory nor time.
//
// The file, all little endian, 64 bits each:
//   magic "FBDOCS01"; tokens; separator (2^64 - 1: none); documents D; spans S; fingerprint of the file of tokens
//   D + 1 begins: of each document its first token, and last the number of tokens
//   S pairs begin, end: the tokens [begin, end) carry loss, in order and apart; S = 0: all tokens do
//
// A file that others have written (llm.c, nanoGPT) gets its index at the first start, by one pass in search of the separator. Does the
// file begin with it, then documents begin with it (llm.c); else they end with it (nanoGPT).
//
// Thread safety: read-only after construction.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fusedbun/launcher/data/token_file.h"

namespace fusedbun::data {

/// Tokens [begin, end).
struct TokenSpan {
  uint64_t begin = 0, end = 0;
  bool operator==(const TokenSpan&) const = default;
};

class DocumentIndex {
 public:
  /// In memory: `begins` as in the file.
  DocumentIndex(std::vector<uint64_t> begins, std::vector<TokenSpan> spans,
                std::optional<int64_t> separator);
  DocumentIndex(DocumentIndex&& other) noexcept;
  DocumentIndex& operator=(DocumentIndex&& other) noexcept;
  ~DocumentIndex();

  int64_t documents() const { return static_cast<int64_t>(begins_.size()) - 1; }
  std::span<const uint64_t> begins() const { return begins_; }  ///< [documents + 1]
  std::span<const TokenSpan> spans() const { return spans_; }   ///< empty: all tokens carry loss
  /// The token by which the documents were found; none: who wrote the file knew them.
  std::optional<int64_t> separator() const { return separator_; }

  /// Where the index of a file of tokens lies.
  static std::filesystem::path beside(const std::filesystem::path& token_file);

  /// The index at `path` of `file`; nothing if there is none, or if it was found by a separator and is of other content or another
  /// `separator`. Throws DataError if it is damaged, or was written by `fusedbun data tokenize` and the file is another by now.
  static std::optional<DocumentIndex> open(const std::filesystem::path& path, const TokenFile& file,
                                           std::optional<int64_t> separator);
  /// Writes, atomically, this index of `file`. Throws IoError.
  void write(const std::filesystem::path& path, const TokenFile& file) const;

 private:
  DocumentIndex() = default;
  void unmap();

  std::vector<uint64_t> own_begins_;
  std::vector<TokenSpan> own_spans_;
  void* mapped_ = nullptr;  ///< the views below point into it, or into the vectors
  size_t mapped_bytes_ = 0;
  std::span<const uint64_t> begins_;
  std::span<const TokenSpan> spans_;
  std::optional<int64_t> separator_;
};

/// The documents of `file`: from the index beside it, or, of a file that others have written, in `spare_folder` where the one beside it could
/// not be written; else, with a `separator`, from a pass over the file, after which the index is written there. Without any of these the
/// file is one document. Throws as open() does. `notice` hears of a pass, and of an index that could not be written.
DocumentIndex documents_of(const TokenFile& file, std::optional<int64_t> separator,
                           const std::filesystem::path& spare_folder,
                           const std::function<void(const std::string& sentence)>& notice);

/// Reads all of `file` in search of `separator`. Without one in it, the file is one document.
DocumentIndex find_documents(const TokenFile& file, int64_t separator);

}  // namespace fusedbun::data
