// Both ways between this reader and writer and the safetensors package of Python.
#include <gtest/gtest.h>

#include <cstdlib>

#include "fusedbun/dist/checkpoint/safetensors.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::checkpoint {
namespace {

using support::ScratchFolder;

int oracle(const std::string& command, const std::filesystem::path& file) {
  const char* python = std::getenv("FUSEDBUN_PYTHON");
  const char* script = std::getenv("FUSEDBUN_ORACLE");
  if (python == nullptr || script == nullptr)
    throw std::runtime_error("run this test through ctest");
  return std::system(
      ("'" + std::string(python) + "' '" + script + "' " + command + " '" + file.string() + "'")
          .c_str());
}

template <class T>
std::vector<T> elements(const StoredTensor& tensor) {
  const auto* first = reinterpret_cast<const T*>(tensor.bytes.data());
  return {first, first + tensor.bytes.size() / sizeof(T)};
}

TEST(SafetensorsPython, ReadsWhatPythonWrote) {
  const ScratchFolder folder;
  ASSERT_EQ(oracle("write", folder / "file"), 0);
  const SafetensorsFile file(folder / "file");
  EXPECT_EQ(file.tensors().size(), 6u);
  EXPECT_EQ(file.metadata().at("note"), "quotes \" and ümlauts");
  const StoredTensor& wte = *file.find("wte.weight");
  EXPECT_EQ(wte.shape, (std::vector<int64_t>{3, 4}));
  const std::vector<float> values = elements<float>(wte);
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], static_cast<float>(i) / 8 - 1);
  EXPECT_EQ(elements<double>(*file.find("doubles")), (std::vector<double>{1e300, -0.0}));
  EXPECT_EQ(elements<int64_t>(*file.find("scalar")), std::vector<int64_t>{-7});
  EXPECT_EQ(file.find("mask")->dtype, Dtype::BOOL);
  EXPECT_EQ(file.find("halves")->dtype, Dtype::F16);
  EXPECT_EQ(file.find("nothing")->shape, (std::vector<int64_t>{0, 5}));
}

TEST(SafetensorsPython, WritesWhatPythonReads) {
  const ScratchFolder folder;
  ASSERT_EQ(oracle("write", folder / "theirs"), 0);
  const SafetensorsFile theirs(folder / "theirs");
  write_safetensors(folder / "ours", theirs.tensors(), theirs.metadata());
  EXPECT_EQ(oracle("check", folder / "ours"), 0);
}

TEST(SafetensorsPython, TheOracleNoticesADifference) {
  const ScratchFolder folder;
  ASSERT_EQ(oracle("write", folder / "theirs"), 0);
  const SafetensorsFile theirs(folder / "theirs");
  std::vector<StoredTensor> tensors = theirs.tensors();
  std::vector<std::byte> changed(tensors[0].bytes.begin(), tensors[0].bytes.end());
  changed[0] ^= std::byte{1};
  tensors[0].bytes = changed;
  write_safetensors(folder / "ours", tensors, theirs.metadata());
  EXPECT_NE(oracle("check", folder / "ours"), 0);
}

}  // namespace
}  // namespace fusedbun::checkpoint
