#include "fusedbun/launcher/data/tokenization.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/data/document_index.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::data {
namespace {

namespace fs = std::filesystem;
using support::ScratchFolder;
using support::write_text;
using testing::HasSubstr;
using testing::ThrowsMessage;

template <typename Value>
std::string packed(std::initializer_list<Value> values) {
  return {reinterpret_cast<const char*>(values.begin()), values.size() * sizeof(Value)};
}

const std::string kBatch = packed<uint64_t>({5'000'000'000}) +
                           packed<uint32_t>({3, 1, 7, 8, 9, 1, 3}) + packed<uint32_t>({1, 0, 299});

TEST(Batches, DocumentsComeWithTheirSpans) {
  std::vector<std::vector<uint32_t>> documents;
  std::vector<size_t> spans;
  const int64_t bytes = for_each_document(kBatch, [&](auto tokens, auto loss) {
    documents.emplace_back(tokens.begin(), tokens.end());
    spans.push_back(loss.size());
    if (!loss.empty()) {
      EXPECT_EQ(loss[0].begin, 1u);
      EXPECT_EQ(loss[0].end, 3u);
    }
  });
  EXPECT_EQ(bytes, 5'000'000'000);
  EXPECT_EQ(documents, (std::vector<std::vector<uint32_t>>{{7, 8, 9}, {299}}));
  EXPECT_EQ(spans, (std::vector<size_t>{1, 0}));
  EXPECT_EQ(for_each_document(packed<uint64_t>({3}), [](auto, auto) { FAIL(); }), 3);
}

/// Python's place is taken by a shell script that prints messages which this test has written.
class TokenizeTest : public testing::Test {
 protected:
  TokenizeTest() : options_{.inputs = {"a"}, .tokenizer = "t", .out = folder_ / "out/a.bin"} {
    fs::create_directory(folder_ / "out");
  }
  ~TokenizeTest() override { ::unsetenv("FUSEDBUN_PYTHON"); }

  void let_python_say(const std::vector<std::string>& messages, const std::string& end) {
    std::string said;
    for (const std::string& message : messages)
      said += packed<uint32_t>({static_cast<uint32_t>(message.size())}) + message;
    write_text(folder_ / "said", said);
    write_text(folder_ / "python",
               "#!/bin/sh\ncat " + (folder_ / "said").string() + "\n" + end + "\n");
    fs::permissions(folder_ / "python", fs::perms::owner_all);
    ::setenv("FUSEDBUN_PYTHON", (folder_ / "python").c_str(), 1);
  }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(options_.out.parent_path()))
      names.push_back(entry.path().filename());
    std::ranges::sort(names);
    return names;
  }

  const std::string head_ = R"(H{"tokenizer": "t", "vocabulary_size": 300})";
  const std::string report_ =
      R"(R{"sources": ["a"], "bytes": 12, "left_out": [{"what": "empty documents", "count": 2, "first": "a:3"}]})";
  ScratchFolder folder_;
  TokenizeOptions options_;
};

TEST_F(TokenizeTest, FileIndexAndReportAreWritten) {
  let_python_say({head_, "B" + kBatch, "B" + kBatch, report_}, "");
  std::vector<int64_t> heard;
  const TokenizeReport report =
      tokenize(options_, [&](const TokenizeCounts& counts) { heard.push_back(counts.documents); });
  EXPECT_EQ(heard, (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(report.counts.tokens, 8);
  EXPECT_EQ(report.counts.loss_tokens, 6);
  EXPECT_EQ(text_of(report.left_out.at(0)), "empty documents: 2, the first a:3");
  EXPECT_EQ(files(), (std::vector<std::string>{"a.bin", "a.bin.documents", "a.bin.json"}));
  const TokenFile file(options_.out, 300);
  const auto index = DocumentIndex::open(DocumentIndex::beside(options_.out), file, {});
  EXPECT_EQ(index->documents(), 4);
  const auto written = nlohmann::json::parse(support::read_text(report_beside(options_.out)));
  EXPECT_EQ(written.at("loss_tokens"), 6);
  EXPECT_EQ(written.at("vocabulary_size"), 300);
}

TEST_F(TokenizeTest, AFailureAtAnyPointLeavesNothing) {
  const std::string refuses = "echo a:7 is bad >&2; exit 65";
  for (const auto& messages : {std::vector<std::string>{}, {head_}, {head_, "B" + kBatch}}) {
    let_python_say(messages, refuses);
    EXPECT_THAT([&] { tokenize(options_, [](auto&) {}); }, ThrowsMessage<DataError>("a:7 is bad"));
    EXPECT_TRUE(files().empty());
  }
  let_python_say({R"(H{"vocabulary_size": 299})", "B" + kBatch, report_}, "");
  EXPECT_THAT([&] { tokenize(options_, [](auto&) {}); },
              ThrowsMessage<DataError>(HasSubstr("token 299")));
  EXPECT_TRUE(files().empty());
}

TEST_F(TokenizeTest, WithoutADocumentNothingIsWrittenAndSaidWhy) {
  let_python_say({head_, "B" + packed<uint64_t>({12}), report_}, "");
  EXPECT_THAT([&] { tokenize(options_, [](auto&) {}); },
              ThrowsMessage<DataError>(
                  "no document is left to be written; empty documents: 2, the first a:3"));
  EXPECT_TRUE(files().empty());
}

TEST_F(TokenizeTest, WhatIsThereIsReplacedOnlyWhenAsked) {
  write_text(options_.out, "mine");
  let_python_say({head_, "B" + kBatch, report_}, "");
  EXPECT_THAT([&] { tokenize(options_, [](auto&) {}); },
              ThrowsMessage<ConfigError>(HasSubstr("--overwrite")));
  EXPECT_EQ(support::read_text(options_.out), "mine");
  options_.overwrite = true;
  EXPECT_EQ(tokenize(options_, [](auto&) {}).counts.documents, 2);
  options_.out = folder_ / "out/a.tokens";
  EXPECT_THAT([&] { tokenize(options_, [](auto&) {}); },
              ThrowsMessage<ConfigError>(HasSubstr("names that end in .bin")));
}

}  // namespace
}  // namespace fusedbun::data
