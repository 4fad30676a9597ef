#pragma once
// Checkpoints as people and programs read them: tables, sentences and JSON.
//
// Thread safety: pure functions.
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "fusedbun/dist/checkpoint/manifest.h"

namespace fusedbun::launcher {

/// One folder step-N.
struct CheckpointSeen {
  int64_t job_step = 0;
  std::filesystem::path folder;
  checkpoint::Manifest manifest;  ///< without `problem`
  std::string problem;            ///< why it is no whole checkpoint; empty: nothing was found
  bool is_latest = false;         ///< `latest` names it
};

int64_t bytes_of(const checkpoint::Manifest& manifest);
/// "6.7 MB", in powers of ten.
std::string text_of_bytes(int64_t bytes);

std::string text_of(const std::vector<CheckpointSeen>& list);
std::string json_of(const std::vector<CheckpointSeen>& list);
/// All that the manifest says, without its files.
std::string text_of(const CheckpointSeen& checkpoint);
std::string json_of(const CheckpointSeen& checkpoint);

}  // namespace fusedbun::launcher
