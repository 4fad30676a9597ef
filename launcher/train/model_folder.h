#pragma once
// What Hugging Face keeps beside a model's weights: config.json, and the tokenizer's files of the folder that the model came from, so that
// AutoModelForCausalLM and AutoTokenizer open what a run leaves.
//
// Thread safety: functions without state.
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/snapshot/contents.h"
#include "fusedbun/launcher/train/initial_model.h"

namespace fusedbun::train {

/// Files that go with a model's weights, read when the run starts: what they came from may be gone at its end.
struct Companions {
  CheckpointTexts files;              ///< bytes by name
  std::vector<std::string> problems;  ///< a sentence for each that could not be read
  int64_t bytes() const;
};
/// config.json for weights of `dtype` ("float32"), and the tokenizer's files beside --init.
Companions read_companions(const InitialModel& initial, std::string_view dtype);

/// Each atomically. Returns a sentence for each that could not be written; the weights are not touched.
std::vector<std::string> write_companions(const std::filesystem::path& folder,
                                          const Companions& companions);

}  // namespace fusedbun::train
