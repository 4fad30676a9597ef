// Torch, and nothing of ours, loads the model and the optimizer's state of a checkpoint on other numbers of ranks.
#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "fusedbun/tests/dist/checkpoint/example_checkpoint.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::checkpoint {
namespace {

using support::ScratchFolder;

int oracle(const std::string& arguments) {
  const char* python = std::getenv("FUSEDBUN_PYTHON");
  const char* script = std::getenv("FUSEDBUN_ORACLE");
  if (python == nullptr || script == nullptr)
    throw std::runtime_error("run this test through ctest");
  return std::system(("'" + std::string(python) + "' '" + script + "' " + arguments).c_str());
}

template <class T>
void put(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

/// Bits of a whole number of at most 125, which both 16-bit types hold exactly.
uint16_t half_of(int value) {
  const auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  if (value == 0) return 0;
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | (((bits >> 23 & 0xFF) - 112) << 10) |
                               (bits >> 13 & 0x3FF));
}

void put_as(Dtype dtype, std::byte* to, int value) {
  switch (dtype) {
    case Dtype::F64:
      return put(to, static_cast<double>(value));
    case Dtype::F32:
      return put(to, static_cast<float>(value));
    case Dtype::BF16:
      return put(to,
                 static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(value)) >> 16));
    case Dtype::F16:
      return put(to, half_of(value));
    case Dtype::I64:
      return put(to, static_cast<int64_t>(value));
    case Dtype::I32:
      return put(to, static_cast<int32_t>(value));
    case Dtype::I16:
      return put(to, static_cast<int16_t>(value));
    default:
      return put(to, static_cast<int8_t>(value));
  }
}

/// Element i is (7 i + length of the name) % 251 - 125.
PlainTensor tensor(const std::string& folder, const std::string& name, Dtype dtype,
                   const Sizes& shape) {
  PlainTensor made = tensor_by_rows(folder, name, dtype, shape, 2);
  for (int i = 0; i < product(shape); ++i)
    put_as(dtype, made.bytes.data() + i * made.element_bytes(),
           (7 * i + static_cast<int>(name.size())) % 251 - 125);
  return made;
}

class CheckpointPython : public testing::Test {
 protected:
  void SetUp() override {
    const std::string model = kModelFolder, optimizer = kOptimizerFolder;
    tensors_ = {tensor(model, "wte.weight", Dtype::F32, {6, 7}),
                tensor(model, "h.0.weight", Dtype::BF16, {7, 9}),
                tensor(model, "h.0.cut", Dtype::F32, {8, 8}),
                tensor(model, "cube", Dtype::F64, {3, 4, 5}),
                tensor(model, "bias", Dtype::F16, {5}),
                tensor(optimizer, "wte.weight.momentum", Dtype::F32, {6, 7}),
                tensor(optimizer, "wte.weight.row", Dtype::F64, {6}),
                tensor(optimizer, "wte.weight.steps", Dtype::I64, {}),
                tensor(optimizer, "bytes", Dtype::I8, {16}),
                tensor(optimizer, "short", Dtype::I16, {4}),
                tensor(optimizer, "whole", Dtype::I32, {4})};
    // Several boxes on a rank, and of columns.
    tensors_[2].boxes = {
        {0, {0, 0}, {3, 5}}, {0, {0, 5}, {3, 3}}, {1, {3, 0}, {5, 2}}, {0, {3, 2}, {5, 6}}};
    save(folder_, 1, 2, tensors_);
  }

  ScratchFolder scratch_;
  CheckpointFolder folder_{scratch_ / "checkpoints"};
  std::vector<PlainTensor> tensors_;
};

TEST_F(CheckpointPython, TorchLoadsItOnAnyNumberOfRanks) {
  EXPECT_EQ(oracle("load '" + folder_.path_of(1).string() + "'"), 0);
}

TEST_F(CheckpointPython, TorchMakesOneFileOfTheModel) {
  EXPECT_EQ(oracle("consolidate '" + folder_.path_of(1).string() + "' '" +
                   (scratch_ / "out").string() + "'"),
            0);
}

TEST_F(CheckpointPython, TheOracleNoticesADifference) {
  tensors_[0].bytes[5] ^= std::byte{1};
  save(folder_, 1, 2, tensors_);
  EXPECT_EQ(oracle("load '" + folder_.path_of(1).string() +
                   "' 2>&1 | grep -q 'AssertionError: wte.weight:'"),
            0);
}

}  // namespace
}  // namespace fusedbun::checkpoint
