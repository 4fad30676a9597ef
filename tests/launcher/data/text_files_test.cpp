#include "fusedbun/launcher/data/text_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

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

class TextFilesTest : public testing::Test {
 protected:
  TextFiles read(const std::vector<std::filesystem::path>& sources, int64_t large_from = 64 << 20) {
    return {sources, large_from, [this](const std::string& what) { said_.push_back(what); }};
  }
  static std::string part(const TextFiles& text, size_t begin, size_t count) {
    std::string bytes(count, '\0');
    text.read(begin, bytes);
    return bytes;
  }
  ScratchFolder folder_;
  std::vector<std::string> said_;
};

TEST_F(TextFilesTest, FoldersAreWalkedInOrderAndOnlyTextIsTaken) {
  write_text(folder_ / "b.txt", "second");
  write_text(folder_ / "a.txt", "first\n");
  std::filesystem::create_directories(folder_ / "c/d");
  write_text(folder_ / "c/d/e", "third\n");
  write_text(folder_ / "c/binary", std::string("\x7f"
                                               "ELF\0",
                                               5));
  write_text(folder_ / "empty", "");
  std::filesystem::create_symlink("a.txt", folder_ / "link");
  const TextFiles text = read({folder_ / ""});
  EXPECT_EQ(part(text, 0, text.bytes()), "first\nsecond\nthird\n");
  EXPECT_EQ(text.files(), 4);
}

TEST_F(TextFilesTest, WhatIsLeftOutOfAFolderIsCountedByKind) {
  write_text(folder_ / "text", "words\n");
  write_text(folder_ / "b.bin", std::string("\0", 1));
  write_text(folder_ / "a.bin", std::string("\0", 1));
  write_text(folder_ / "c.gz", "\x1f\x8b and so on");
  write_text(folder_ / "wide", "\xff\xfew");
  std::filesystem::create_symlink("text", folder_ / "link");
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  const TextFiles text = read({folder_ / ""});
  EXPECT_EQ(text.files(), 1);
  std::string said;
  for (const auto& [kind, left] : text.left_out()) {
    said += std::to_string(left.count) + " " + std::string(kind) + " " +
            left.first.filename().string() + "\n";
  }
  EXPECT_EQ(said,
            "2 binary files a.bin\n1 compressed by gzip c.gz\n1 devices, sockets and pipes pipe\n"
            "1 in UTF-16 wide\n1 symbolic links link\n");
  EXPECT_TRUE(read({folder_ / "text"}).left_out().empty());
}

TEST_F(TextFilesTest, DigestTellsTextsApart) {
  write_text(folder_ / "one", numbered(1000));
  write_text(folder_ / "two", numbered(1001));
  EXPECT_EQ(read({folder_ / "one"}).digest(), read({folder_ / "one"}).digest());
  EXPECT_NE(read({folder_ / "one"}).digest(), read({folder_ / "two"}).digest());
}

TEST_F(TextFilesTest, WhatHasNoEndOrIsNoTextIsRefusedByName) {
  EXPECT_THAT([&] { read({"/dev/zero"}); },
              ThrowsMessage<DataError>(HasSubstr("/dev/zero is a device or a socket")));
  write_text(folder_ / "a.jsonl", "{\"text\": \"words\"}\n");
  EXPECT_THAT(
      [&] { read({folder_ / "a.jsonl"}); },
      ThrowsMessage<DataError>(HasSubstr("a.jsonl is JSON lines, whose bytes are no text")));
  const std::pair<std::string, std::string> formats[] = {
      {"\x1f\x8b\x08", "gzip"}, {"PAR1", "Parquet"}, {"\xff\xfeh", "UTF-16"}};
  for (const auto& [start, name] : formats) {
    write_text(folder_ / "a", start + numbered(100));
    EXPECT_THAT([&] { read({folder_ / "a"}); }, ThrowsMessage<DataError>(HasSubstr(name)));
  }
}

TEST_F(TextFilesTest, APipeIsReadToItsEnd) {
  const std::filesystem::path pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::thread writer([&] { write_text(pipe, numbered(100)); });
  EXPECT_EQ(read({pipe}).files(), 1);
  writer.join();

  // What a second rank would find.
  std::thread none([&] { write_text(pipe, ""); });
  EXPECT_THAT([&] { read({pipe}); },
              ThrowsMessage<DataError>(HasSubstr("is empty: a pipe gives its text once")));
  none.join();
}

TEST_F(TextFilesTest, AFileOfManyPiecesIsReadWhole) {
  const std::string content = numbered(9'000'000) + "\n";
  write_text(folder_ / "a", content);
  const TextFiles text = read({folder_ / "a"});
  EXPECT_TRUE(part(text, 0, text.bytes()) == content);
}

// Small files in memory and large ones where they are make one text.
TEST_F(TextFilesTest, WhereTheBytesAreMakesNoDifference) {
  write_text(folder_ / "a", "small\n");
  write_text(folder_ / "b",
             numbered(5'000'000));  // more than is read at once, without a newline at the end
  write_text(folder_ / "c", "small too");
  write_text(folder_ / "d", numbered(3'000) + "\n");
  const TextFiles in_memory = read({folder_ / ""});
  const TextFiles in_files = read({folder_ / ""}, 1'000);
  EXPECT_EQ(in_files.bytes(), 5'000'000u + 1 + 3'001 + 6 + 10);
  EXPECT_EQ(in_files.digest(), in_memory.digest());
  ASSERT_TRUE(part(in_files, 0, in_files.bytes()) == part(in_memory, 0, in_memory.bytes()));
  for (size_t begin = 4'999'990; begin < in_files.bytes() - 40; ++begin)
    ASSERT_EQ(part(in_files, begin, 40), part(in_memory, begin, 40)) << begin;
  EXPECT_EQ(in_files.begins(), in_memory.begins());
  EXPECT_EQ(in_files.begins()[2], 6u + 5'000'001) << "a file is a document";
}

TEST_F(TextFilesTest, AFileThatIsRemovedIsStillReadAndOneThatIsCutCostsItsBytesAlone) {
  const std::string content = numbered(5'000) + "\n";
  write_text(folder_ / "kept", content);
  write_text(folder_ / "cut", content);
  const TextFiles text = read({folder_ / "kept", folder_ / "cut"}, 1'000);
  std::filesystem::remove(folder_ / "kept");
  EXPECT_EQ(part(text, 0, text.bytes()), content + content);
  EXPECT_TRUE(said_.empty());
  std::filesystem::resize_file(folder_ / "cut", 100);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(part(text, content.size() + 90, 20), content.substr(90, 10) + std::string(10, '\n'));
  }
  ASSERT_EQ(said_.size(), 1u) << "once";
  EXPECT_THAT(said_[0], HasSubstr((folder_ / "cut").string()));
}

}  // namespace
}  // namespace fusedbun::data
