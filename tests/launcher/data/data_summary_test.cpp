#include "fusedbun/launcher/data/data_summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"

namespace fusedbun::data {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::ThrowsMessage;

TEST(DataSummary, LengthsAreThoseOfTheDocuments) {
  const uint64_t begins[] = {0, 10, 11, 14, 18};  // 10, 1, 3, 4
  const Lengths lengths = lengths_of(begins, 3, "a.bin");
  EXPECT_EQ(lengths.documents, 4);
  EXPECT_EQ(lengths.shortest, 1);
  EXPECT_EQ(lengths.median, 3) << "the lower of the two in the middle";
  EXPECT_EQ(lengths.longest, 10);
  EXPECT_EQ(lengths.longer_than_context, 2);
  const uint64_t one[] = {0, 7};
  EXPECT_EQ(lengths_of(one, 7, "a.bin").median, 7);
  EXPECT_EQ(lengths_of(one, 7, "a.bin").longer_than_context, 0);
  const uint64_t damaged[] = {0, 9, 3, 18};
  EXPECT_THAT([&] { lengths_of(damaged, 0, "a.bin"); },
              ThrowsMessage<DataError>(HasSubstr("a.bin.documents is damaged")));
}

TEST(DataSummary, SpansSayHowManyTokensCarryLoss) {
  const TokenSpan spans[] = {{1, 3}, {5, 9}};
  EXPECT_EQ(loss_tokens_of(spans, 12), 6);
  EXPECT_EQ(loss_tokens_of({}, 12), 12);
}

FileSeen tokens_seen() {
  FileSeen seen{.path = "a.bin", .tokens = TokensSeen{}, .text = {}};
  seen.tokens->layout = "llm.c's";
  seen.tokens->tokens = 18;
  seen.tokens->loss_tokens = 4;
  seen.tokens->lengths = Lengths{4, 1, 3, 10, 2};
  seen.tokens->left_out = {{"empty documents", 2, "a.jsonl:3"}};
  return seen;
}

TEST(DataSummary, TextSaysWhatIsThere) {
  const std::string text = text_of(tokens_seen(), 3);
  EXPECT_EQ(text,
            "a.bin\n"
            "  layout      llm.c's, 16 bits a token\n"
            "  tokens      18\n"
            "  carry loss  4\n"
            "  documents   4\n"
            "  lengths     shortest 1, median 3, longest 10\n"
            "  context     2 documents longer than 3 tokens\n"
            "  left out    empty documents: 2, the first a.jsonl:3\n");
  EXPECT_THAT(text_of(tokens_seen(), 0), Not(HasSubstr("context")));
}

TEST(DataSummary, WhatCarriesLossIsMarkedAndCannotSteerTheTerminal) {
  FileSeen seen = tokens_seen();
  seen.tokens->first_document = {{"<user>Hi\n", false}, {"Hello\x1b[2J\nyou", true}};
  EXPECT_THAT(text_of(seen, 0), HasSubstr("\n<user>Hi\n[[Hello\\x1b[2J\nyou]]\n"));
  seen.tokens->first_document = {{"all of it", true}};
  EXPECT_THAT(text_of(seen, 0), HasSubstr("begins so:\n\nall of it\n"));
}

TEST(DataSummary, JsonHasTheSame) {
  FileSeen text{.path = "b.jsonl", .tokens = {}, .text = {}};
  text.text = {.kinds = {{"text", 3}}, .bytes = 90, .left_out = {}};
  const auto json = nlohmann::json::parse(json_of({tokens_seen(), text}, 3));
  const auto& tokens = json.at("files").at(0);
  EXPECT_EQ(tokens.at("median"), 3);
  EXPECT_EQ(tokens.at("longer_than_context"), 2);
  EXPECT_EQ(tokens.at("left_out").at(0).at("count"), 2);
  EXPECT_EQ(json.at("files").at(1).at("documents").at("text"), 3);
  EXPECT_FALSE(nlohmann::json::parse(json_of({tokens_seen()}, 0))
                   .at("files")
                   .at(0)
                   .contains("longer_than_context"));
}

}  // namespace
}  // namespace fusedbun::data
