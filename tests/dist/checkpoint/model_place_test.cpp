#include "fusedbun/dist/checkpoint/model_place.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::checkpoint {
namespace {

namespace fs = std::filesystem;
using support::ScratchFolder;
using support::write_text;
using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(ModelPlaceTest, AFolderGetsTheWeightsUnlessAFileIsNamed) {
  EXPECT_EQ(place_of("out"), (ModelPlace{"out/model.safetensors", true}));
  EXPECT_EQ(place_of("out/"), (ModelPlace{"out/model.safetensors", true}));
  EXPECT_EQ(place_of("out/model-1.5"), (ModelPlace{"out/model-1.5/model.safetensors", true}));
  EXPECT_EQ(place_of("out/english.safetensors"), (ModelPlace{"out/english.safetensors", false}));
}

TEST(ModelPlaceTest, WhatCannotBeWrittenIsRefusedAndNothingIsMade) {
  const ScratchFolder folder;
  require_writable(place_of(folder / "new/model"));
  EXPECT_FALSE(fs::exists(folder / "new"));
  write_text(folder / "old_model", "a file without an ending");
  EXPECT_THAT([&] { require_writable(place_of(folder / "old_model")); },
              ThrowsMessage<IoError>(HasSubstr("old_model is no folder")));
  EXPECT_THROW(require_writable(place_of(folder / "old_model/new")), IoError);
  EXPECT_THROW(require_writable(place_of(folder / "gone/model.safetensors")), IoError);
}

TEST(ModelPlaceTest, NamesMayBeRelative) {
  const ScratchFolder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder / "");
  for (const char* name : {"out", "out/", "./out", "a/b", "x.safetensors"})
    EXPECT_NO_THROW(require_writable(place_of(name))) << name;
  EXPECT_TRUE(fs::is_empty("."));
  make_folder(place_of("out"));
  EXPECT_TRUE(fs::is_directory("out"));
  fs::current_path(before);
}

}  // namespace
}  // namespace fusedbun::checkpoint
