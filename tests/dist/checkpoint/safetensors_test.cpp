// Files: what is written is read back, and no damaged or strange file is believed.
#include "fusedbun/dist/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::checkpoint {
namespace {

using support::read_text;
using support::ScratchFolder;
using support::write_text;

using testing::HasSubstr;
using testing::ThrowsMessage;

std::string with_length(uint64_t header_bytes, const std::string& rest) {
  std::string file(sizeof header_bytes, '\0');
  std::memcpy(file.data(), &header_bytes, sizeof header_bytes);
  return file + rest;
}

class Safetensors : public testing::Test {
 protected:
  void write_example() {
    std::iota(floats_.begin(), floats_.end(), -2.5f);
    const std::vector<StoredTensor> tensors = {
        {"byte", Dtype::U8, {}, std::as_bytes(std::span(&byte_, 1))},
        {"matrix", Dtype::F32, {2, 3}, std::as_bytes(std::span(floats_))},
        {"nothing", Dtype::F32, {0, 3}, {}},
    };
    write_safetensors(file_, tensors, {{"format", "pt"}});
  }
  void expect_refused(const std::string& content, const std::string& why) {
    write_text(file_, content);
    EXPECT_THAT([&] { SafetensorsFile{file_}; }, ThrowsMessage<DataError>(HasSubstr(why)));
  }

  ScratchFolder folder_;
  std::filesystem::path file_ = folder_ / "model.safetensors";
  uint8_t byte_ = 42;
  std::array<float, 6> floats_{};
};

TEST_F(Safetensors, OtherFormatsAreNamed) {
  expect_refused("{\"metadata\": {\"total_size\": 4}}",
                 "this is JSON, perhaps the index of a model");
  expect_refused(std::string("PK\x03\x04\0\0\x08\x08", 8) + "archive",
                 "this is a file of torch.save");
  expect_refused(
      "\x80\x02\x8a\nl\xfc\x9c"
      "F",
      "this is a file of torch.save");
  expect_refused(std::string("GGUF\x03\0\0\0", 8), "this is a GGUF file");
  expect_refused("version https://git-lfs.github.com/spec/v1", "this is a pointer of Git LFS");
  // A header of 123 bytes begins with a brace too.
  expect_refused(with_length('{', std::string(200, 'x')), "does not start with '{'");
}

TEST_F(Safetensors, WhatIsWrittenIsReadBack) {
  write_example();
  const SafetensorsFile file(file_);
  EXPECT_EQ(file.metadata(), (Metadata{{"format", "pt"}}));
  ASSERT_EQ(file.tensors().size(), 3u);
  const StoredTensor* matrix = file.find("matrix");
  ASSERT_NE(matrix, nullptr);
  EXPECT_EQ(matrix->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(matrix->dtype, Dtype::F32);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(matrix->bytes.data()) % alignof(float), 0u);
  EXPECT_TRUE(std::ranges::equal(matrix->bytes, std::as_bytes(std::span(floats_))));
  EXPECT_EQ(file.find("byte")->bytes[0], std::byte{42});
  EXPECT_EQ(file.find("nothing")->bytes.size(), 0u);
  EXPECT_EQ(file.find("absent"), nullptr);
}

TEST_F(Safetensors, EveryTruncationIsRefused) {
  write_example();
  const std::string whole = read_text(file_);
  ASSERT_GT(whole.size(), 200u);
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    write_text(file_, whole.substr(0, bytes));
    EXPECT_THROW(SafetensorsFile{file_}, DataError) << "cut after " << bytes << " bytes";
  }
  write_text(file_, whole + "x");
  EXPECT_THROW(SafetensorsFile{file_}, DataError);
}

TEST_F(Safetensors, LengthsThatLieAreRefused) {
  expect_refused("", "0 bytes are too few");
  expect_refused("1234567", "7 bytes are too few");
  expect_refused(with_length(0, ""), "does not start with '{'");
  expect_refused(with_length(3, "{}"), "more than the file has");
  expect_refused(with_length(100'000'001, "{}"), "at most 100000000");
  expect_refused(with_length(UINT64_MAX, "{}"), "at most 100000000");
  expect_refused(with_length(UINT64_MAX - 7, "{}"), "at most 100000000");
}

TEST_F(Safetensors, RefusalsNameTheFile) {
  expect_refused(with_length(2, "{x"), file_.string());
}

TEST_F(Safetensors, OnlyRegularFilesAreOpened) {
  write_example();
  std::filesystem::create_symlink(file_, folder_ / "link");
  EXPECT_THAT([&] { SafetensorsFile{folder_ / "link"}; },
              ThrowsMessage<DataError>(HasSubstr("symbolic link")));
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  EXPECT_THAT([&] { SafetensorsFile{folder_ / "pipe"}; },
              ThrowsMessage<DataError>(HasSubstr("not a regular file")));
  EXPECT_THAT([&] { SafetensorsFile{"/dev/zero"}; },
              ThrowsMessage<DataError>(HasSubstr("not a regular file")));
  EXPECT_THAT([&] { SafetensorsFile{folder_ / ""}; },
              ThrowsMessage<DataError>(HasSubstr("not a regular file")));
  EXPECT_THAT([&] { SafetensorsFile{folder_ / "absent"}; },
              ThrowsMessage<IoError>(HasSubstr("No such file or directory")));
}

TEST_F(Safetensors, SingleBitFlipsInTheHeaderNeverCrash) {
  write_example();
  const std::string whole = read_text(file_);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, whole.data(), sizeof header_bytes);
  int refused = 0;
  for (size_t bit = 0; bit < (sizeof header_bytes + header_bytes) * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    write_text(file_, damaged);
    try {
      SafetensorsFile{file_};  // a flip inside a name is a valid file
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace fusedbun::checkpoint
