#pragma once
// What a checkpoint holds, as a program says it: its optimizer, and beside it whatever it wants back.
//
// Thread safety: a value; what it points to is read by save() until it returns, and written by load().
#include <torch/nn/module.h>

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <variant>

#include "fusedbun/core/fusedbun.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"

namespace fusedbun {

/// Texts by name.
using CheckpointTexts = std::map<std::string, std::string, std::less<>>;

struct CheckpointContents {
  /// Its parameters and its state, whichever rank holds which rows.
  std::variant<ShardedFusedbun*, Fusedbun*> optimizer;
  /// Whose names the parameters have. Its frozen parameters and its buffers are saved too; they are equal on all ranks. Without it
  /// names are the optimizer's own: "group0.3".
  torch::nn::Module* model = nullptr;
  /// Other tensors, equal on all ranks. A load writes them in place; one of another shape or type is refused by name.
  std::map<std::string, torch::Tensor, std::less<>> tensors = {};
  /// Texts: "epoch" -> "3". A load returns them.
  CheckpointTexts values = {};
  /// Matrices of the model that its files hold transposed, by name: Hugging Face's Conv1D weights.
  std::function<bool(std::string_view name)> is_stored_transposed = {};
  /// For the header of the model's files.
  CheckpointTexts model_metadata = {};
  /// Files that go with the model's weights, by name, and their bytes: "config.json", "tokenizer.json". Rank 0's are saved; a load leaves
  /// them where they are, and `fusedbun checkpoint export` makes a folder of them and the weights.
  CheckpointTexts companions = {};
};

}  // namespace fusedbun
