#pragma once
// Checkpoints for tests: tensors as plain arrays, cut into boxes that ranks hold, and saved as a job would.
//
// Thread safety: none needed.
#include <cstddef>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/checkpoint/manifest.h"

namespace fusedbun::checkpoint {

using Sizes = std::vector<int64_t>;

/// The seed of one random test: FUSEDBUN_TEST_SEED if set, else `otherwise`. Printed.
uint64_t test_seed(uint64_t otherwise);

struct PlainTensor {
  std::string folder;  ///< kModelFolder...
  std::string name;
  Dtype dtype = Dtype::F32;
  Sizes shape;
  std::vector<std::byte> bytes;
  struct Box {
    int rank = 0;
    Sizes offsets, shape;
  };
  std::vector<Box> boxes;  ///< cover it

  int64_t element_bytes() const;
  /// The box's bytes, brought together element by element.
  std::vector<std::byte> box(const Sizes& offsets, const Sizes& box_shape) const;
};

int64_t product(const Sizes& shape);

/// Its bytes are made of its name and their place. Rows of dimension 0 over the ranks, as evenly as they go; a scalar, or a
/// tensor without elements, is of rank 0.
PlainTensor tensor_by_rows(const std::string& folder, const std::string& name, Dtype dtype,
                           const Sizes& shape, int ranks);
/// Cut into up to `boxes_max` boxes along random lines, of random ranks.
PlainTensor tensor_in_random_boxes(const std::string& name, Dtype dtype, const Sizes& shape,
                                   int ranks, int boxes_max, std::mt19937_64& random);

/// Everything but files and job_step: two groups, what changes have set, texts.
Manifest example_manifest(int ranks);

/// Saves as a job of `ranks` ranks does, one rank after the other. Returns what was published.
Manifest save(const CheckpointFolder& folder, int64_t job_step, int ranks,
              std::span<const PlainTensor> tensors);

/// A matrix, a vector and a scalar of 2 ranks in the three folders: about 5 KiB in all.
std::vector<PlainTensor> small_tensors(int ranks = 2);

/// All files of the checkpoint `folder`, sorted.
std::vector<std::filesystem::path> files_of(const std::filesystem::path& folder);

/// `text` with its digest made anew, as someone would who wants to be believed.
std::string signed_again(const std::string& text);

}  // namespace fusedbun::checkpoint
