#pragma once
// Which tensors a checkpoint has, under which names, and where the memory of each lies on this rank.
//
//   model/      NAME                 values of a parameter; frozen parameters and buffers
//   optimizer/  state.NAME.FIELD     what the optimizer keeps of it, FIELD as core's visit_tensors names it
//               state.NAME.step      t, an int64; state.NAME.sum_of_squares, a float64, with scale_by_parameter_rms
//   tensors/    NAME                 the program's own
//
// Thread safety: values and pure functions; the tensors are live.
#include <ATen/core/Tensor.h>

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/checkpoint/checkpoint_reader.h"
#include "fusedbun/dist/checkpoint/safetensors.h"
#include "fusedbun/dist/plan/state_boxes.h"
#include "fusedbun/dist/snapshot/optimizer_access.h"

namespace fusedbun::snapshot {

/// A tensor of the checkpoint, and its part that is on this rank.
struct StoredTensorHere {
  const char* folder = nullptr;  ///< one of checkpoint_folder.h
  std::string name;
  checkpoint::Dtype dtype = checkpoint::Dtype::F32;
  std::vector<int64_t> shape;  ///< of the whole tensor, as it is stored
  /// Its part here: `boxes` of the whole tensor, as it is stored, one after the other. Writing it loads.
  at::Tensor memory;
  std::vector<plan::Box> boxes;
  /// Those that this rank writes: of a tensor that several ranks have, one writes it, or each a part.
  std::vector<plan::Box> written;
  /// The memory is [rows, m] and the file has [m, rows].
  bool transposed = false;
};

/// "state.h.0.ln_1.weight.step": what optimizer/ calls a field of a parameter's state.
std::string state_name(const std::string& parameter, std::string_view field);

/// The type in files. Throws ConfigError naming the tensor for one that checkpoints do not have. bool is stored as U8.
checkpoint::Dtype stored_type(at::ScalarType type, const std::string& name);

/// Values and state of rows that this rank owns.
std::vector<StoredTensorHere> tensors_of_rows(const OptimizerAccess::OwnedRows& rows,
                                              const plan::ParameterSpec& parameter,
                                              bool is_stored_transposed);

/// What the optimizer does not own: the model's other parameters and buffers, and the program's tensors. Each is on every rank;
/// the larger ones are written by all ranks together, a part each. Parameters of two dimensions of which `is_stored_transposed`, if
/// given, says so are stored as their transpose, as those that are trained are.
std::vector<StoredTensorHere> tensors_beside(
    const CheckpointContents& contents, std::span<const at::Tensor> optimized,
    const std::function<bool(std::string_view name)>& is_stored_transposed, int rank,
    int world_size);

/// Parameters without elements, which no rank owns: rank 0 writes them.
std::vector<StoredTensorHere> tensors_without_elements(const OptimizerAccess& optimizer, int rank);

/// t and sums of squares, which rank 0 writes.
std::vector<StoredTensorHere> counts_of(const OptimizerAccess& optimizer,
                                        const OptimizerAccess::ReplicatedState& state, int rank);

}  // namespace fusedbun::snapshot
