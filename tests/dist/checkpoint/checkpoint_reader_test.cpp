// Reading: any box of what any number of ranks has saved, against plain arrays; and nothing that is damaged or hostile is read.
#include "fusedbun/dist/checkpoint/checkpoint_reader.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/shard_file.h"
#include "fusedbun/tests/dist/checkpoint/example_checkpoint.h"
#include "fusedbun/tests/support/faulty_calls.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::checkpoint {
namespace {

using support::DiskCall;
using support::FaultyCallsScope;
using support::read_text;
using support::ScratchFolder;
using support::write_text;

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

namespace fs = std::filesystem;

std::vector<std::byte> read_box(const CheckpointReader& reader, const PlainTensor& tensor,
                                const BoxToRead& box) {
  const WholeTensor* stored = reader.find(tensor.folder, tensor.name);
  if (stored == nullptr) throw std::runtime_error(tensor.name + " is not there");
  std::vector<std::byte> out(static_cast<size_t>(product(box.shape) * tensor.element_bytes()),
                             std::byte{0xEE});
  reader.read(*stored, box, out);
  return out;
}

class Reading : public testing::Test {
 protected:
  FaultyCallsScope calls_;
  ScratchFolder scratch_{support::folder_in_memory()};
  CheckpointFolder folder_{scratch_ / "checkpoints"};
};

TEST_F(Reading, WhatWasSavedIsThere) {
  const std::vector<PlainTensor> tensors = small_tensors();
  const Manifest saved = save(folder_, 7, 2, tensors);
  const CheckpointReader reader(folder_.path_of(7));
  EXPECT_EQ(format_manifest(reader.manifest()), format_manifest(saved));
  EXPECT_EQ(reader.tensors(kModelFolder).size(), 2u);
  EXPECT_EQ(reader.tensors(kOptimizerFolder).size(), 1u);
  EXPECT_EQ(reader.tensors(kTensorsFolder).size(), 2u);
  EXPECT_EQ(reader.find(kModelFolder, "bias.row"), nullptr);
  for (const PlainTensor& tensor : tensors) {
    const WholeTensor* stored = reader.find(tensor.folder, tensor.name);
    ASSERT_NE(stored, nullptr) << tensor.name;
    EXPECT_EQ(stored->dtype, tensor.dtype);
    EXPECT_EQ(stored->shape, tensor.shape);
    EXPECT_EQ(stored->parts.size(), tensor.boxes.size());
    std::vector<std::byte> bytes(tensor.bytes.size());
    reader.read(*stored, bytes);
    EXPECT_EQ(bytes, tensor.bytes) << tensor.name;
  }
  reader.verify();
}

TEST_F(Reading, AnyBoxOfAnyCut) {
  std::mt19937_64 random(test_seed(20261127));
  const Dtype dtypes[] = {Dtype::U8,  Dtype::I8,  Dtype::I16, Dtype::F16, Dtype::BF16,
                          Dtype::I32, Dtype::F32, Dtype::F64, Dtype::I64};
  for (int round = 0; round < 25; ++round) {
    const int ranks = 1 + static_cast<int>(random() % 5);
    std::vector<PlainTensor> tensors;
    for (int i = 0; i < 8; ++i) {
      Sizes shape(random() % 5);
      for (int64_t& size : shape)
        size = random() % 20 == 0 ? 0 : 1 + static_cast<int64_t>(random() % 7);
      const int boxes_max = product(shape) == 0 ? 1 : 1 + static_cast<int>(random() % 12);
      tensors.push_back(tensor_in_random_boxes("t" + std::to_string(i), dtypes[random() % 9], shape,
                                               ranks, boxes_max, random));
    }
    save(folder_, round, ranks, tensors);
    const CheckpointReader reader(folder_.path_of(round));
    reader.verify();
    for (const PlainTensor& tensor : tensors) {
      for (int i = 0; i < 20; ++i) {
        BoxToRead box{tensor.shape, tensor.shape};
        for (size_t k = 0; k < tensor.shape.size(); ++k) {
          const auto size = static_cast<uint64_t>(tensor.shape[k]);
          const bool is_whole = random() % 2 == 0;
          box.offsets[k] = is_whole ? 0 : static_cast<int64_t>(random() % (size + 1));
          const uint64_t left = size - static_cast<uint64_t>(box.offsets[k]);
          box.shape[k] = static_cast<int64_t>(is_whole ? size : random() % (left + 1));
        }
        ASSERT_EQ(read_box(reader, tensor, box), tensor.box(box.offsets, box.shape))
            << tensor.name << " of round " << round;
      }
    }
  }
}

TEST_F(Reading, RowsAndBoxesLargerThanWhatIsReadAtOnce) {
  // 3 rows of 6 MiB, cut at a column, and 5,000 rows of 2,000 bytes, cut at both.
  PlainTensor wide = tensor_by_rows(kModelFolder, "wide", Dtype::U8, {3, 6 << 20}, 1);
  wide.boxes = {{0, {0, 0}, {3, 5'000'000}}, {0, {0, 5'000'000}, {3, (6 << 20) - 5'000'000}}};
  PlainTensor tall = tensor_by_rows(kModelFolder, "tall", Dtype::BF16, {5000, 1000}, 1);
  tall.boxes = {{0, {0, 0}, {4000, 600}}, {0, {0, 600}, {4000, 400}}, {0, {4000, 0}, {1000, 1000}}};
  save(folder_, 1, 1, std::vector{wide, tall});
  const CheckpointReader reader(folder_.path_of(1));
  reader.verify();
  EXPECT_EQ(read_box(reader, wide, {{0, 0}, wide.shape}), wide.bytes);
  EXPECT_EQ(read_box(reader, tall, {{0, 0}, tall.shape}), tall.bytes);
  EXPECT_EQ(read_box(reader, wide, {{1, 4'999'990}, {2, 20}}), wide.box({1, 4'999'990}, {2, 20}));
  EXPECT_EQ(read_box(reader, tall, {{3990, 590}, {20, 20}}), tall.box({3990, 590}, {20, 20}));
}

TEST_F(Reading, RowsCostTheirOwnBytes) {
  const PlainTensor tensor = tensor_by_rows(kModelFolder, "w", Dtype::F32, {1000, 64}, 3);
  save(folder_, 1, 3, std::vector{tensor});
  const CheckpointReader reader(folder_.path_of(1));
  for (const auto& [begin, end] :
       {std::pair(0, 1000), {330, 340}, {999, 1000}, {5, 5}, {100, 800}}) {
    calls_->bytes_read = 0;
    read_box(reader, tensor, {{begin, 0}, {end - begin, 64}});
    EXPECT_EQ(calls_->bytes_read, (end - begin) * 64 * 4);
  }
  // Columns: their rows as a whole, once.
  calls_->bytes_read = 0;
  read_box(reader, tensor, {{10, 7}, {20, 3}});
  EXPECT_EQ(calls_->bytes_read, 20 * 64 * 4);
}

TEST_F(Reading, OpeningReadsHeadersAlone) {
  const PlainTensor tensor = tensor_by_rows(kModelFolder, "w", Dtype::F32, {1000, 1000}, 2);
  save(folder_, 1, 2, std::vector{tensor});
  calls_->bytes_read = 0;
  const CheckpointReader reader(folder_.path_of(1));
  EXPECT_LT(calls_->bytes_read, 10'000);
}

TEST_F(Reading, ShortReadsAndInterruptionsAreGoneOn) {
  const std::vector<PlainTensor> tensors = small_tensors();
  save(folder_, 1, 2, tensors);
  for (const int error : {0, EINTR}) {
    bool has_failed = true;
    for (int nth = 1; has_failed; ++nth) {
      calls_->fail(DiskCall::pread, nth, error);
      const CheckpointReader reader(folder_.path_of(1));
      reader.verify();
      EXPECT_EQ(read_box(reader, tensors[0], {{0, 0}, {6, 7}}), tensors[0].bytes);
      has_failed = calls_->has_failed();
    }
  }
  calls_->fail(DiskCall::pread, 3, EIO);
  EXPECT_THAT([&] { CheckpointReader{folder_.path_of(1)}; },
              ThrowsMessage<IoError>(AllOf(HasSubstr("cannot read"), HasSubstr("shard-0000"),
                                           HasSubstr("Input/output error"))));
}

TEST_F(Reading, ManyThreadsReadOne) {
  const std::vector<PlainTensor> tensors = small_tensors();
  save(folder_, 1, 2, tensors);
  const CheckpointReader reader(folder_.path_of(1));
  std::vector<std::jthread> threads;
  std::atomic<int> right = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      reader.verify(i, 4);
      right += read_box(reader, tensors[0], {{0, i}, {6, 2}}) == tensors[0].box({0, i}, {6, 2});
    });
  }
  threads.clear();
  EXPECT_EQ(right, 4);
}

