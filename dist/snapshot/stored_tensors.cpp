#include "fusedbun/dist/snapshot/stored_tensors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <unordered_set>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/checkpoint_folder.h"

namespace fusedbun::snapshot {
namespace {

using checkpoint::Dtype;

/// Whole tensors of at least this size are written by all ranks together.
constexpr int64_t kSharedBytesMin = 1 << 20;

plan::StateAxis axis_of(std::string_view field) {
  if (field.ends_with("_row")) return plan::StateAxis::row;
  if (field.ends_with("_col")) return plan::StateAxis::column;
  return plan::StateAxis::element;
}

std::vector<plan::Box> transposed(const std::vector<plan::Box>& boxes) {
  std::vector<plan::Box> result = boxes;
  for (plan::Box& box : result) {
    std::ranges::reverse(box.offsets);
    std::ranges::reverse(box.shape);
  }
  return result;
}

plan::Box whole(at::IntArrayRef shape) {
  plan::Box box;
  box.shape = shape.vec();
  box.offsets.assign(shape.size(), 0);
  box.entries = c10::multiply_integers(shape);
  return box;
}

StoredTensorHere on_every_rank(const char* folder, const std::string& name,
                               const at::Tensor& tensor, int rank) {
  StoredTensorHere stored;
  stored.folder = folder;
  stored.name = name;
  stored.dtype = stored_type(tensor.scalar_type(), name);
  stored.shape = tensor.sizes().vec();
  stored.memory = tensor.detach();
  stored.boxes = {whole(tensor.sizes())};
  if (rank == 0) stored.written = stored.boxes;
  return stored;
}

/// Of a matrix, of which this rank writes what it has, or nothing.
void store_transposed(StoredTensorHere& stored) {
  stored.transposed = true;
  std::ranges::reverse(stored.shape);
  stored.boxes = transposed(stored.boxes);
  stored.written = transposed(stored.written);
}

/// A large tensor that every rank has is written by all, each an equal part of its first dimension.
void divide_writing(StoredTensorHere& stored, int rank, int world_size) {
  const int64_t bytes = stored.memory.numel() * stored.memory.element_size();
  if (bytes < kSharedBytesMin || stored.shape.empty() || stored.shape[0] < world_size) return;
  const int64_t begin = stored.shape[0] * rank / world_size;
  const int64_t end = stored.shape[0] * (rank + 1) / world_size;
  plan::Box part = stored.boxes.front();
  const int64_t inner = part.entries / part.shape[0];
  part.offsets[0] = begin;
  part.shape[0] = end - begin;
  part.begin = begin * inner;
  part.entries = (end - begin) * inner;
  stored.written = {part};
}

}  // namespace

std::string state_name(const std::string& parameter, std::string_view field) {
  return "state." + parameter + "." + std::string(field);
}

Dtype stored_type(at::ScalarType type, const std::string& name) {
  switch (type) {
    case at::kHalf:
      return Dtype::F16;
    case at::kFloat:
      return Dtype::F32;
    case at::kDouble:
      return Dtype::F64;
    case at::kBFloat16:
      return Dtype::BF16;
    case at::kChar:
      return Dtype::I8;
    case at::kByte:
    case at::kBool:
      return Dtype::U8;
    case at::kShort:
      return Dtype::I16;
    case at::kInt:
      return Dtype::I32;
    case at::kLong:
      return Dtype::I64;
    default:
      throw ConfigError("'" + name + "' is " + c10::toString(type) +
                        ", which checkpoints do not hold: give it as float64, float32, bfloat16, "
                        "float16, an integer of 8 to 64 bits or bool");
  }
}

std::vector<StoredTensorHere> tensors_of_rows(const OptimizerAccess::OwnedRows& rows,
                                              const plan::ParameterSpec& parameter,
                                              bool is_stored_transposed) {
  std::vector<StoredTensorHere> tensors;
  const auto add = [&](const char* folder, std::string name, plan::StateAxis axis,
                       const at::Tensor& memory) {
    StoredTensorHere& stored = tensors.emplace_back();
    stored.folder = folder;
    stored.dtype = stored_type(memory.scalar_type(), name);
    stored.name = std::move(name);
    stored.shape = plan::state_shape(parameter, axis);
    stored.memory = memory;
    stored.boxes = plan::boxes_of(parameter, rows.range, axis);
    // Every rank with rows of a matrix has the columns of all of it. A stack's matrices are not cut.
    const bool is_here_alone = axis != plan::StateAxis::column ||
                               parameter.stacked_matrices() > 0 || rows.range.row_begin == 0;
    if (is_here_alone) stored.written = stored.boxes;
  };
  add(checkpoint::kModelFolder, parameter.name, plan::StateAxis::element, rows.values);
  if (is_stored_transposed && parameter.shape.size() == 2) {
    store_transposed(tensors.back());
  }
  visit_tensors(*rows.state, [&](const char* field, const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    add(checkpoint::kOptimizerFolder, state_name(parameter.name, field), axis_of(field), tensor);
  });
  return tensors;
}

std::vector<StoredTensorHere> tensors_beside(
    const CheckpointContents& contents, std::span<const at::Tensor> optimized,
    const std::function<bool(std::string_view name)>& is_stored_transposed, int rank,
    int world_size) {
  std::vector<StoredTensorHere> tensors;
  std::unordered_set<const void*> seen;
  for (const at::Tensor& tensor : optimized) seen.insert(tensor.unsafeGetTensorImpl());
  const auto add = [&](const char* folder, const std::string& name, const at::Tensor& tensor,
                       bool is_parameter) {
    if (!tensor.defined() || !seen.insert(tensor.unsafeGetTensorImpl()).second) return;
    tensors.push_back(on_every_rank(folder, name, tensor, rank));
    if (is_parameter && tensor.dim() == 2 && is_stored_transposed && is_stored_transposed(name))
      store_transposed(tensors.back());
    divide_writing(tensors.back(), rank, world_size);
  };
  if (contents.model != nullptr) {
    for (const auto& item : contents.model->named_parameters()) {
      add(checkpoint::kModelFolder, item.key(), item.value(), /*is_parameter=*/true);
    }
    for (const auto& item : contents.model->named_buffers()) {
      add(checkpoint::kModelFolder, item.key(), item.value(), /*is_parameter=*/false);
    }
  }
  for (const auto& [name, tensor] : contents.tensors) {
    FUSEDBUN_REQUIRE(tensor.defined(), ConfigError,
                     "tensor '" + name + "' of the checkpoint's contents is undefined");
    tensors.push_back(on_every_rank(checkpoint::kTensorsFolder, name, tensor, rank));
    divide_writing(tensors.back(), rank, world_size);
  }
  return tensors;
}

std::vector<StoredTensorHere> tensors_without_elements(const OptimizerAccess& optimizer, int rank) {
  std::vector<StoredTensorHere> tensors;
  for (size_t p = 0; p < optimizer.tensors().size(); ++p) {
    const at::Tensor& tensor = optimizer.tensors()[p];
    if (tensor.numel() > 0) continue;
    tensors.push_back(
        on_every_rank(checkpoint::kModelFolder, optimizer.parameters()[p].name, tensor, rank));
  }
  return tensors;
}

std::vector<StoredTensorHere> counts_of(const OptimizerAccess& optimizer,
                                        const OptimizerAccess::ReplicatedState& state, int rank) {
  std::vector<StoredTensorHere> tensors;
  const std::vector<Options> options = optimizer.group_options();
  for (size_t p = 0; p < optimizer.parameters().size(); ++p) {
    const plan::ParameterSpec& parameter = optimizer.parameters()[p];
    tensors.push_back(on_every_rank(checkpoint::kOptimizerFolder,
                                    state_name(parameter.name, "step"),
                                    at::scalar_tensor(state.step_counts[p], at::kLong), rank));
    if (!options[static_cast<size_t>(parameter.group)].scale_by_parameter_rms) continue;
    tensors.push_back(
        on_every_rank(checkpoint::kOptimizerFolder, state_name(parameter.name, "sum_of_squares"),
                      at::scalar_tensor(state.sums_of_squares[p], at::kDouble), rank));
  }
  return tensors;
}

}  // namespace fusedbun::snapshot
