#include "fusedbun/dist/checkpoint/rewrite.h"

#include <algorithm>
#include <deque>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/safetensors_header.h"
#include "fusedbun/dist/checkpoint/shard_file.h"
#include "fusedbun/dist/run_folder/atomic_file.h"

namespace fusedbun::checkpoint {
namespace {

/// What the model's files say beside their tensors, without what write_shard_file adds.
Metadata model_metadata(const CheckpointReader& from) {
  for (const StoredFile& file : from.manifest().files) {
    if (!file.path.starts_with(kModelFolder) || !is_shard_path(file.path)) continue;
    Metadata metadata = SafetensorsFile(from.folder() / file.path).metadata();
    for (const char* own : {"format", "DCP_VERSION", "DCP_SHARDING_INFO"}) metadata.erase(own);
    return metadata;
  }
  return {};
}

/// The part of a tensor that one of `ranks` ranks holds; without elements: it holds none.
BoxToRead part_of(const WholeTensor& tensor, int rank, int ranks) {
  BoxToRead box{std::vector<int64_t>(tensor.shape.size(), 0), tensor.shape};
  if (!tensor.shape.empty()) {
    const int64_t rows = tensor.shape[0];
    box.offsets[0] = rows * rank / ranks;
    box.shape[0] = rows * (rank + 1) / ranks - box.offsets[0];
  }
  return box;
}

/// A scalar, and a tensor without elements, are rank 0's.
bool is_held_by(const WholeTensor& tensor, const BoxToRead& part, int rank) {
  const bool is_divided = !tensor.shape.empty() && tensor_bytes(tensor.dtype, tensor.shape) > 0;
  return is_divided ? part.shape[0] > 0 : rank == 0;
}

StoredFile write_part(const CheckpointReader& from, std::string_view folder, int rank, int ranks,
                      const std::filesystem::path& to, const Metadata& metadata) {
  std::deque<std::vector<std::byte>> memory;  // what `parts` look into
  std::vector<PartInMemory> parts;
  for (const auto& [name, tensor] : from.tensors(folder)) {
    BoxToRead box = part_of(tensor, rank, ranks);
    if (!is_held_by(tensor, box, rank)) continue;
    if (tensor_bytes(tensor.dtype, tensor.shape) == 0) box = {box.offsets, tensor.shape};
    std::vector<std::byte>& bytes =
        memory.emplace_back(static_cast<size_t>(tensor_bytes(tensor.dtype, box.shape)));
    from.read(tensor, box, bytes);
    parts.push_back({name, tensor.dtype, box.shape, box.offsets, bytes});
  }
  if (parts.empty()) return {};
  return write_shard_file(to, shard_path(folder, rank, 1, 1), parts, metadata);
}

}  // namespace

void export_model(const CheckpointReader& from, const ModelPlace& to) {
  make_folder(to);
  if (to.is_folder) {
    for (const auto& [name, bytes] : from.companions()) {
      run_folder::AtomicFile file(to.weights.parent_path() / name);
      file.write(bytes);
      file.commit();
    }
  }
  std::deque<std::vector<std::byte>> memory;
  std::vector<StoredTensor> tensors;
  for (const auto& [name, tensor] : from.tensors(kModelFolder)) {
    std::vector<std::byte>& bytes =
        memory.emplace_back(static_cast<size_t>(tensor_bytes(tensor.dtype, tensor.shape)));
    from.read(tensor, bytes);
    tensors.push_back({name, tensor.dtype, tensor.shape, bytes});
  }
  Metadata metadata = model_metadata(from);
  metadata["format"] = "pt";
  write_safetensors(to.weights, tensors, metadata);
}

void reshard(const CheckpointReader& from, const CheckpointFolder& to, int ranks) {
  FUSEDBUN_REQUIRE(ranks >= 1, ConfigError,
                   "--ranks = " + std::to_string(ranks) + ": a checkpoint is of one rank or more");
  Manifest manifest = from.manifest();
  manifest.world_size = ranks;
  manifest.files.clear();
  const int64_t job_step = manifest.job_step;
  const Metadata metadata = model_metadata(from);
  try {
    to.begin(job_step);
    for (const auto& [name, bytes] : from.companions())
      manifest.files.push_back(write_companion(to.path_under_way(job_step), name, bytes));
    for (int rank = 0; rank < ranks; ++rank) {
      for (const char* folder : {kModelFolder, kOptimizerFolder, kTensorsFolder}) {
        const bool is_model = folder == std::string_view(kModelFolder);
        StoredFile file = write_part(from, folder, rank, ranks, to.path_under_way(job_step),
                                     is_model ? metadata : Metadata{});
        if (!file.path.empty()) manifest.files.push_back(std::move(file));
      }
    }
    to.sync_folders(job_step);
    to.publish(manifest);
  } catch (...) {
    to.discard(job_step);
    throw;
  }
}

}  // namespace fusedbun::checkpoint
