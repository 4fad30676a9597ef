// The model as one file, and a checkpoint divided between other ranks, hold the values that were saved.
#include "fusedbun/dist/checkpoint/rewrite.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"
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
  export_model(before, scratch_ / "model.safetensors");
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

}  // namespace
}  // namespace fusedbun::checkpoint
