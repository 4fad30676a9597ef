#include "fusedbun/dist/checkpoint/model_place.h"

#include <system_error>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/safetensors.h"
#include "fusedbun/dist/run_folder/atomic_file.h"

namespace fusedbun::checkpoint {

namespace fs = std::filesystem;

ModelPlace place_of(const fs::path& given) {
  if (given.extension() == ".safetensors") return {.weights = given, .is_folder = false};
  return {.weights = given / kWeightsName, .is_folder = true};
}

void require_writable(const ModelPlace& place) {
  if (!place.is_folder) return run_folder::require_writable(place.weights);
  std::error_code error;
  fs::path folder = place.weights.parent_path();
  // What is missing of the path can be made where the nearest folder that is there can be written.
  while (!folder.empty() && !fs::exists(folder, error)) folder = folder.parent_path();
  if (folder.empty()) folder = ".";  // the path is relative
  FUSEDBUN_REQUIRE(
      fs::is_directory(folder, error), IoError,
      folder.string() + " is no folder: a model is saved in one, or as a file named *.safetensors");
  run_folder::require_writable(folder / place.weights.filename());
}

void make_folder(const ModelPlace& place) {
  if (!place.is_folder) return;
  const fs::path folder = place.weights.parent_path();
  std::error_code error;
  fs::create_directories(folder, error);
  FUSEDBUN_REQUIRE(!error, IoError, "cannot create " + folder.string() + ": " + error.message());
}

}  // namespace fusedbun::checkpoint
