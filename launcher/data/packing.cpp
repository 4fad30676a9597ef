#include "fusedbun/launcher/data/packing.h"

#include <algorithm>
#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun::data {
namespace {

constexpr int64_t kStride = 64;

}  // namespace

int64_t DocumentPacking::places_of(int64_t document) const {
  const int64_t places = documents_.tokens_of(document) - 1;
  if (places <= context_) return places;
  return policy_ == LongDocuments::cut ? context_ : 0;
}

template <class Take>
int64_t DocumentPacking::fill(int64_t document, const Take& take) const {
  int64_t left = context_;
  for (; document < last_; ++document) {
    const int64_t places = places_of(document);
    if (places > left) break;
    if (places > 0) take(document, places);
    left -= std::max<int64_t>(0, places);
  }
  return document;
}

DocumentPacking::DocumentPacking(const Documents& documents, int64_t first, int64_t last,
                                 int64_t context, LongDocuments long_documents)
    : documents_(documents), last_(last), context_(context), policy_(long_documents) {
  for (int64_t document = first; document < last; ++document) {
    const int64_t places = documents.tokens_of(document) - 1;
    if (places < 1) ++short_documents_;
    if (places <= context) continue;
    FUSEDBUN_REQUIRE(policy_ != LongDocuments::refuse, DataError,
                     "document " + std::to_string(document) + " has " + std::to_string(places + 1) +
                         " tokens, and the context is " + std::to_string(context) +
                         ": give a --context of at least " + std::to_string(places) +
                         ", or --long-documents cut or skip");
    ++long_documents_;
  }
  for (int64_t document = first; document < last;) {
    int64_t filled = 0;
    const int64_t begin = document;
    document = fill(document, [&](int64_t, int64_t places) { filled += places; });
    if (filled == 0) break;  // what is left predicts nothing
    if (sequences_++ % kStride == 0) firsts_.push_back(begin);
    places_filled_ += filled;
  }
}

std::vector<DocumentPacking::Piece> DocumentPacking::pieces(int64_t index) const {
  int64_t document = firsts_[static_cast<size_t>(index / kStride)];
  for (int64_t i = 0; i < index % kStride; ++i) document = fill(document, [](int64_t, int64_t) {});
  std::vector<Piece> found;
  fill(document, [&](int64_t one, int64_t places) {
    found.push_back({documents_.begin(one), places});
  });
  return found;
}

}  // namespace fusedbun::data
