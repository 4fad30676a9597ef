#pragma once
// Documents: those of all files of a corpus, one after the other.
//
// Thread safety: append() by one thread; the rest is read-only.
#include <cstdint>
#include <span>
#include <vector>

#include "fusedbun/launcher/data/document_index.h"

namespace fusedbun::data {

class Documents {
 public:
  /// Of the next file.
  void append(DocumentIndex index);

  int64_t count() const { return count_; }
  int64_t tokens() const { return tokens_; }
  int64_t begin(int64_t document) const;  ///< its first token; of count(): tokens()
  int64_t tokens_of(int64_t document) const { return begin(document + 1) - begin(document); }
  int64_t at(int64_t token) const;  ///< the document that has it
  /// Whether the first token of `document` ends the one before, as a separator at the begin of documents does.
  std::optional<int64_t> separator_of(int64_t document) const;
  /// Whether some tokens carry no loss.
  bool has_loss_spans() const { return has_loss_spans_; }
  /// carries[i] = false where token begin + i carries no loss; else it stays.
  void clear_without_loss(int64_t begin, std::span<bool> carries) const;
  /// Equal on ranks whose documents and spans are the same in number and size.
  uint64_t digest() const { return digest_; }

 private:
  struct File {
    int64_t token = 0, document = 0;  ///< its first
    DocumentIndex index;
  };
  const File& file_of_document(int64_t document) const;

  std::vector<File> files_;
  int64_t count_ = 0, tokens_ = 0;
  bool has_loss_spans_ = false;
  uint64_t digest_ = 0;
};

}  // namespace fusedbun::data
