#include "fusedbun/launcher/data/document_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::data {
namespace {

using support::ScratchFolder;
using support::write_text;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr int64_t kVocab = 300;

class DocumentIndexTest : public testing::Test {
 protected:
  std::filesystem::path raw(const std::string& name, const std::vector<uint16_t>& tokens) {
    write_text(folder_ / name, std::string(reinterpret_cast<const char*>(tokens.data()),
                                           tokens.size() * sizeof tokens[0]));
    return folder_ / name;
  }
  DocumentIndex documents(const std::filesystem::path& path, std::optional<int64_t> separator) {
    return documents_of(TokenFile(path, kVocab), separator, folder_ / "spare",
                        [this](const std::string& sentence) { said_.push_back(sentence); });
  }
  ScratchFolder folder_;
  std::vector<std::string> said_;
};

TEST_F(DocumentIndexTest, DocumentsEndOrBeginWithTheSeparator) {
  const DocumentIndex ends =
      find_documents(TokenFile(raw("nano.bin", {1, 2, 99, 3, 99, 4, 5, 99}), kVocab), 99);
  EXPECT_THAT(ends.begins(), ElementsAre(0, 3, 5, 8));
  const DocumentIndex begins =
      find_documents(TokenFile(raw("llmc.bin", {99, 1, 2, 99, 3, 99, 4, 5}), kVocab), 99);
  EXPECT_THAT(begins.begins(), ElementsAre(0, 3, 5, 8));
  const DocumentIndex one = find_documents(TokenFile(raw("one.bin", {1, 2, 3}), kVocab), 99);
  EXPECT_THAT(one.begins(), ElementsAre(0, 3));
}

// Across the borders at which the file is read.
TEST_F(DocumentIndexTest, ALargeFileHasItsDocumentsWhereADumbScanFindsThem) {
  std::vector<uint16_t> tokens(2'500'000);
  std::vector<uint64_t> expected = {0};
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = i % 1013 == 1012 || i == (1u << 20) - 1 || i == (1u << 20) ? 99 : 7;
    if (tokens[i] == 99 && i + 1 < tokens.size()) expected.push_back(i + 1);
  }
  expected.push_back(tokens.size());
  const DocumentIndex found = find_documents(TokenFile(raw("large.bin", tokens), kVocab), 99);
  EXPECT_TRUE(std::ranges::equal(found.begins(), expected));
}

TEST_F(DocumentIndexTest, TheIndexIsFoundOnceAndAgainWhenTheFileIsAnother) {
  const auto path = raw("a.bin", {1, 2, 99, 3, 4});
  EXPECT_THAT(documents(path, 99).begins(), ElementsAre(0, 3, 5));
  EXPECT_EQ(said_.size(), 1u) << "a pass is told of";
  EXPECT_THAT(documents(path, 99).begins(), ElementsAre(0, 3, 5));
  EXPECT_THAT(documents(path, std::nullopt).begins(), ElementsAre(0, 3, 5))
      << "who has no separator";
  EXPECT_EQ(said_.size(), 1u);
  EXPECT_THAT(documents(path, 3).begins(), ElementsAre(0, 4, 5)) << "another separator";
  raw("a.bin", {1, 99, 2, 3, 4});
  EXPECT_THAT(documents(path, 99).begins(), ElementsAre(0, 2, 5)) << "another content";
  EXPECT_EQ(said_.size(), 3u);
}

TEST_F(DocumentIndexTest, WithoutASeparatorAFileIsOneDocument) {
  EXPECT_THAT(documents(raw("a.bin", {1, 2, 99, 3, 4}), std::nullopt).begins(), ElementsAre(0, 5));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "a.bin.documents"));
}

