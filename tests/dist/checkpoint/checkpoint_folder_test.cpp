// A checkpoint exists as a whole or not at all: the order of the calls, and what is left when any one of them fails.
#include "fusedbun/dist/checkpoint/checkpoint_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <set>
#include <system_error>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/checkpoint_reader.h"
#include "fusedbun/dist/checkpoint/shard_file.h"
#include "fusedbun/tests/dist/checkpoint/disk_call_order.h"
#include "fusedbun/tests/dist/checkpoint/example_checkpoint.h"
#include "fusedbun/tests/support/faulty_calls.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::checkpoint {
namespace {

using support::DiskCall;
using support::DiskCallRecord;
using support::FaultyCallsScope;
using support::read_text;
using support::ScratchFolder;
using support::write_text;

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::ThrowsMessage;

namespace fs = std::filesystem;

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  if (!fs::exists(folder)) return names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
  return names;
}

class Folder : public testing::Test {
 protected:
  FaultyCallsScope calls_;
  ScratchFolder scratch_;
  CheckpointFolder folder_{scratch_ / "runs/a/checkpoints"};
  const std::vector<PlainTensor> tensors_ = small_tensors();
};

TEST_F(Folder, ASaveLeavesOneFolderAndItsName) {
  save(folder_, 1000, 2, tensors_);
  EXPECT_EQ(names_in(folder_.root()), (std::set<std::string>{"latest", "step-1000"}));
  EXPECT_EQ(read_text(folder_.root() / kLatestName), "step-1000\n");
  EXPECT_EQ(names_in(folder_.path_of(1000)),
            (std::set<std::string>{"manifest.json", "model", "optimizer", "tensors"}));
  EXPECT_EQ(names_in(folder_.path_of(1000) / kModelFolder),
            (std::set<std::string>{"config.json", "shard-00001-model-00001-of-00001.safetensors",
                                   "shard-00002-model-00001-of-00001.safetensors"}));
  CheckpointReader(folder_.path_of(1000)).verify();
}

TEST_F(Folder, TheFoldersAreThereEvenIfNothingIsInThem) {
  save(folder_, 1, 2, std::vector<PlainTensor>{});
  EXPECT_EQ(names_in(folder_.path_of(1)),
            (std::set<std::string>{"manifest.json", "model", "optimizer", "tensors"}));
  EXPECT_TRUE(CheckpointReader(folder_.path_of(1)).tensors(kModelFolder).empty());
}

TEST_F(Folder, StepsAreThoseOfWholeNames) {
  EXPECT_THAT(folder_.steps(), IsEmpty());
  for (const char* name :
       {"step-9", "step-10", "step-0", "step-007", "step--1", "step-", "step-1x", "step-5.tmp",
        "step-6.removed", "step-7.replaced", "step-99999999999999999999", "other"})
    fs::create_directories(folder_.root() / name);
  write_text(folder_.root() / "step-8", "a file");
  fs::create_directory_symlink("step-9", folder_.root() / "step-11");
  EXPECT_THAT(folder_.steps(), ElementsAre(10, 9, 0));
}

TEST_F(Folder, LeftoversGoAndNothingElse) {
  save(folder_, 3, 2, tensors_);
  save(folder_, 4, 2, tensors_);
  fs::rename(folder_.path_of(4), folder_.root() / "step-4.replaced");  // killed between two renames
  fs::create_directories(folder_.root() / "step-3.replaced/model");    // and after both
  for (const char* name :
       {"step-5.tmp/model", "step-6.removed/model", "step-x.tmp", "mine.tmp", "step-2"})
    fs::create_directories(folder_.root() / name);
  write_text(folder_.root() / "latest.0123abcd.tmp", "step-");
  folder_.remove_leftovers();
  EXPECT_EQ(names_in(folder_.root()), (std::set<std::string>{"latest", "step-2", "step-3", "step-4",
                                                             "step-x.tmp", "mine.tmp"}));
  CheckpointReader(folder_.path_of(4)).verify();
  CheckpointFolder(scratch_ / "nowhere").remove_leftovers();
}

