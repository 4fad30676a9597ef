#include "fusedbun/launcher/data/tokenizer_match.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::data {
namespace {

using support::write_text;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class TokenizerMatch : public testing::Test {
 protected:
  TokenizerMatch() {
    for (const char* name : {"model", "other"}) std::filesystem::create_directory(folder_ / name);
    write_text(folder_ / "model" / "tokenizer.json", "abc");
  }
  void report(const char* file, const std::string& digest) {
    write_text(folder_ / file, "");
    write_text(folder_ / (std::string(file) + ".json"),
               R"({"tokenizer": "gpt2/tokenizer.json", "tokenizer_xxh3": ")" + digest + "\"}");
  }
  support::ScratchFolder folder_;
};

// `printf abc | xxhsum -H3` of the xxHash project says 78af5f94892f3950.
constexpr const char* kOfAbc = "78af5f94892f3950";

TEST_F(TokenizerMatch, ADigestIsThatOfTheFile) {
  EXPECT_EQ(tokenizer_digest(folder_ / "model"), kOfAbc);
  EXPECT_EQ(tokenizer_digest(folder_ / "model" / "tokenizer.json"), kOfAbc);
  EXPECT_EQ(tokenizer_digest(folder_ / "other"), std::nullopt);
  EXPECT_EQ(tokenizer_digest("bytes"), std::nullopt);
}

TEST_F(TokenizerMatch, AnotherTokenizerIsToldByTheFilesName) {
  report("same.bin", kOfAbc);
  report("strange.bin", "0123456789abcdef");
  EXPECT_THAT(other_tokenizers({folder_ / "same.bin", folder_ / "strange.bin"}, folder_ / "model"),
              ElementsAre(testing::AllOf(HasSubstr("strange.bin was made with another tokenizer"),
                                         HasSubstr("gpt2/tokenizer.json"))));
}

TEST_F(TokenizerMatch, WhatIsNotKnownIsNotSaid) {
  report("strange.bin", "0123456789abcdef");
  write_text(folder_ / "raw.bin", "");
  write_text(folder_ / "damaged.bin.json", "{");
  EXPECT_THAT(other_tokenizers({folder_ / "strange.bin"}, folder_ / "other"), IsEmpty());
  EXPECT_THAT(other_tokenizers({folder_ / "raw.bin", folder_ / "damaged.bin"}, folder_ / "model"),
              IsEmpty());
}

}  // namespace
}  // namespace fusedbun::data