TEST_F(Reading, EachPartIsVerifiedInOneShare) {
  std::mt19937_64 random(test_seed(7));
  std::vector<PlainTensor> tensors;
  for (int i = 0; i < 40; ++i)
    tensors.push_back(tensor_in_random_boxes("t" + std::to_string(i), Dtype::U8,
                                             {static_cast<int64_t>(random() % 500)}, 3, 1, random));
  save(folder_, 1, 3, tensors);
  const CheckpointReader reader(folder_.path_of(1));
  calls_->bytes_read = 0;
  reader.verify();
  const int64_t all = calls_->bytes_read;
  for (const int shares : {1, 2, 3, 7, 100}) {
    calls_->bytes_read = 0;
    for (int share = 0; share < shares; ++share) {
      const int64_t before = calls_->bytes_read;
      reader.verify(share, shares);
      // At most the last tensor more than its share.
      EXPECT_LE(calls_->bytes_read - before, all / shares + 500);
    }
    EXPECT_EQ(calls_->bytes_read, all);
  }
}

TEST_F(Reading, FilesOfMoreThan4GiB) {
  // Holes of the file system: 5 GiB take no room. Its digest would have to be read, so it is left out.
  folder_.begin(1);
  const std::string path = shard_path(kModelFolder, 0, 1, 1);
  const std::byte nothing[8] = {};
  const PartInMemory small{"w", Dtype::U8, {8}, {0}, nothing};
  const Metadata metadata;
  Manifest manifest = example_manifest(1);
  manifest.job_step = 1;
  StoredFile file =
      write_shard_file(folder_.path_under_way(1), path, std::span(&small, 1), metadata);
  const fs::path whole = folder_.path_under_way(1) / path;
  constexpr int64_t kBytes = int64_t{5} << 30;
  std::string header = read_text(whole).substr(0, static_cast<size_t>(header_bytes_of(file)));
  for (const auto& [from, to] :
       {std::pair<std::string, std::string>{"\"shape\":[8]", "\"shape\":[5368709120]"},
        {"\"data_offsets\":[0,8]", "\"data_offsets\":[0,5368709120]"}})
    header.replace(header.find(from), from.size(), to);
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size() - 8;
  std::memcpy(header.data(), &length, 8);
  write_text(whole, header);
  ASSERT_EQ(::truncate(whole.c_str(), std::ssize(header) + kBytes), 0);
  {
    std::fstream stream(whole, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(std::ssize(header) + kBytes - 3);
    stream.write("end", 3);
  }
  file.bytes = std::ssize(header) + kBytes;
  file.header = digest_of(std::as_bytes(std::span(header)));
  file.parts[0].shape = {kBytes};
  manifest.files = {file};
  folder_.publish(manifest);
  const CheckpointReader reader(folder_.path_of(1));
  std::string end(5, '?');
  reader.read(*reader.find(kModelFolder, "w"), {{kBytes - 5}, {5}},
              std::as_writable_bytes(std::span(end)));
  EXPECT_EQ(end, std::string("\0\0end", 5));
}

TEST_F(Reading, OurBugsAbort) {
  const std::vector<PlainTensor> tensors = small_tensors();
  save(folder_, 1, 2, tensors);
  const CheckpointReader reader(folder_.path_of(1));
  const WholeTensor& tensor = *reader.find(kModelFolder, "wte.weight");
  std::vector<std::byte> out(84);
  EXPECT_DEATH(reader.read(tensor, {{0, 0}, {6, 8}}, out), "a box lies in its tensor");
  EXPECT_DEATH(reader.read(tensor, {{0, 0}, {5, 7}}, out), "the memory fits");
  EXPECT_DEATH(reader.read(tensor, {{0}, {6}}, out), "as many dimensions");
  EXPECT_DEATH(reader.tensors("secrets"), "no folder secrets");
}

// ---- damage

/// The tensor whose bytes hold byte `at` of a shard file, by the file's own header; empty: the header.
std::string tensor_at(const std::string& file, size_t at) {
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  if (at < 8 + length) return {};
  const nlohmann::json header = nlohmann::json::parse(file.substr(8, length));
  for (const auto& [name, facts] : header.items()) {
    if (name == "__metadata__") continue;
    if (facts["data_offsets"][0] <= at - 8 - length && facts["data_offsets"][1] > at - 8 - length)
      return name;
  }
  throw std::runtime_error("no tensor has this byte");
}

void flip_bit(const fs::path& path, size_t bit) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(bit / 8));
  const auto byte = static_cast<char>(file.get() ^ (1 << bit % 8));
  file.seekp(static_cast<std::streamoff>(bit / 8));
  file.put(byte);
}