TEST_F(Folder, TheOldestGoAndWhatIsNoCheckpointIsNotTouched) {
  for (int step = 1; step <= 6; ++step) save(folder_, step, 2, tensors_);
  fs::remove(folder_.path_of(5) / kManifestName);
  write_text(folder_.path_of(2) / kManifestName, "{}");
  EXPECT_THAT(folder_.remove_oldest(3), ElementsAre(1));
  EXPECT_THAT(folder_.remove_oldest(3), IsEmpty());
  EXPECT_THAT(folder_.steps(), ElementsAre(6, 5, 4, 3, 2));
  fs::create_directories(folder_.root() / "step-4.removed/model");  // of an earlier time
  EXPECT_THAT(folder_.remove_oldest(1), ElementsAre(4, 3));
  EXPECT_THAT(folder_.steps(), ElementsAre(6, 5, 2));
  CheckpointReader(folder_.path_of(6)).verify();
  EXPECT_DEATH(folder_.remove_oldest(0), "the last checkpoint is kept");
}

TEST_F(Folder, LaterOnesAreSetAsideAndCountNoMore) {
  for (const int64_t step : {10, 20, 30}) save(folder_, step, 2, tensors_);
  EXPECT_THAT(folder_.set_aside_after(10), ElementsAre(30, 20));
  EXPECT_THAT(folder_.steps(), ElementsAre(10));
  save(folder_, 15, 2, tensors_);
  EXPECT_THAT(folder_.remove_oldest(2), IsEmpty());
  folder_.remove_leftovers();
  CheckpointReader(folder_.root() / "step-30.set-aside").verify();
  save(folder_, 20, 2, tensors_);
  EXPECT_THAT(folder_.set_aside_after(15), ElementsAre(20));  // again, over the one before
  EXPECT_THAT(folder_.set_aside_after(15), IsEmpty());
}

TEST_F(Folder, BeginRemovesWhatAnEarlierSaveLeft) {
  fs::create_directories(folder_.path_under_way(1) / "model/deep");
  write_text(folder_.path_under_way(1) / "model/deep/file", "x");
  save(folder_, 1, 2, tensors_);
  EXPECT_EQ(files_of(folder_.path_of(1)).size(), 8u);
}

TEST_F(Folder, AStepThatIsSavedAgainIsReplaced) {
  for (const bool has_exchange : {true, false}) {
    if (!has_exchange) calls_->forbid_exchange();
    save(folder_, 1, 2, tensors_);
    const std::vector<PlainTensor> others = {
        tensor_by_rows(kModelFolder, "other", Dtype::F32, {3}, 1)};
    save(folder_, 1, 1, others);
    EXPECT_EQ(names_in(folder_.root()), (std::set<std::string>{"latest", "step-1"}));
    const CheckpointReader reader(folder_.path_of(1));
    reader.verify();
    EXPECT_NE(reader.find(kModelFolder, "other"), nullptr);
  }
}

TEST_F(Folder, AStrangeFileOfThatNameIsNotReplaced) {
  fs::create_directories(folder_.root());
  write_text(folder_.path_of(1), "precious");
  EXPECT_THAT([&] { save(folder_, 1, 2, tensors_); },
              ThrowsMessage<IoError>(
                  AllOf(HasSubstr(folder_.path_of(1).string()), HasSubstr("move it away"))));
  EXPECT_EQ(read_text(folder_.path_of(1)), "precious");
}

TEST_F(Folder, WhatCouldNotBeLoadedIsNotPublished) {
  PlainTensor gap = tensor_by_rows(kTensorsFolder, "gap", Dtype::F32, {4}, 2);
  gap.boxes[1].offsets = {3};
  gap.boxes[1].shape = {1};
  EXPECT_THAT(
      [&] { save(folder_, 1, 2, std::vector{gap}); },
      ThrowsMessage<DataError>(HasSubstr("tensor 'gap' of tensors/: its parts do not cover it")));
  folder_.discard(1);
  EXPECT_THAT(names_in(folder_.root()), IsEmpty());

  Manifest manifest = save(folder_, 1, 2, tensors_);
  folder_.begin(1);
  EXPECT_THAT([&] { folder_.publish(manifest); },
              ThrowsMessage<IoError>(AllOf(HasSubstr("step-1.tmp/model/shard-00001-"),
                                           HasSubstr("all hosts must share this folder"))));
  for (const StoredFile& file : manifest.files)
    write_text(folder_.path_under_way(1) / file.path, "short");
  EXPECT_THAT([&] { folder_.publish(manifest); },
              ThrowsMessage<IoError>(HasSubstr("has 5 bytes, and its rank has written")));
  folder_.discard(1);
  CheckpointReader(folder_.path_of(1)).verify();
}

