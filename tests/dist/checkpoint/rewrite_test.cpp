// The model as one file, and a checkpoint divided between other ranks, hold the values that were saved.
#include "fusedbun/dist/checkpoint/rewrite.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/shard_file.h"
#include "fusedbun/tests/dist/checkpoint/example_checkpoint.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::checkpoint {
namespace {

using support::ScratchFolder;

/// All of the tensor, as read; of any checkpoint.
std::vector<std::byte> bytes_of(const CheckpointReader& reader, const WholeTensor& tensor) {
  int64_t elements = 1;
  for (const int64_t size : tensor.shape) elements *= size;
  std::vector<std::byte> bytes(static_cast<size_t>(elements * bits_of(tensor.dtype) / 8));
  reader.read(tensor, bytes);
  return bytes;
}

class Rewrite : public testing::Test {
 protected:
  Rewrite() { save(from_, 7, 2, small_tensors()); }
  ScratchFolder scratch_;
  CheckpointFolder from_{scratch_ / "from"};
};

TEST_F(Rewrite, DividedBetweenOtherRanksItIsTheSame) {
  const CheckpointReader before(from_.path_of(7));
  for (const int ranks : {1, 2, 5}) {
    const CheckpointFolder to(scratch_ / ("to" + std::to_string(ranks)));
    reshard(before, to, ranks);
    const CheckpointReader after(to.path_of(7));
    after.verify();
    EXPECT_EQ(after.manifest().world_size, ranks);
    for (const char* folder : {kModelFolder, kOptimizerFolder, kTensorsFolder}) {
      ASSERT_EQ(after.tensors(folder).size(), before.tensors(folder).size());
      for (const auto& [name, tensor] : before.tensors(folder)) {
        const WholeTensor* found = after.find(folder, name);
        ASSERT_NE(found, nullptr) << name;
        EXPECT_EQ(found->shape, tensor.shape) << name;
        EXPECT_EQ(found->dtype, tensor.dtype) << name;
        EXPECT_EQ(bytes_of(after, *found), bytes_of(before, tensor)) << name;
      }
    }
  }
  EXPECT_THROW(reshard(before, CheckpointFolder(scratch_ / "none"), 0), ConfigError);
}

TEST_F(Rewrite, TheModelIsOneFile) {
  const CheckpointReader before(from_.path_of(7));
  export_model(before, place_of(scratch_ / "model.safetensors"));
  const SafetensorsFile file(scratch_ / "model.safetensors");
  EXPECT_EQ(file.tensors().size(), before.tensors(kModelFolder).size());
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_FALSE(file.metadata().contains("DCP_SHARDING_INFO"));
  for (const StoredTensor& tensor : file.tensors()) {
    const WholeTensor* whole = before.find(kModelFolder, tensor.name);
    ASSERT_NE(whole, nullptr) << tensor.name;
    EXPECT_EQ(tensor.shape, whole->shape);
    const std::vector<std::byte> bytes = bytes_of(before, *whole);
    EXPECT_TRUE(std::ranges::equal(tensor.bytes, bytes)) << tensor.name;
  }
}

TEST_F(Rewrite, CompanionsGoWithTheModel) {
  const std::map<std::string, std::string> companions = {
      {"config.json", "{}"}, {"tokenizer.model", std::string("\0\xff", 2)}, {"empty.txt", ""}};
  from_.begin(8);
  Manifest manifest = example_manifest(1);
  manifest.job_step = 8;
  for (const auto& [name, bytes] : companions)
    manifest.files.push_back(write_companion(from_.path_under_way(8), name, bytes));
  PlainTensor tensor = tensor_by_rows(kModelFolder, "w", Dtype::F32, {4, 2}, 1);
  const std::vector<PartInMemory> parts{{"w", Dtype::F32, {4, 2}, {0, 0}, tensor.bytes}};
  manifest.files.push_back(
      write_shard_file(from_.path_under_way(8), shard_path(kModelFolder, 0, 1, 1), parts));
  from_.publish(manifest);

  const CheckpointReader before(from_.path_of(8));
  before.verify();
  EXPECT_EQ(before.companions(), companions);
  const CheckpointFolder to(scratch_ / "two");
  reshard(before, to, 2);
  EXPECT_EQ(CheckpointReader(to.path_of(8)).companions(), companions);

  const std::filesystem::path folder = scratch_ / "models" / "exported";
  export_model(before, place_of(folder));
  EXPECT_EQ(support::read_text(folder / "tokenizer.model"), companions.at("tokenizer.model"));
  EXPECT_EQ(support::read_text(folder / "config.json"), "{}");
  EXPECT_EQ(SafetensorsFile(folder / kWeightsName).tensors().size(), 1u);

  // Another byte, and the checkpoint is refused by the file's name, also where no tensor is read.
  support::write_text(from_.path_of(8) / "model/config.json", "[]");
  EXPECT_THAT(
      [&] { CheckpointReader reader(from_.path_of(8)); },
      testing::ThrowsMessage<DataError>(testing::HasSubstr("model/config.json: it is not")));
}

TEST(Companion, Names) {
  for (const char* good : {"config.json", "tokenizer.model", "chat_template.jinja", "a-b_C.1"})
    EXPECT_TRUE(is_companion_path(companion_path(good))) << good;
  for (const char* bad : {"", ".", "..", "../x", ".hidden", "-x", "a/b", "a b", "shard-x", "a\n"})
    EXPECT_FALSE(is_companion_path(companion_path(bad))) << bad;
  EXPECT_FALSE(is_companion_path("optimizer/config.json"));
  EXPECT_FALSE(is_companion_path("config.json"));
  EXPECT_THROW(require_companion("../x", 1), ConfigError);
  EXPECT_THROW(require_companion("x", kCompanionBytesMax + 1), ConfigError);
}

}  // namespace
}  // namespace fusedbun::checkpoint
