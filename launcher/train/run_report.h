#pragma once
// What a run says about itself at its start and at its end.
//
// Thread safety: pure functions, except for the streams and files given.
#include <filesystem>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "fusedbun/launcher/data/corpus.h"
#include "fusedbun/launcher/train/initial_model.h"
#include "fusedbun/launcher/train/train_options.h"
#include "fusedbun/launcher/train/training_loop.h"

namespace fusedbun::train {

/// The model and the data, one sentence each, and what is unusual about them. `validation` is `corpus`, or that of --eval-data. `has_bfloat16_products`: of this processor, if it is known.
std::vector<std::string> start_sentences(const TrainOptions& options, const InitialModel& initial,
                                         int64_t parameters, const data::Corpus& corpus,
                                         const data::Corpus& validation,
                                         std::optional<bool> has_bfloat16_products);

/// "precision: bf16-autocast; activation checkpointing: each block is computed once more in backward"; empty where neither is asked for. Says
/// where a precision is slower than float32.
std::string precision_sentence(const TrainOptions& options,
                               std::optional<bool> has_bfloat16_products);

/// "1,234 bytes per rank", or "1,234 bytes (rank 1) to 2,345 bytes (rank 0)".
std::string bytes_per_rank(const std::vector<int64_t>& bytes);

/// "1.21 GiB at the peak (rank 1); the forecast was 1.18 GiB (-2 %)", of the rank that took most.
std::string memory_per_rank(const std::vector<int64_t>& bytes, int64_t forecast);

/// Why a run has ended before its last step.
std::string early_stop_sentence(const ValidationHistory& history, const EarlyStopping& rule);

struct RunEnd {
  LoopResult result;
  std::vector<int64_t> planned_bytes;               ///< [rank] of optimizer state
  std::vector<int64_t> measured_bytes;              ///< [rank]
  int64_t forecast_memory = 0;                      ///< bytes, of the rank that takes most
  std::vector<int64_t> memory;                      ///< [rank] bytes taken at the peak
  std::string metrics = {};                         ///< where they are, and what is missing
  std::optional<std::filesystem::path> model = {};  ///< nothing: not saved, as told
  std::optional<BestValidation> model_is_of = {};   ///< with --keep-best
};
void print_end(const RunEnd& end, std::ostream& out);
/// The same as a log record.
std::string json_of(const RunEnd& end);

}  // namespace fusedbun::train