// ---- order

struct Recorded {
  std::vector<DiskCallRecord> records;
  std::string root;
};

class Order : public Folder {
 protected:
  /// One rank, with files in all folders and two in one of them; one more of step 1 is there before if `again`.
  Recorded record(bool again) {
    PlainTensor cut = tensor_by_rows(kModelFolder, "cut", Dtype::F32, {4}, 2);
    for (PlainTensor::Box& box : cut.boxes) box.rank = 0;
    std::vector<PlainTensor> tensors = small_tensors(1);
    tensors.push_back(cut);
    if (again) save(folder_, 1, 1, tensors);
    calls_->record();
    save(folder_, 1, 1, tensors);
    Recorded recorded{calls_->records(), fs::canonical(folder_.root())};
    calls_->reset();
    return recorded;
  }
};

TEST_F(Order, NoPowerCutLeavesHalfACheckpoint) {
  const Recorded recorded = record(false);
  EXPECT_THAT(order_violations(recorded.records, recorded.root, "step-1"), IsEmpty());
  int fsyncs = 0;
  for (size_t i = 0; i < recorded.records.size(); ++i) {
    if (recorded.records[i].call != DiskCall::fsync) continue;
    std::vector<DiskCallRecord> without = recorded.records;
    without.erase(without.begin() + static_cast<std::ptrdiff_t>(i));
    EXPECT_FALSE(order_violations(without, recorded.root, "step-1").empty())
        << "nobody notices that fsync of " << recorded.records[i].path << " is missing";
    ++fsyncs;
  }
  // Three folders above ROOT's new names, 5 files, 3 folders of files, the manifest and its folder, ROOT, latest and ROOT.
  EXPECT_EQ(fsyncs, 3 + 5 + 3 + 2 + 1 + 2);
}

TEST_F(Order, NorWhenAStepIsSavedAgain) {
  const Recorded recorded = record(true);
  EXPECT_THAT(order_violations(recorded.records, recorded.root, "step-1"), IsEmpty());
  int noticed = 0;
  for (size_t i = 0; i < recorded.records.size(); ++i) {
    std::vector<DiskCallRecord> without = recorded.records;
    without.erase(without.begin() + static_cast<std::ptrdiff_t>(i));
    if (recorded.records[i].call == DiskCall::fsync)
      noticed += !order_violations(without, recorded.root, "step-1").empty();
  }
  EXPECT_EQ(noticed, 5 + 3 + 2 + 1 + 2);
}

TEST_F(Order, TheManifestComesAfterAllFilesAndLatestAtTheEnd) {
  const std::vector<DiskCallRecord> records = record(false).records;
  std::vector<std::string> created;
  for (const DiskCallRecord& record : records) {
    if (record.call == DiskCall::open && record.creates)
      created.push_back(fs::path(record.path).filename());
  }
  ASSERT_EQ(created.size(), 7u);
  for (size_t i = 0; i < 4; ++i) EXPECT_THAT(created[i], testing::StartsWith("shard-"));
  EXPECT_EQ(created[4], "config.json");
  EXPECT_THAT(created[5], testing::StartsWith("manifest.json."));
  EXPECT_THAT(created[6], testing::StartsWith("latest."));
}

TEST_F(Order, RemovedFoldersLoseTheirNamesForGoodBeforeTheirFiles) {
  for (int step = 1; step <= 3; ++step) save(folder_, step, 2, tensors_);
  calls_->record();
  folder_.remove_oldest(1);
  std::vector<std::string> calls;
  for (const DiskCallRecord& record : calls_->records()) {
    if (record.call == DiskCall::rename)
      calls.push_back("rename " + fs::path(record.to).filename().string());
    if (record.call == DiskCall::fsync)
      calls.push_back("fsync " + fs::path(record.path).filename().string());
    // std::filesystem opens a folder to empty it.
    if (record.call == DiskCall::open && record.path.ends_with(".removed"))
      calls.push_back("empty " + fs::path(record.path).filename().string());
  }
  ASSERT_GE(calls.size(), 3u);
  EXPECT_EQ(calls[0], "rename step-2.removed");
  EXPECT_EQ(calls[1], "rename step-1.removed");
  EXPECT_EQ(calls[2], "fsync checkpoints");
  EXPECT_THAT(folder_.steps(), ElementsAre(3));
}