TEST_F(Reading, EverySingleBitThatChangesIsFoundAndItsPlaceNamed) {
  std::mt19937_64 random(test_seed(20261127));
  save(folder_, 1, 2, small_tensors());
  const std::vector<fs::path> files = files_of(folder_.path_of(1));
  std::vector<std::string> contents;
  size_t bytes = 0;
  for (const fs::path& file : files) bytes += contents.emplace_back(read_text(file)).size();
  int in_tensors = 0;
  for (int flip = 0; flip < 2000; ++flip) {
    size_t bit = random() % (bytes * 8), file = 0;
    while (bit >= contents[file].size() * 8) bit -= contents[file++].size() * 8;
    flip_bit(files[file], bit);
    std::string where = files[file].string();
    if (files[file].extension() == ".safetensors") {
      const std::string tensor = tensor_at(contents[file], bit / 8);
      if (!tensor.empty()) {
        where = "'" + tensor + "'";
        ++in_tensors;
      }
    }
    ASSERT_THAT([&] { CheckpointReader(folder_.path_of(1)).verify(); },
                ThrowsMessage<DataError>(AllOf(HasSubstr(files[file].string()), HasSubstr(where))))
        << "bit " << bit << " of " << files[file];
    flip_bit(files[file], bit);
  }
  EXPECT_GT(in_tensors, 20);
  CheckpointReader(folder_.path_of(1)).verify();
}

