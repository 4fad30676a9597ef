#include "fusedbun/launcher/data/packing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "fusedbun/core/error.h"

namespace fusedbun::data {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

Documents of_lengths(const std::vector<uint64_t>& lengths) {
  std::vector<uint64_t> begins = {0};
  for (const uint64_t length : lengths) begins.push_back(begins.back() + length);
  Documents documents;
  documents.append({std::move(begins), {}, std::nullopt});
  return documents;
}

/// "0+3 3+2|9+4": of each sequence its pieces, begin and count.
std::string shown(const DocumentPacking& packing) {
  std::string text;
  for (int64_t i = 0; i < packing.sequences(); ++i) {
    text += i > 0 ? "|" : "";
    std::string separator;
    for (const DocumentPacking::Piece& piece : packing.pieces(i)) {
      text += separator + std::to_string(piece.begin) + "+" + std::to_string(piece.count);
      separator = " ";
    }
  }
  return text;
}

TEST(DocumentPacking, DocumentsStayWholeAndInOrder) {
  // A document of n tokens takes n - 1 places.
  const Documents documents = of_lengths({4, 3, 5, 1, 2, 6});
  const DocumentPacking packing(documents, 0, 6, 5, LongDocuments::refuse);
  EXPECT_EQ(shown(packing), "0+3 4+2|7+4 13+1|15+5");
  EXPECT_EQ(packing.places_filled(), 15);
  EXPECT_EQ(packing.short_documents(), 1);
}

TEST(DocumentPacking, APartOfTheDocumentsIsPacked) {
  const Documents documents = of_lengths({4, 3, 5, 1, 2, 6});
  EXPECT_EQ(shown(DocumentPacking(documents, 1, 3, 5, LongDocuments::refuse)), "4+2|7+4");
  EXPECT_EQ(DocumentPacking(documents, 3, 4, 5, LongDocuments::refuse).sequences(), 0);
  EXPECT_EQ(DocumentPacking(documents, 2, 2, 5, LongDocuments::refuse).sequences(), 0);
}

TEST(DocumentPacking, LongDocumentsAreRefusedCutOrSkipped) {
  const Documents documents = of_lengths({3, 9, 3});
  EXPECT_THAT(
      [&] { DocumentPacking(documents, 0, 3, 5, LongDocuments::refuse); },
      ThrowsMessage<DataError>(HasSubstr(
          "document 1 has 9 tokens, and the context is 5: give a --context of at least 8")));
  const DocumentPacking cut(documents, 0, 3, 5, LongDocuments::cut);
  EXPECT_EQ(shown(cut), "0+2|3+5|12+2");
  EXPECT_EQ(cut.long_documents(), 1);
  EXPECT_EQ(shown(DocumentPacking(documents, 0, 3, 5, LongDocuments::skip)), "0+2 12+2");
}

// Sequences that are found again from the table's nearest one are those of one pass.
TEST(DocumentPacking, EverySequenceIsThatOfOnePass) {
  std::mt19937_64 random(11);
  std::vector<uint64_t> lengths(5000);
  for (uint64_t& length : lengths) length = 1 + random() % 40;
  const Documents documents = of_lengths(lengths);
  const DocumentPacking packing(documents, 0, documents.count(), 64, LongDocuments::refuse);
  std::string expected;
  int64_t begin = 0, left = 0;
  for (const uint64_t length : lengths) {
    const auto places = static_cast<int64_t>(length) - 1;
    if (places > 0) {
      if (expected.empty() || places > left) {
        expected += expected.empty() ? "" : "|";
        left = 64;
      } else {
        expected += " ";
      }
      expected += std::to_string(begin) + "+" + std::to_string(places);
      left -= places;
    }
    begin += static_cast<int64_t>(length);
  }
  EXPECT_EQ(shown(packing), expected);
  EXPECT_GT(packing.sequences(), 1000);
}

}  // namespace
}  // namespace fusedbun::data