// ---- failures

struct Failure {
  DiskCall call;
  int error;  ///< 0: a part is written
};

constexpr Failure kFailures[] = {
    {DiskCall::open, ENOSPC},  {DiskCall::open, EIO},     {DiskCall::open, EINTR},
    {DiskCall::write, ENOSPC}, {DiskCall::write, EIO},    {DiskCall::write, EINTR},
    {DiskCall::write, 0},      {DiskCall::fsync, ENOSPC}, {DiskCall::fsync, EIO},
    {DiskCall::fsync, EINTR},  {DiskCall::close, ENOSPC}, {DiskCall::close, EIO},
    {DiskCall::close, EINTR},  {DiskCall::rename, EIO},   {DiskCall::rename, ENOSPC},
    {DiskCall::rename, EINTR}, {DiskCall::mkdir, ENOSPC}, {DiskCall::mkdir, EIO},
    {DiskCall::mkdir, EINTR}};

enum class Before { nothing, older, same_step, same_step_without_exchange };
void PrintTo(Before before, std::ostream* out) {
  *out << static_cast<int>(before);
}

class EveryFailure : public testing::TestWithParam<Before> {
 protected:
  bool is_again() const { return GetParam() >= Before::same_step; }

  /// Saves step 2 while the `nth` call fails. Was there such a call?
  bool try_save(const Failure& failure, int nth) {
    const ScratchFolder scratch(support::folder_in_memory());
    const CheckpointFolder folder(scratch / "checkpoints");
    FaultyCallsScope calls;
    calls->skip_fsync();
    const std::vector<PlainTensor> old = small_tensors();
    if (GetParam() != Before::nothing) save(folder, 1, 2, old);
    if (is_again()) save(folder, 2, 2, old);
    const std::vector<PlainTensor> fresh = {
        tensor_by_rows(kModelFolder, "fresh", Dtype::F32, {3}, 2)};
    if (GetParam() == Before::same_step_without_exchange) calls->forbid_exchange();
    calls->fail(failure.call, nth, failure.error);
    bool is_saved = false;
    try {
      save(folder, 2, 2, fresh);
      is_saved = true;
    } catch (const IoError& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr(folder.root().parent_path()),
                                      HasSubstr(std::generic_category().message(failure.error))));
      if (is_again()) {
        EXPECT_TRUE(fs::exists(folder.path_of(2) / kManifestName)) << "not even for a moment";
      }
      folder.discard(2);
    }
    const bool has_failed = calls->has_failed();
    calls->reset();
    // The old one that was replaced may be left for the next start, if its removal is what failed.
    if (is_saved) folder.remove_leftovers();
    // Whatever is there is whole, and has its old or its new content.
    std::set<std::string> names = names_in(folder.root());
    names.erase("latest");
    std::set<std::string> whole;
    for (const int64_t step : folder.steps()) {
      whole.insert("step-" + std::to_string(step));
      const CheckpointReader reader(folder.path_of(step));
      reader.verify();
      const bool is_fresh = reader.find(kModelFolder, "fresh") != nullptr;
      EXPECT_EQ(reader.tensors(kModelFolder).size(), is_fresh ? 1u : 2u);
      if (is_saved && step == 2) {
        EXPECT_TRUE(is_fresh);
      }
    }
    EXPECT_EQ(names, whole) << "something is left";
    if (GetParam() != Before::nothing) {
      EXPECT_TRUE(whole.contains("step-1"));
    }
    if (is_again() || is_saved) {
      EXPECT_TRUE(whole.contains("step-2"));
    }
    if (is_saved) {
      EXPECT_EQ(read_text(folder.root() / kLatestName), "step-2\n");
    }
    // What interrupts a write only costs another one.
    if (failure.call == DiskCall::write && (failure.error == 0 || failure.error == EINTR)) {
      EXPECT_TRUE(is_saved);
    }
    // The next save works.
    save(folder, 3, 2, old);
    CheckpointReader(folder.path_of(3)).verify();
    return has_failed;
  }
};