TEST_F(Reading, EveryBitOfEveryTensorIsFound) {
  save(folder_, 1, 2, small_tensors());
  for (const fs::path& file : files_of(folder_.path_of(1))) {
    if (file.extension() != ".safetensors") continue;
    const std::string whole = read_text(file);
    for (size_t at = 0; at < whole.size(); ++at) {
      const std::string tensor = tensor_at(whole, at);
      if (tensor.empty()) continue;
      flip_bit(file, at * 8 + at % 8);
      ASSERT_THAT(
          [&] { CheckpointReader(folder_.path_of(1)).verify(); },
          ThrowsMessage<DataError>(AllOf(HasSubstr(file.string()), HasSubstr("'" + tensor + "'"),
                                         HasSubstr("load an earlier one"))));
      flip_bit(file, at * 8 + at % 8);
    }
  }
}

TEST_F(Reading, EveryTruncationIsRefused) {
  save(folder_, 1, 2, small_tensors());
  size_t cuts = 0;
  for (const fs::path& file : files_of(folder_.path_of(1))) {
    const std::string whole = read_text(file);
    for (size_t left = whole.size(); left-- > 0; ++cuts) {
      ASSERT_EQ(::truncate(file.c_str(), static_cast<off_t>(left)), 0);
      ASSERT_THAT([&] { CheckpointReader{folder_.path_of(1)}; },
                  ThrowsMessage<DataError>(HasSubstr(file.string())))
          << left << " bytes left";
    }
    write_text(file, whole);
    write_text(file, whole + "x");
    ASSERT_THAT([&] { CheckpointReader{folder_.path_of(1)}; },
                ThrowsMessage<DataError>(HasSubstr(file.string())));
    write_text(file, whole);
  }
  EXPECT_GT(cuts, 4000u);
  CheckpointReader(folder_.path_of(1)).verify();
}

