#include "fusedbun/tests/dist/checkpoint/example_checkpoint.h"

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <numeric>

#include "fusedbun/dist/checkpoint/digest.h"
#include "fusedbun/dist/checkpoint/shard_file.h"

namespace fusedbun::checkpoint {
namespace {

/// Every index of a box of this shape, in row-major order.
template <class Visit>
void for_each_index(const Sizes& shape, Visit visit) {
  Sizes index(shape.size(), 0);
  for (int64_t left = product(shape); left > 0; --left) {
    visit(index);
    for (size_t i = shape.size(); i-- > 0;) {
      if (++index[i] < shape[i]) break;
      index[i] = 0;
    }
  }
}

PlainTensor plain_tensor(const std::string& folder, const std::string& name, Dtype dtype,
                         const Sizes& shape) {
  PlainTensor tensor{folder, name, dtype, shape, {}, {}};
  tensor.bytes.resize(static_cast<size_t>(product(shape) * tensor.element_bytes()));
  uint64_t state = std::accumulate(name.begin(), name.end(), uint64_t{1469598103934665603U});
  for (std::byte& byte : tensor.bytes) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    byte = static_cast<std::byte>(state >> 56);
  }
  return tensor;
}

}  // namespace

uint64_t test_seed(uint64_t otherwise) {
  const char* given = std::getenv("FUSEDBUN_TEST_SEED");
  const uint64_t seed = given ? std::strtoull(given, nullptr, 10) : otherwise;
  std::cout << "seed " << seed << " (replay: FUSEDBUN_TEST_SEED=" << seed << ")\n";
  return seed;
}

int64_t product(const Sizes& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>{});
}

int64_t PlainTensor::element_bytes() const {
  switch (dtype) {
    case Dtype::F64:
    case Dtype::I64:
      return 8;
    case Dtype::F32:
    case Dtype::I32:
      return 4;
    case Dtype::U8:
    case Dtype::I8:
      return 1;
    default:
      return 2;
  }
}

std::vector<std::byte> PlainTensor::box(const Sizes& offsets, const Sizes& box_shape) const {
  std::vector<std::byte> out;
  for_each_index(box_shape, [&](const Sizes& index) {
    int64_t element = 0;
    for (size_t i = 0; i < shape.size(); ++i) element = element * shape[i] + offsets[i] + index[i];
    const auto first = bytes.begin() + element * element_bytes();
    out.insert(out.end(), first, first + element_bytes());
  });
  return out;
}

PlainTensor tensor_by_rows(const std::string& folder, const std::string& name, Dtype dtype,
                           const Sizes& shape, int ranks) {
  PlainTensor tensor = plain_tensor(folder, name, dtype, shape);
  if (shape.empty() || product(shape) == 0) {
    tensor.boxes = {{0, Sizes(shape.size(), 0), shape}};
    return tensor;
  }
  for (int rank = 0; rank < ranks; ++rank) {
    const int64_t begin = shape[0] * rank / ranks, end = shape[0] * (rank + 1) / ranks;
    if (begin == end) continue;
    PlainTensor::Box box{rank, Sizes(shape.size(), 0), shape};
    box.offsets[0] = begin;
    box.shape[0] = end - begin;
    tensor.boxes.push_back(box);
  }
  return tensor;
}

PlainTensor tensor_in_random_boxes(const std::string& name, Dtype dtype, const Sizes& shape,
                                   int ranks, int boxes_max, std::mt19937_64& random) {
  PlainTensor tensor = plain_tensor(kModelFolder, name, dtype, shape);
  tensor.boxes = {{0, Sizes(shape.size(), 0), shape}};
  for (int cut = 1; cut < boxes_max && !shape.empty(); ++cut) {
    PlainTensor::Box& first = tensor.boxes[random() % tensor.boxes.size()];
    const size_t dimension = random() % shape.size();
    if (first.shape[dimension] < 2) continue;
    const int64_t at =
        1 + static_cast<int64_t>(random() % static_cast<uint64_t>(first.shape[dimension] - 1));
    PlainTensor::Box second = first;
    first.shape[dimension] = at;
    second.offsets[dimension] += at;
    second.shape[dimension] -= at;
    tensor.boxes.push_back(second);
  }
  for (PlainTensor::Box& box : tensor.boxes)
    box.rank = static_cast<int>(random() % static_cast<uint64_t>(ranks));
  return tensor;
}