TEST_P(EveryFailure, LeavesWholeCheckpointsAlone) {
  for (const Failure& failure : kFailures) {
    int nth = 1;
    while (try_save(failure, nth)) {
      ASSERT_FALSE(HasFailure()) << "call " << static_cast<int>(failure.call) << " number " << nth
                                 << " with error " << failure.error;
      ++nth;
    }
    ASSERT_FALSE(HasFailure());
    EXPECT_GT(nth, failure.call == DiskCall::rename ? 2 : 3) << "calls of a kind are not seen";
  }
}
INSTANTIATE_TEST_SUITE_P(Saves, EveryFailure,
                         testing::Values(Before::nothing, Before::older, Before::same_step,
                                         Before::same_step_without_exchange));

TEST_F(Folder, AfterAFailedFsyncTheStepIsWhatItWas) {
  save(folder_, 1, 2, tensors_);
  const std::string before = read_text(folder_.path_of(1) / kManifestName);
  const std::vector<PlainTensor> fresh = {
      tensor_by_rows(kModelFolder, "fresh", Dtype::F32, {4}, 2)};
  for (const bool has_exchange : {true, false}) {
    bool has_failed = true;
    for (int nth = 1; has_failed; ++nth) {
      calls_->reset();
      if (!has_exchange) calls_->forbid_exchange();
      calls_->fail(DiskCall::fsync, nth, EIO);
      try {
        save(folder_, 1, 2, fresh);
      } catch (const IoError&) {
      }
      folder_.discard(1);
      has_failed = calls_->has_failed();
      // Only the two fsyncs of `latest` come when the new one is durable already.
      if (has_failed && nth <= 8) {
        EXPECT_EQ(read_text(folder_.path_of(1) / kManifestName), before) << nth;
      }
      CheckpointReader(folder_.path_of(1)).verify();
      if (read_text(folder_.path_of(1) / kManifestName) != before) {
        EXPECT_GE(nth, 9);
        calls_->reset();
        save(folder_, 1, 2, tensors_);
      }
    }
  }
}

// ---- shard files

TEST(ShardFile, IsWhatTorchReads) {
  const ScratchFolder scratch;
  fs::create_directories(scratch / "c/model");
  const std::vector<std::byte> bytes(100, std::byte{7});
  const std::span all(bytes);
  const std::vector<PartInMemory> parts = {{"bytes", Dtype::I8, {3}, {4}, all.first(3)},
                                           {"doubles", Dtype::F64, {1, 2}, {5, 0}, all.first(16)},
                                           {"halves", Dtype::BF16, {}, {}, all.first(2)},
                                           {"nothing", Dtype::F32, {0, 3}, {0, 0}, {}}};
  const std::string path = shard_path(kModelFolder, 4, 2, 3);
  const StoredFile stored = write_shard_file(scratch / "c", path, parts, {{"note", "mine"}});
  const SafetensorsFile file(scratch / "c" / path);
  EXPECT_EQ(
      file.metadata(),
      (Metadata{{"note", "mine"},
                {"format", "pt"},
                {"DCP_VERSION", "1.0"},
                {"DCP_SHARDING_INFO",
                 "{\"bytes\":{\"saved_offsets\":[4]},\"doubles\":{\"saved_offsets\":[5,0]},"
                 "\"halves\":{\"saved_offsets\":[]},\"nothing\":{\"saved_offsets\":[0,0]}}"}}));
  std::vector<std::string> names;
  for (const StoredTensor& tensor : file.tensors()) {
    names.push_back(tensor.name);
    EXPECT_EQ(
        reinterpret_cast<uintptr_t>(tensor.bytes.data()) % (tensor.dtype == Dtype::F64 ? 8 : 1),
        0u);
  }
  EXPECT_THAT(names, ElementsAre("doubles", "nothing", "halves", "bytes"));
  EXPECT_EQ(stored.path, path);
  EXPECT_EQ(stored.bytes, static_cast<int64_t>(fs::file_size(scratch / "c" / path)));
  ASSERT_EQ(stored.parts.size(), 4u);
  EXPECT_EQ(stored.parts[0].name, "doubles");
  EXPECT_EQ(stored.parts[0].offsets, (Sizes{5, 0}));
  EXPECT_EQ(stored.parts[0].digest, digest_of(all.first(16)));
  const std::string text = read_text(scratch / "c" / path);
  EXPECT_EQ(stored.header, digest_of(std::as_bytes(std::span(text)).first(text.size() - 21)));
}