TEST_F(Reading, CutsOfALargerOneAreRefused) {
  std::mt19937_64 random(test_seed(20261127));
  save(folder_, 1, 2, std::vector{tensor_by_rows(kModelFolder, "w", Dtype::F32, {1024, 1024}, 2)});
  for (const fs::path& file : files_of(folder_.path_of(1))) {
    if (file.extension() != ".safetensors") continue;
    const std::string whole = read_text(file);
    std::vector<size_t> cuts(250);
    for (size_t& cut : cuts) cut = random() % whole.size();
    std::ranges::sort(cuts, std::greater{});
    for (const size_t cut : cuts) {
      ASSERT_EQ(::truncate(file.c_str(), static_cast<off_t>(cut)), 0);
      ASSERT_THAT([&] { CheckpointReader{folder_.path_of(1)}; },
                  ThrowsMessage<DataError>(HasSubstr(file.string())));
    }
    write_text(file, whole);
  }
}

TEST_F(Reading, AFileThatIsCutWhileItIsReadIsAnErrorAndNoSignal) {
  const std::vector<PlainTensor> tensors = small_tensors();
  save(folder_, 1, 2, tensors);
  const CheckpointReader reader(folder_.path_of(1));
  const fs::path file = folder_.path_of(1) / shard_path(kModelFolder, 1, 1, 1);
  ASSERT_EQ(::truncate(file.c_str(), static_cast<off_t>(fs::file_size(file) - 1)), 0);
  EXPECT_THAT(
      [&] {
        read_box(reader, tensors[0], {{0, 0}, {6, 7}});
      },
      ThrowsMessage<DataError>(
          AllOf(HasSubstr(file.string()), HasSubstr("cut while it was read"))));
  EXPECT_THROW(reader.verify(), DataError);
}

TEST_F(Reading, WhatIsMissingIsNamed) {
  save(folder_, 1, 2, small_tensors());
  const fs::path checkpoint = folder_.path_of(1);
  EXPECT_THAT([&] { CheckpointReader{folder_.path_of(2)}; },
              ThrowsMessage<DataError>(HasSubstr("step-2 is missing")));
  EXPECT_THAT([&] { CheckpointReader{checkpoint / kManifestName}; },
              ThrowsMessage<DataError>(HasSubstr("is not a folder")));
  const std::vector<fs::path> files = files_of(checkpoint);
  for (const fs::path& file : files) {
    fs::rename(file, scratch_ / "away");
    EXPECT_THAT([&] { CheckpointReader{checkpoint}; },
                ThrowsMessage<DataError>(HasSubstr(file.string() + " is missing")));
    fs::rename(scratch_ / "away", file);
  }
  fs::rename(checkpoint / kModelFolder, scratch_ / "away");
  EXPECT_THAT(
      [&] { CheckpointReader{checkpoint}; },
      ThrowsMessage<DataError>(HasSubstr((checkpoint / kModelFolder).string() + " is missing")));
}

TEST_F(Reading, OnlyRegularFilesOfTheCheckpointAreOpened) {
  save(folder_, 1, 2, small_tensors());
  const fs::path checkpoint = folder_.path_of(1);
  std::vector<fs::path> files = files_of(checkpoint);
  for (const fs::path& file : files) {
    const auto expect_refused = [&](const std::string& why) {
      const auto start = std::chrono::steady_clock::now();
      EXPECT_THAT([&] { CheckpointReader{checkpoint}; },
                  ThrowsMessage<DataError>(AllOf(HasSubstr(file.string()), HasSubstr(why))));
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
      fs::remove(file);
    };
    fs::rename(file, scratch_ / "away");
    fs::create_symlink(scratch_ / "away", file);
    expect_refused("symbolic link");
    fs::create_symlink("/dev/zero", file);
    expect_refused("symbolic link");
    ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
    expect_refused("not a regular file");
    fs::create_directory(file);
    expect_refused("not a regular file");
    // A device, where making one is allowed.
    if (::mknod(file.c_str(), S_IFCHR | 0600, (1 << 8) | 5) == 0)
      expect_refused("not a regular file");
    fs::rename(scratch_ / "away", file);
  }
  fs::rename(checkpoint / kModelFolder, scratch_ / "away");
  fs::create_directory_symlink(scratch_ / "away", checkpoint / kModelFolder);
  EXPECT_THAT([&] { CheckpointReader{checkpoint}; },
              ThrowsMessage<DataError>(
                  HasSubstr("model is not a folder (symbolic links are not followed)")));
}

