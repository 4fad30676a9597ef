#pragma once
// The models that are measured: GPT-2's architecture in three sizes.
//
// Thread safety: functions without state.
#include <cstdint>
#include <string>
#include <vector>

#include "fusedbun/launcher/model/gpt2.h"

namespace fusedbun::bench {

struct BenchModel {
  std::string name;  ///< "3m", "25m", "124m"
  model::Gpt2Config config;
  int64_t sequences = 1;  ///< per rank and step, of `context` tokens
  int64_t context = 128;
};

const std::vector<std::string>& model_names();
/// Throws ConfigError for another name.
BenchModel model_of(const std::string& name);

/// Shapes of the parameters in order of registration, the tied output layer once.
std::vector<std::vector<int64_t>> shapes_of(const BenchModel& model);

}  // namespace fusedbun::bench