TEST(ShardFile, HoldsOnlyWhatItCan) {
  const ScratchFolder scratch;
  fs::create_directories(scratch / "c/tensors");
  const std::byte bytes[8] = {};
  const std::string path = shard_path(kTensorsFolder, 0, 1, 1);
  const auto expect_refused = [&](const PartInMemory& part, const std::string& why) {
    EXPECT_THAT([&] { write_shard_file(scratch / "c", path, std::span(&part, 1)); },
                ThrowsMessage<ConfigError>(AllOf(HasSubstr("cannot be saved"), HasSubstr(why))));
    EXPECT_FALSE(fs::exists(scratch / "c" / path));
  };
  for (const Dtype dtype :
       {Dtype::BOOL, Dtype::U16, Dtype::U32, Dtype::U64, Dtype::C64, Dtype::F8_E4M3})
    expect_refused(
        {"mask", dtype, {0}, {0}, {}},
        "tensor 'mask' cannot be saved: its elements are of type " + std::string(name_of(dtype)));
  expect_refused({"deep", Dtype::U8, Sizes(9, 1), Sizes(9, 0), std::span(bytes, 1)},
                 "'deep' cannot be saved: it has more than 8 dimensions");
  expect_refused({"", Dtype::U8, {}, {}, std::span(bytes, 1)}, "a name has 1 to 4096 bytes");
  expect_refused({std::string(4097, 'n'), Dtype::U8, {}, {}, std::span(bytes, 1)},
                 "a name has 1 to 4096 bytes");
  expect_refused({"__metadata__", Dtype::U8, {}, {}, std::span(bytes, 1)},
                 "the format uses this name");
  expect_refused({"\xFF", Dtype::U8, {}, {}, std::span(bytes, 1)}, "not UTF-8");

  const PartInMemory good{"a", Dtype::U8, {8}, {0}, bytes};
  const std::vector<PartInMemory> twice = {good, good};
  EXPECT_DEATH(write_shard_file(scratch / "c", path, twice), "a is there twice");
  const PartInMemory wrong{"a", Dtype::U8, {7}, {0}, bytes};
  EXPECT_DEATH(write_shard_file(scratch / "c", path, std::span(&wrong, 1)),
               "the bytes of a do not fit");
  EXPECT_DEATH(write_shard_file(scratch / "c", path, std::span(&good, 1), {{"format", "np"}}),
               "the format's own");
  EXPECT_DEATH(write_shard_file(scratch / "c", "../x", std::span(&good, 1)), "made by shard_path");
}

TEST(ShardFile, IsNewOrNotThere) {
  const ScratchFolder scratch;
  FaultyCallsScope calls;
  fs::create_directories(scratch / "c/model");
  const std::byte bytes[8] = {};
  const PartInMemory part{"a", Dtype::U8, {8}, {0}, bytes};
  const std::string path = shard_path(kModelFolder, 0, 1, 1);
  write_text(scratch / "c" / path, "precious");
  EXPECT_THAT(
      [&] { write_shard_file(scratch / "c", path, std::span(&part, 1)); },
      ThrowsMessage<IoError>(AllOf(HasSubstr((scratch / "c").string()), HasSubstr("File exists"))));
  EXPECT_EQ(read_text(scratch / "c" / path), "precious");
  fs::remove(scratch / "c" / path);
  for (const DiskCall call : {DiskCall::write, DiskCall::fsync, DiskCall::close}) {
    calls->fail(call, 1, EIO);
    EXPECT_THAT([&] { write_shard_file(scratch / "c", path, std::span(&part, 1)); },
                ThrowsMessage<IoError>(AllOf(HasSubstr(path), HasSubstr("Input/output error"))));
    EXPECT_FALSE(fs::exists(scratch / "c" / path));
  }
}

}  // namespace
}  // namespace fusedbun::checkpoint