Manifest example_manifest(int ranks) {
  Manifest manifest;
  manifest.skipped_steps = 3;
  manifest.world_size = ranks;
  manifest.written = "2026-11-27T08:00:00Z";
  manifest.version = "0.1.0";
  manifest.parameters = {{"wte.weight", {6, 7}, ElementType::bf16, 0, MatrixView::leading, false},
                         {"bias", {5}, ElementType::f32, 1, MatrixView::last_two, false}};
  manifest.groups = {{preset("recommended", 0.1), std::nullopt}, {preset("lean", 3e-4), 0.25}};
  manifest.max_grad_norm = 1.5;
  manifest.lr_scale = 0.5;
  manifest.active_revision = 4;
  manifest.known_revision = 6;
  manifest.chain_hash = 0xfedcba9876543210U;
  manifest.scheduled = {{5, 1200, changes::Field::weight_decay, 1, 0.01},
                        {6, 1300, changes::Field::max_grad_norm, -1, 2}};
  manifest.values = {{"epoch", "3"}, {"sampler \"state\"", "line\nline \xC3\xBC"}};
  return manifest;
}

Manifest save(const CheckpointFolder& folder, int64_t job_step, int ranks,
              std::span<const PlainTensor> tensors) {
  Manifest manifest = example_manifest(ranks);
  manifest.job_step = job_step;
  folder.begin(job_step);
  std::vector<std::vector<std::byte>> memory;
  for (int rank = 0; rank < ranks; ++rank) {
    for (const std::string name : {kModelFolder, kOptimizerFolder, kTensorsFolder}) {
      // The k-th box of a tensor goes to the k-th file.
      std::vector<std::vector<PartInMemory>> files;
      for (const PlainTensor& tensor : tensors) {
        size_t file = 0;
        for (const PlainTensor::Box& box : tensor.boxes) {
          if (tensor.folder != name || box.rank != rank) continue;
          memory.push_back(tensor.box(box.offsets, box.shape));
          if (file == files.size()) files.emplace_back();
          files[file++].push_back(
              {tensor.name, tensor.dtype, box.shape, box.offsets, memory.back()});
        }
      }
      const int count = static_cast<int>(files.size());
      for (int index = 1; index <= count; ++index)
        manifest.files.push_back(write_shard_file(folder.path_under_way(job_step),
                                                  shard_path(name, rank, index, count),
                                                  files[static_cast<size_t>(index - 1)]));
    }
  }
  manifest.files.push_back(
      write_companion(folder.path_under_way(job_step), "config.json", "{\"n_layer\": 4}"));
  // All ranks sync when all have written; once is as good as `ranks` times in one process.
  folder.sync_folders(job_step);
  folder.publish(manifest);
  return manifest;
}

std::vector<PlainTensor> small_tensors(int ranks) {
  return {tensor_by_rows(kModelFolder, "wte.weight", Dtype::BF16, {6, 7}, ranks),
          tensor_by_rows(kModelFolder, "bias", Dtype::F32, {5}, ranks),
          tensor_by_rows(kOptimizerFolder, "bias.row", Dtype::F64, {5}, ranks),
          tensor_by_rows(kTensorsFolder, "generator", Dtype::U8, {16}, ranks),
          tensor_by_rows(kTensorsFolder, "count", Dtype::I64, {}, ranks)};
}

std::vector<std::filesystem::path> files_of(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

std::string signed_again(const std::string& text) {
  const size_t end = text.rfind(",\n  \"xxh3_128\"");
  const std::string body = text.substr(0, end);
  return body + ",\n  \"xxh3_128\": \"" + to_hex(digest_of(std::as_bytes(std::span(body)))) +
         "\"\n}\n";
}

}  // namespace fusedbun::checkpoint
