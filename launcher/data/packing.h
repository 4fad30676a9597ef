#pragma once
// Packing: how documents fill sequences of a context's tokens.
//
//   stream      the corpus is cut every `context` tokens, wherever documents begin: nothing is padding; what pretraining does
//   documents   as many whole documents as fit, in order, and padding: no question without its answer; what fine-tuning on prompts does
//
// In both, attention and positions begin anew with each document, and no token is predicted across a border.
//
// A document of n tokens takes n - 1 places: its last token is a target alone.
//
// Thread safety: read-only after construction.
#include <cstdint>
#include <vector>

#include "fusedbun/launcher/data/documents.h"

namespace fusedbun::data {

/// What becomes of a document that is longer than the context, where documents stay whole.
enum class LongDocuments : uint8_t {
  refuse,
  cut,   ///< its beginning is taken
  skip,  ///< it is left out
};

/// Sequences of whole documents: those of [first, last) of a corpus.
class DocumentPacking {
 public:
  /// Throws DataError naming the first document that is too long, if such are refused.
  DocumentPacking(const Documents& documents, int64_t first, int64_t last, int64_t context,
                  LongDocuments long_documents);

  int64_t sequences() const { return sequences_; }
  /// Tokens [begin, begin + count) of the corpus are inputs, and each one's target is the next.
  struct Piece {
    int64_t begin = 0, count = 0;
  };
  /// Of sequence `index`; together at most a context.
  std::vector<Piece> pieces(int64_t index) const;

  int64_t places_filled() const {
    return places_filled_;
  }  ///< of all sequences; the rest is padding
  int64_t long_documents() const { return long_documents_; }  ///< cut or skipped
  int64_t short_documents() const {
    return short_documents_;
  }  ///< of one token, which predicts nothing

 private:
  int64_t places_of(int64_t document) const;
  /// The document after the last of the sequence that begins with `document`; calls `take(document, places)` for each that it has.
  template <class Take>
  int64_t fill(int64_t document, const Take& take) const;

  const Documents& documents_;
  int64_t last_, context_;
  LongDocuments policy_;
  int64_t sequences_ = 0, places_filled_ = 0, long_documents_ = 0, short_documents_ = 0;
  /// First document of sequences 0, 64, 128, ...: those between are found again, so that a large corpus has a small table.
  std::vector<int64_t> firsts_;
};

}  // namespace fusedbun::data