TEST_F(DocumentIndexTest, WhatIsWrittenSaysWhichTokensCarryLoss) {
  TokenWriter writer(folder_ / "w.bin", kVocab);
  const uint32_t first[] = {1, 2, 3}, second[] = {4, 5, 6, 7, 8};
  const TokenWriter::LossSpan spans[] = {{1, 3}, {4, 5}};
  writer.add(first, {});
  writer.add(second, spans);
  EXPECT_EQ(writer.tokens(), 8);
  EXPECT_EQ(writer.loss_tokens(), 6);
  writer.commit();
  const TokenFile file(folder_ / "w.bin", kVocab);
  std::vector<uint32_t> tokens(8);
  file.read(0, tokens);
  EXPECT_THAT(tokens, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8));
  const DocumentIndex index = documents(folder_ / "w.bin", 4);
  EXPECT_THAT(index.begins(), ElementsAre(0, 3, 8)) << "who wrote it knows better than a separator";
  EXPECT_THAT(index.spans(), ElementsAre(TokenSpan{0, 3}, TokenSpan{4, 6}, TokenSpan{7, 8}));
}

TEST_F(DocumentIndexTest, WhereAllTokensCarryLossThereAreNoSpans) {
  TokenWriter writer(folder_ / "w.bin", 70'000);
  const uint32_t tokens[] = {69'999, 2};
  writer.add(tokens, {});
  writer.commit();
  const TokenFile file(folder_ / "w.bin", 70'000);
  EXPECT_EQ(file.layout().token_bytes, 4);
  EXPECT_TRUE(documents_of(file, {}, {}, {}).spans().empty());
}

TEST_F(DocumentIndexTest, AWrittenFileIsNothingWithoutItsIndexOrWithAnother) {
  const uint32_t tokens[] = {1, 2, 3};
  const TokenWriter::LossSpan loss[] = {{1, 2}};
  {
    TokenWriter writer(folder_ / "w.bin", kVocab);
    writer.add(tokens, loss);
    writer.commit();
  }
  std::filesystem::copy(folder_ / "w.bin.documents", folder_ / "kept");
  std::filesystem::remove(folder_ / "w.bin.documents");
  EXPECT_THAT([&] { documents(folder_ / "w.bin", 3); },
              ThrowsMessage<DataError>(HasSubstr("w.bin.documents is missing")));
  const uint32_t others[] = {1, 2, 4};
  {
    TokenWriter writer(folder_ / "w.bin", kVocab);
    writer.add(others, loss);
    writer.commit();
  }
  std::filesystem::rename(folder_ / "kept", folder_ / "w.bin.documents");
  EXPECT_THAT([&] { documents(folder_ / "w.bin", 3); },
              ThrowsMessage<DataError>(HasSubstr("is not the index of")));
}

TEST_F(DocumentIndexTest, AnUnfinishedFileLeavesNothing) {
  {
    TokenWriter writer(folder_ / "w.bin", kVocab);
    const uint32_t tokens[] = {1};
    writer.add(tokens, {});
    const uint32_t large[] = {300};
    EXPECT_THAT([&] { writer.add(large, {}); },
                ThrowsMessage<DataError>(HasSubstr("token 300, and the vocabulary has 300 ids")));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_ / ""));
}

TEST_F(DocumentIndexTest, ADamagedIndexIsRefusedByName) {
  const auto path = raw("a.bin", {1, 2, 99, 3, 4});
  documents(path, 99);
  const std::filesystem::path index = folder_ / "a.bin.documents";
  const auto whole = std::filesystem::file_size(index);
  for (const uintmax_t bytes : {uintmax_t{0}, uintmax_t{20}, uintmax_t{48}, whole - 1, whole - 8}) {
    std::filesystem::resize_file(index, bytes);
    EXPECT_THAT([&] { documents(path, 99); },
                ThrowsMessage<DataError>(HasSubstr("a.bin.documents is damaged")))
        << bytes;
  }
}

TEST_F(DocumentIndexTest, WhereNoIndexCanBeWrittenTheDocumentsAreFoundAllTheSame) {
  // A name that is as long as names can be: root may write into any folder.
  std::string name(240, 'a');
  name += ".bin";
  const auto path = raw(name, {1, 2, 99, 3, 4});
  EXPECT_THAT(documents(path, 99).begins(), ElementsAre(0, 3, 5));
  ASSERT_EQ(said_.size(), 3u) << "the pass, beside the file, in the spare folder";
  EXPECT_THAT(said_[1], HasSubstr("the index of documents is not kept there"));
}

}  // namespace
}  // namespace fusedbun::data
