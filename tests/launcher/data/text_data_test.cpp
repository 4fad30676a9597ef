#include "fusedbun/launcher/data/text_data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <set>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::data {
namespace {

using support::ScratchFolder;
using support::write_text;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::string numbered(size_t bytes) {
  std::string text;
  for (int i = 0; text.size() < bytes; ++i) text += std::to_string(i) + "\n";
  return text.substr(0, bytes);
}

class TextDataTest : public testing::Test {
 protected:
  std::vector<int64_t> sample(const TextData& text, const SampleId& id, int64_t context) {
    std::vector<int64_t> tokens(context + 1);
    text.training_sample(id, tokens);
    return tokens;
  }
  ScratchFolder folder_;
};

TEST_F(TextDataTest, FoldersAreWalkedInOrderAndOnlyTextIsTaken) {
  write_text(folder_ / "b.txt", "second");
  write_text(folder_ / "a.txt", "first\n");
  std::filesystem::create_directories(folder_ / "c/d");
  write_text(folder_ / "c/d/e", "third\n");
  write_text(folder_ / "c/binary", std::string("\x7f"
                                               "ELF\0",
                                               5));
  write_text(folder_ / "empty", "");
  std::filesystem::create_symlink("a.txt", folder_ / "link");
  const TextData text({folder_ / ""}, 2);
  EXPECT_EQ(text.part(0, text.bytes()), "first\nsecond\nthird\n");
  EXPECT_EQ(text.files(), 4);
}

TEST_F(TextDataTest, WhatIsLeftOutOfAFolderIsCountedByKind) {
  write_text(folder_ / "text", "words\n");
  write_text(folder_ / "b.bin", std::string("\0", 1));
  write_text(folder_ / "a.bin", std::string("\0", 1));
  write_text(folder_ / "c.gz", "\x1f\x8b and so on");
  write_text(folder_ / "wide", "\xff\xfew");
  std::filesystem::create_symlink("text", folder_ / "link");
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  const TextData text({folder_ / ""}, 2);
  EXPECT_EQ(text.files(), 1);
  std::string said;
  for (const auto& [kind, left] : text.left_out()) {
    said += std::to_string(left.count) + " " + std::string(kind) + " " +
            left.first.filename().string() + "\n";
  }
  EXPECT_EQ(said,
            "2 binary files a.bin\n1 compressed by gzip c.gz\n1 devices, sockets and pipes pipe\n"
            "1 in UTF-16 wide\n1 symbolic links link\n");
  EXPECT_TRUE(TextData({folder_ / "text"}, 2).left_out().empty());
}

TEST_F(TextDataTest, AFileThatIsNamedIsTakenAsItIs) {
  write_text(folder_ / "bytes", std::string("\0\xff\0\xfe\0\n", 6));
  const TextData text({folder_ / "bytes"}, 2);
  std::vector<int64_t> tokens(3);
  text.validation_sample(0, tokens);
  EXPECT_EQ(tokens, (std::vector<int64_t>{0xfe, 0, '\n'})) << "bytes are 0 to 255, never negative";
}

TEST_F(TextDataTest, TheLastTenthIsHeldBackWithinLimits) {
  write_text(folder_ / "text", numbered(10'000));
  EXPECT_EQ(TextData({folder_ / "text"}, 100).validation_tokens(), 1000u);
  EXPECT_EQ(TextData({folder_ / "text"}, 2000).validation_tokens(), 2001u) << "at least a context";
  write_text(folder_ / "text", numbered(1'000'000));
  EXPECT_EQ(TextData({folder_ / "text"}, 100).validation_tokens(), size_t{kValidationTokensMax});
}

TEST_F(TextDataTest, SamplesDependOnSeedStepAndIndexAlone) {
  write_text(folder_ / "text", numbered(50'000));
  const TextData text({folder_ / "text"}, 16);
  const std::vector<int64_t> once = sample(text, {1, 7, 3}, 16);
  EXPECT_EQ(sample(text, {1, 7, 3}, 16), once);
  EXPECT_NE(sample(text, {2, 7, 3}, 16), once);
  EXPECT_NE(sample(text, {1, 8, 3}, 16), once);
  EXPECT_NE(sample(text, {1, 7, 4}, 16), once);
  const std::string bytes(once.begin(), once.end());
  EXPECT_NE(text.part(0, text.training_tokens()).find(bytes), std::string::npos)
      << "a piece of the training text";
}

TEST_F(TextDataTest, SamplesReachTheWholeTrainingText) {
  write_text(folder_ / "text", numbered(120));
  const TextData text({folder_ / "text"}, 7);
  std::set<std::vector<int64_t>> seen;
  for (int64_t step = 0; step < 2000; ++step) seen.insert(sample(text, {5, step, 0}, 7));
  EXPECT_EQ(seen.size(), text.training_tokens() - 7) << "every start whose targets lie in the text";
}

TEST_F(TextDataTest, ValidationSamplesCoverTheValidationTextOnce) {
  write_text(folder_ / "text", numbered(3'000));
  const TextData text({folder_ / "text"}, 20);
  ASSERT_EQ(text.validation_tokens(), 300u);
  ASSERT_EQ(text.validation_samples(20), 14);
  std::string targets;
  for (int64_t i = 0; i < 14; ++i) {
    std::vector<int64_t> tokens(21);
    text.validation_sample(i, tokens);
    targets.append(tokens.begin() + 1, tokens.end());
  }
  EXPECT_EQ(targets, text.part(text.training_tokens() + 1, 280));
}

TEST_F(TextDataTest, DigestTellsTextsApart) {
  write_text(folder_ / "one", numbered(1000));
  write_text(folder_ / "two", numbered(1001));
  EXPECT_EQ(TextData({folder_ / "one"}, 10).digest(), TextData({folder_ / "one"}, 20).digest());
  EXPECT_NE(TextData({folder_ / "one"}, 10).digest(), TextData({folder_ / "two"}, 10).digest());
}

TEST_F(TextDataTest, WhatHasNoEndOrIsNoTextIsRefusedByName) {
  EXPECT_THAT([] { TextData({"/dev/zero"}, 2); },
              ThrowsMessage<DataError>(HasSubstr("/dev/zero is a device or a socket")));
  const std::pair<std::string, std::string> formats[] = {
      {"\x1f\x8b\x08", "gzip"}, {"PAR1", "Parquet"}, {"\xff\xfeh", "UTF-16"}};
  for (const auto& [start, name] : formats) {
    write_text(folder_ / "a", start + numbered(100));
    EXPECT_THAT([&] { TextData({folder_ / "a"}, 2); }, ThrowsMessage<DataError>(HasSubstr(name)));
  }
}

TEST_F(TextDataTest, APipeIsReadToItsEnd) {
  const std::filesystem::path pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::thread writer([&] { write_text(pipe, numbered(100)); });
  EXPECT_EQ(TextData({pipe}, 2).files(), 1);
  writer.join();

  // What a second rank would find.
  std::thread none([&] { write_text(pipe, ""); });
  EXPECT_THAT([&] { TextData({pipe}, 2); },
              ThrowsMessage<DataError>(HasSubstr("is empty: a pipe gives its text once")));
  none.join();
}

TEST_F(TextDataTest, AFileOfManyPiecesIsReadWhole) {
  const std::string content = numbered(9'000'000) + "\n";
  write_text(folder_ / "a", content);
  const TextData text({folder_ / "a"}, 2);
  EXPECT_TRUE(text.part(0, text.bytes()) == content);
}

// Small files in memory and large ones where they are make one text.
TEST_F(TextDataTest, WhereTheBytesAreMakesNoDifference) {
  write_text(folder_ / "a", "small\n");
  write_text(folder_ / "b",
             numbered(5'000'000));  // more than is read at once, without a newline at the end
  write_text(folder_ / "c", "small too");
  write_text(folder_ / "d", numbered(3'000) + "\n");
  const TextData in_memory({folder_ / ""}, 16);
  const TextData in_files({folder_ / ""}, 16, {.large_from = 1'000});
  EXPECT_EQ(in_files.bytes(), 5'000'000u + 1 + 3'001 + 6 + 10);
  EXPECT_EQ(in_files.digest(), in_memory.digest());
  ASSERT_TRUE(in_files.part(0, in_files.bytes()) == in_memory.part(0, in_memory.bytes()));
  for (size_t begin = 4'999'990; begin < in_files.bytes() - 40; ++begin)
    ASSERT_EQ(in_files.part(begin, 40), in_memory.part(begin, 40)) << begin;
  for (int64_t step = 0; step < 100; ++step)
    ASSERT_EQ(sample(in_files, {1, step, 0}, 16), sample(in_memory, {1, step, 0}, 16));
}

TEST_F(TextDataTest, AFileThatIsRemovedIsStillReadAndOneThatIsCutCostsItsBytesAlone) {
  const std::string content = numbered(5'000) + "\n";
  write_text(folder_ / "kept", content);
  write_text(folder_ / "cut", content);
  std::vector<std::string> said;
  const TextOptions options{.large_from = 1'000,
                            .notice = [&](const std::string& what) { said.push_back(what); }};
  const TextData text({folder_ / "kept", folder_ / "cut"}, 16, options);
  std::filesystem::remove(folder_ / "kept");
  EXPECT_EQ(text.part(0, text.bytes()), content + content);
  EXPECT_TRUE(said.empty());
  std::filesystem::resize_file(folder_ / "cut", 100);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(text.part(content.size() + 90, 20), content.substr(90, 10) + std::string(10, '\n'));
  }
  ASSERT_EQ(said.size(), 1u) << "once";
  EXPECT_THAT(said[0], HasSubstr((folder_ / "cut").string()));
}

TEST_F(TextDataTest, RefusalsNameThePath) {
  const auto refusal = [&](const char* name, int64_t context) {
    return [this, name, context] { TextData({folder_ / name}, context); };
  };
  EXPECT_THAT(refusal("absent", 4),
              ThrowsMessage<DataError>(HasSubstr((folder_ / "absent").string())));
  write_text(folder_ / "empty", "");
  EXPECT_THAT(refusal("empty", 4), ThrowsMessage<DataError>(HasSubstr("empty is empty")));
  std::filesystem::create_directory(folder_ / "nothing");
  EXPECT_THAT(refusal("nothing", 4), ThrowsMessage<DataError>(HasSubstr("no text in")));
  write_text(folder_ / "short", "123456789\n");
  EXPECT_NO_THROW(TextData({folder_ / "short"}, 4));
  EXPECT_THAT(refusal("short", 5),
              ThrowsMessage<DataError>(HasSubstr("10 bytes of text are too few")));
}

// ---- files of tokens ----------------------------------------------------------------------------

template <class Token>
std::string counting(int64_t count, int64_t vocab) {
  std::string bytes;
  for (int64_t i = 0; i < count; ++i) {
    const auto token = static_cast<Token>(i % vocab);
    bytes.append(reinterpret_cast<const char*>(&token), sizeof token);
  }
  return bytes;
}

/// llm.c's.
std::string header(int32_t magic, int32_t version, int32_t tokens) {
  std::vector<int32_t> words(256);
  words[0] = magic;
  words[1] = version;
  words[2] = tokens;
  return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof words[0]};
}

TEST_F(TextDataTest, TokensAreReadInBothLayouts) {
  write_text(folder_ / "nano.bin", counting<uint16_t>(2000, 300));
  write_text(folder_ / "nano_wide.bin", counting<uint32_t>(2000, 70000));
  write_text(folder_ / "llmc.bin", header(20240520, 1, 2000) + counting<uint16_t>(2000, 300));
  write_text(folder_ / "llama.bin", header(20240801, 7, 2000) + counting<uint32_t>(2000, 70000));
  for (const auto& [name, vocab] : {std::pair("nano.bin", 300),
                                    {"nano_wide.bin", 70000},
                                    {"llmc.bin", 300},
                                    {"llama.bin", 70000}}) {
    const TextData data({folder_ / name}, 10, {.vocab = vocab});
    EXPECT_TRUE(data.is_tokens());
    EXPECT_EQ(data.tokens(), 2000u) << name;
    EXPECT_EQ(data.training_tokens(), 1800u) << name;
    std::vector<int64_t> tokens(11);
    data.validation_sample(0, tokens);
    for (int64_t i = 0; i < 11; ++i) EXPECT_EQ(tokens[i], (1800 + i) % vocab) << name;
    const auto drawn = sample(data, {1, 2, 3}, 10);
    for (int64_t i = 0; i < 10; ++i) EXPECT_EQ(drawn[i + 1], (drawn[i] + 1) % vocab) << name;
  }
}

TEST_F(TextDataTest, SeveralFilesOfTokensFollowOneAnother) {
  write_text(folder_ / "a.bin", counting<uint16_t>(7, 300));
  write_text(folder_ / "b.bin", header(20240520, 1, 30) + counting<uint16_t>(30, 300));
  const TextData data({folder_ / "a.bin", folder_ / "b.bin"}, 4, {.vocab = 300});
  EXPECT_EQ(data.tokens(), 37u);
  EXPECT_EQ(data.files(), 2);
  std::vector<int64_t> tokens(5);
  data.validation_sample(0, tokens);
  EXPECT_THAT(tokens, testing::ElementsAre(25, 26, 27, 28, 29));
}

TEST_F(TextDataTest, TokensThatCannotBeAreRefusedWithTheirPlace) {
  const auto expect_refused = [&](const std::vector<std::string>& names, int64_t vocab,
                                  const std::string& why) {
    std::vector<std::filesystem::path> paths;
    for (const std::string& name : names) paths.push_back(folder_ / name);
    const auto read = [&] {
      const TextData data(paths, 4, {.vocab = vocab});
      std::vector<int64_t> tokens(5);
      for (int64_t i = 0; i < data.validation_samples(4); ++i) data.validation_sample(i, tokens);
    };
    EXPECT_THAT(read, ThrowsMessage<DataError>(HasSubstr(why)));
  };
  write_text(folder_ / "good.bin", counting<uint16_t>(100, 300));
  write_text(folder_ / "wide.bin", header(20240801, 7, 50) + counting<uint32_t>(50, 300));
  write_text(folder_ / "odd.bin", counting<uint16_t>(100, 300) + "x");
  write_text(folder_ / "cut.bin", header(20240520, 1, 2000) + counting<uint16_t>(1000, 300));
  write_text(folder_ / "empty.bin", "");
  write_text(folder_ / "text", numbered(1000));
  expect_refused({"good.bin"}, 95, "good.bin, byte 190: token 95, and the model has 95 token ids");
  expect_refused({"odd.bin"}, 300, "has 201 bytes of tokens");
  expect_refused({"cut.bin"}, 300, "says that it has 2000 tokens, and has 1000");
  expect_refused({"empty.bin"}, 300, "is empty");
  expect_refused({"good.bin", "wide.bin"}, 300,
                 "has tokens of 4 bytes, and the files before it of 2");
  expect_refused({"good.bin", "text"}, 300, "files of tokens (.bin) or text, not both");
  expect_refused({"text"}, 300, "a model of 256 token ids, and this one has 300");
  expect_refused({"gone.bin"}, 300, "no text at");
}

TEST_F(TextDataTest, AFileOfTokensIsKnownByItsSizeAndPlacesOfIt) {
  std::string bytes = counting<uint16_t>(3'000'000, 300);
  write_text(folder_ / "a.bin", bytes);
  const TextData data({folder_ / "a.bin"}, 10, {.vocab = 300});
  EXPECT_EQ(TextData({folder_ / "a.bin"}, 10, {.vocab = 300}).digest(), data.digest());
  bytes[0] ^= 1;
  write_text(folder_ / "b.bin", bytes);
  EXPECT_NE(TextData({folder_ / "b.bin"}, 10, {.vocab = 300}).digest(), data.digest());
  write_text(folder_ / "c.bin", counting<uint16_t>(3'000'001, 300));
  EXPECT_NE(TextData({folder_ / "c.bin"}, 10, {.vocab = 300}).digest(), data.digest());
}

// Ten gigabytes that take no room on the disk.
TEST_F(TextDataTest, TenGigabytesOfTokensAreThereAtOnce) {
  write_text(folder_ / "large.bin", "");
  constexpr int64_t kBytes = int64_t{10} << 30;
  std::error_code error;
  std::filesystem::resize_file(folder_ / "large.bin", kBytes, error);
  if (error) GTEST_SKIP() << "no sparse file here: " << error.message();
  const TextData data({folder_ / "large.bin"}, 1024, {.vocab = 300});
  EXPECT_EQ(data.tokens(), static_cast<size_t>(kBytes / 2));
  EXPECT_EQ(sample(data, {1, 2, 3}, 1024), std::vector<int64_t>(1025));
}

}  // namespace
}  // namespace fusedbun::data
