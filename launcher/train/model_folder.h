#pragma once
// What Hugging Face keeps beside a model's weights: config.json, and the tokenizer's files of the folder that the model came from, so that
// AutoModelForCausalLM and AutoTokenizer open the folder that a run leaves.
//
// Thread safety: a function without state.
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/launcher/train/initial_model.h"

namespace fusedbun::train {

/// Writes config.json for weights of `dtype` ("float32") to `folder`, and copies tokenizer files from beside --init. Returns a sentence for
/// each file that could not be written; the weights are not touched.
std::vector<std::string> complete_model_folder(const std::filesystem::path& folder,
                                               const InitialModel& initial, std::string_view dtype);

}  // namespace fusedbun::train
