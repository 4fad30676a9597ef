#include "fusedbun/launcher/data/documents.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>

namespace fusedbun::data {
namespace {

// Several files, some with spans, against a table of all tokens.
TEST(Documents, AreThoseOfATableOfAllTokens) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    std::mt19937_64 random(seed);
    const auto below = [&](uint64_t bound) { return random() % bound; };
    Documents documents;
    std::vector<int64_t> document_of, begins;
    std::vector<bool> carries;
    for (uint64_t file = 0; file < 1 + below(4); ++file) {
      const auto first = carries.size();
      std::vector<uint64_t> file_begins = {0};
      for (uint64_t document = 0; document < 1 + below(6); ++document) {
        const uint64_t tokens = 1 + below(7);
        begins.push_back(static_cast<int64_t>(carries.size()));
        document_of.insert(document_of.end(), tokens, std::ssize(begins) - 1);
        carries.insert(carries.end(), tokens, true);
        file_begins.push_back(file_begins.back() + tokens);
      }
      std::vector<TokenSpan> spans;
      if (below(2) == 0) {
        std::fill(carries.begin() + static_cast<int64_t>(first), carries.end(), false);
        for (uint64_t at = below(3); at < file_begins.back();) {
          const uint64_t end = std::min(file_begins.back(), at + below(5));
          spans.push_back({at, end});
          for (; at < end; ++at) carries[first + at] = true;
          at += below(4);
        }
        if (spans.empty()) spans.push_back({0, 0});
      }
      documents.append({file_begins, spans, std::nullopt});
    }
    begins.push_back(std::ssize(carries));
    ASSERT_EQ(documents.count(), std::ssize(begins) - 1);
    ASSERT_EQ(documents.tokens(), std::ssize(carries));
    for (int64_t i = 0; i <= documents.count(); ++i) ASSERT_EQ(documents.begin(i), begins[i]);
    for (int64_t i = 0; i < documents.tokens(); ++i) ASSERT_EQ(documents.at(i), document_of[i]);
    for (int64_t begin = 0; begin < documents.tokens(); ++begin) {
      const auto count = below(static_cast<uint64_t>(documents.tokens() - begin) + 1);
      const auto found = std::make_unique<bool[]>(count);
      std::fill_n(found.get(), count, true);
      documents.clear_without_loss(begin, {found.get(), count});
      for (size_t i = 0; i < count; ++i)
        ASSERT_EQ(found[i], carries[static_cast<size_t>(begin) + i])
            << "seed " << seed << ", token " << begin + static_cast<int64_t>(i);
    }
  }
}

}  // namespace
}  // namespace fusedbun::data