TEST_F(Reading, AGiantManifestIsNotRead) {
  save(folder_, 1, 2, small_tensors());
  ASSERT_EQ(::truncate((folder_.path_of(1) / kManifestName).c_str(), off_t{1} << 40), 0);
  calls_->bytes_read = 0;
  EXPECT_THAT([&] { CheckpointReader{folder_.path_of(1)}; },
              ThrowsMessage<DataError>(HasSubstr("more than any manifest that is read")));
  EXPECT_EQ(calls_->bytes_read, 0);
}

// ---- hostile files whose digests are right

struct HostileShard {
  std::string name;
  std::string header;  ///< the text
  std::string data;
  std::string why;
  std::optional<uint64_t> length = std::nullopt;  ///< claimed of the header, if it is not its own
};
void PrintTo(const HostileShard& shard, std::ostream* out) {
  *out << shard.name;
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

/// The manifest lists "a", four bytes of U8, at the end of the file.
std::vector<HostileShard> hostile_shards() {
  const std::string a = entry("a", "U8", "[4]", "[0,4]");
  const std::string four = "data";
  return {
      {"length_beyond_the_file", "{" + a + "}", four, "of another length", 1000},
      {"length_too_large", "{" + a + "}", four, "of another length", 100'000'001},
      {"length_overflows", "{" + a + "}", four, "of another length", UINT64_MAX - 3},
      {"length_shorter", "{" + a + "}", four, "of another length", 10},
      {"length_0", "{" + a + "}", four, "of another length", 0},
      {"not_utf8", "{\"\xFF\":{}," + a + "}", four, "not valid JSON in UTF-8"},
      {"leading_space", " {" + a + "}", four, "does not start with '{'"},
      {"list", "[{" + a + "}]", four, "does not start with '{'"},
      {"nul", "{" + a + "}" + std::string("\0", 1), four, "NUL byte"},
      {"name_twice", "{" + a + "," + a + "}", four, "the name is there twice"},
      {"field_twice",
       "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", four,
       "is there twice"},
      {"dtype_unknown", "{" + entry("a", "Q8", "[4]", "[0,4]") + "}", four, "unknown element type"},
      {"metadata_number", "{\"__metadata__\":{\"k\":1}," + a + "}", four,
       "a number is not expected"},
      {"shape_overflows", "{" + entry("a", "U8", "[4294967296,4294967296]", "[0,4]") + "}", four,
       "overflows"},
      {"half_bytes", "{" + entry("a", "F4", "[7]", "[0,4]") + "}", four, "do not fill whole bytes"},
      {"size_differs", "{" + entry("a", "U8", "[5]", "[0,4]") + "}", four,
       "need 5 bytes, data_offsets give 4"},
      {"ends_before_it_begins", "{" + entry("a", "U8", "[4]", "[4,0]") + "}", four,
       "ends before it begins"},
      {"begins_late", "{" + entry("a", "U8", "[3]", "[1,4]") + "}", four, "not at 0"},
      {"gap", "{" + entry("a", "U8", "[1]", "[0,1]") + "," + entry("b", "U8", "[2]", "[2,4]") + "}",
       four, "gap or an overlap"},
      {"overlap",
       "{" + entry("a", "U8", "[3]", "[0,3]") + "," + entry("b", "U8", "[2]", "[2,4]") + "}", four,
       "gap or an overlap"},
      {"ends_early", "{" + entry("a", "U8", "[3]", "[0,3]") + "}", four,
       "need 3 bytes, the file has 4"},
      {"ends_late", "{" + entry("a", "U8", "[5]", "[0,5]") + "}", four,
       "need 5 bytes, the file has 4"},
      {"rank_9", "{" + entry("a", "U8", "[1,1,1,1,1,1,1,1,4]", "[0,4]") + "}", four,
       "more than 8 numbers"},
      {"long_name", "{" + entry(std::string(4097, 'n'), "U8", "[4]", "[0,4]") + "}", four,
       "more than 4096 bytes"},
      {"deep", "{\"a\":" + std::string(100'000, '[') + "}", four, "a list is not expected"},
      {"other_tensor", "{" + entry("b", "U8", "[4]", "[0,4]") + "}", four,
       "'a' is not where, or what, the manifest lists"},
      {"other_type", "{" + entry("a", "I8", "[4]", "[0,4]") + "}", four,
       "'a' is not where, or what, the manifest lists"},
      {"other_shape", "{" + entry("a", "U8", "[2,2]", "[0,4]") + "}", four,
       "'a' is not where, or what, the manifest lists"},
      {"one_tensor_more", "{" + a + "," + entry("b", "U8", "[0]", "[4,4]") + "}", four,
       "it holds 2 tensors, and the manifest lists 1"},
      {"none", "{}", "data", "need 0 bytes, the file has 4"},
  };
}

class HostileShards : public testing::TestWithParam<HostileShard> {};

TEST_P(HostileShards, AreRefused) {
  const HostileShard& shard = GetParam();
  const ScratchFolder scratch;
  const std::string path = shard_path(kModelFolder, 0, 1, 1);
  const uint64_t length = shard.length.value_or(shard.header.size());
  const std::string start =
      std::string(reinterpret_cast<const char*>(&length), sizeof length) + shard.header;
  Manifest manifest = example_manifest(1);
  manifest.files = {
      {path,
       std::ssize(start + shard.data),
       digest_of(std::as_bytes(std::span(start))),
       {{"a", Dtype::U8, {4}, {0}, digest_of(std::as_bytes(std::span(shard.data)))}}}};
  fs::create_directories(scratch / "step-1/model");
  write_text(scratch / "step-1/model" / fs::path(path).filename().string(), start + shard.data);
  write_text(scratch / "step-1/manifest.json", format_manifest(manifest));
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THAT([&] { CheckpointReader{scratch / "step-1"}; },
              ThrowsMessage<DataError>(AllOf(HasSubstr((scratch / "step-1").string() + "/" + path),
                                             HasSubstr(shard.why))));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
}
INSTANTIATE_TEST_SUITE_P(Rules, HostileShards, testing::ValuesIn(hostile_shards()),
                         [](const auto& info) { return info.param.name; });

struct BadCover {
  std::string name;
  std::vector<StoredPart> parts;  ///< each in a file of its own
  std::string why;
};
void PrintTo(const BadCover& cover, std::ostream* out) {
  *out << cover.name;
}

StoredPart part(const Sizes& offsets, const Sizes& shape, Dtype dtype = Dtype::U8) {
  return {"a", dtype, shape, offsets, {}};
}

std::vector<BadCover> bad_covers() {
  const std::string cover = "there is a gap or an overlap near element ";
  return {
      {"begins_late", {part({1}, {3})}, cover + "[0] of [4]"},
      {"gap", {part({0}, {2}), part({3}, {1})}, cover + "[2] of [4]"},
      {"overlap", {part({0}, {3}), part({2}, {2})}, cover + "[2] of [4]"},
      {"twice", {part({0}, {4}), part({0}, {4})}, cover + "[0] of [4]"},
      {"scalar_twice", {part({}, {}), part({}, {})}, cover},
      {"corner_missing", {part({0, 0}, {1, 2}), part({1, 0}, {1, 1})}, cover + "[1, 1] of [2, 2]"},
      {"as_many_elements_but_one_twice",
       {part({0, 0}, {1, 2}), part({0, 1}, {2, 1})},
       cover + "[0, 1] of [2, 2]"},
      {"hole_in_the_middle",
       {part({0, 0}, {1, 3}), part({2, 0}, {1, 3}), part({1, 0}, {1, 1}), part({1, 2}, {1, 1})},
       cover + "[1, 1] of [3, 3]"},
      {"far_away", {part({0}, {1}), part({int64_t{1} << 58}, {1})}, cover + "[1] of"},
      {"whole_overflows",
       {part({0, 0}, {1, 1}), part({int64_t{1} << 40, int64_t{1} << 40}, {1, 1})},
       "overflows"},
      {"types", {part({0}, {2}), part({2}, {2}, Dtype::I8)}, "different types, U8 and I8"},
      {"dimensions", {part({0}, {2}), part({2, 0}, {2, 1})}, "different numbers of dimensions"},
      {"empty_beside_others",
       {part({0}, {2}), part({2}, {0})},
       "a part without elements stands beside others"},
      {"empty_twice",
       {part({0}, {0}), part({0}, {0})},
       "a part without elements stands beside others"},
  };
}

class BadCovers : public testing::TestWithParam<BadCover> {};

TEST_P(BadCovers, AreRefused) {
  Manifest manifest = example_manifest(1);
  int rank = 0;
  for (const StoredPart& stored : GetParam().parts)
    manifest.files.push_back({shard_path(kTensorsFolder, rank++, 1, 1), 100, {}, {stored}});
  EXPECT_THAT([&] { put_together(parse_manifest(format_manifest(manifest))); },
              ThrowsMessage<DataError>(
                  AllOf(HasSubstr("tensor 'a' of tensors/: "), HasSubstr(GetParam().why))));
}
INSTANTIATE_TEST_SUITE_P(Rules, BadCovers, testing::ValuesIn(bad_covers()),
                         [](const auto& info) { return info.param.name; });

TEST(WholeTensors, AgreeWithTheParameters) {
  Manifest manifest = example_manifest(1);
  const StoredPart stored{"bias", Dtype::F32, {4}, {0}, {}};  // the parameter is of shape [5]
  manifest.files = {{shard_path(kModelFolder, 0, 1, 1), 100, {}, {stored}}};
  EXPECT_THAT(
      [&] { put_together(manifest); },
      ThrowsMessage<DataError>(HasSubstr(
          "tensor 'bias' of model/: its values are of shape [4], the parameter is of shape [5]")));
}

TEST(WholeTensors, RandomCutsAreWholeAndNothingElseIs) {
  std::mt19937_64 random(test_seed(20261127));
  int refused = 0;
  for (int round = 0; round < 300; ++round) {
    Sizes shape(1 + random() % 3);
    for (int64_t& size : shape) size = 1 + static_cast<int64_t>(random() % 4);
    PlainTensor tensor = tensor_in_random_boxes("a", Dtype::U8, shape, 1, 8, random);
    const bool damage = random() % 2 == 0;
    if (damage) {  // one number of one box is another
      PlainTensor::Box& box = tensor.boxes[random() % tensor.boxes.size()];
      Sizes& numbers = random() % 2 == 0 ? box.offsets : box.shape;
      int64_t& number = numbers[random() % numbers.size()];
      number = 1 + static_cast<int64_t>(random() % 4) - (&numbers == &box.offsets ? 1 : 0);
    }
    // Counted element by element.
    Sizes whole(shape.size(), 0);
    for (const PlainTensor::Box& box : tensor.boxes) {
      for (size_t i = 0; i < shape.size(); ++i)
        whole[i] = std::max(whole[i], box.offsets[i] + box.shape[i]);
    }
    std::vector<int> owners(static_cast<size_t>(product(whole)), 0);
    for (const PlainTensor::Box& box : tensor.boxes) {
      for (int64_t element = 0; element < product(box.shape); ++element) {
        int64_t left = element, place = 0, stride = 1;
        for (size_t i = shape.size(); i-- > 0; left /= box.shape[i], stride *= whole[i])
          place += (box.offsets[i] + left % box.shape[i]) * stride;
        ++owners[static_cast<size_t>(place)];
      }
    }
    const bool is_whole = std::ranges::all_of(owners, [](int count) { return count == 1; });
    Manifest manifest = example_manifest(1);
    int rank = 0;
    for (const PlainTensor::Box& box : tensor.boxes)
      manifest.files.push_back(
          {shard_path(kTensorsFolder, rank++, 1, 1), 200, {}, {part(box.offsets, box.shape)}});
    bool is_accepted = true;
    try {
      put_together(manifest);
    } catch (const DataError&) {
      is_accepted = false;
    }
    refused += !is_accepted;
    ASSERT_EQ(is_accepted, is_whole) << "round " << round;
  }
  EXPECT_GT(refused, 50);
}

}  // namespace
}  // namespace fusedbun::checkpoint
