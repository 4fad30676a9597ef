#pragma once
// What a checkpoint of `fusedbun train` says of its run, so that another attempt sees the same samples and the same schedule.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/launcher/model/dropout_rates.h"
#include "fusedbun/launcher/train/train_options.h"

namespace fusedbun::train {

using RunValues = std::map<std::string, std::string, std::less<>>;

/// The name of what only who reads the model's config knows: its digest, without dropout.
inline constexpr const char* kConfigSays = "the model (config.json, --model-config or its sizes)";

/// What decides the samples, the schedule and the arithmetic of a run. `dropout` of the model, `text_digest` of the training text.
RunValues values_of(const TrainOptions& options, int64_t context, const Schedule& schedule,
                    const model::DropoutRates& dropout, uint64_t text_digest);

/// Where the next step begins in the data: the global index of its first sample. And the validation loss before step 0, which the
/// end of the run compares with.
void add_position(RunValues& values, int64_t job_step, int64_t batch, double first_validation_loss);
std::optional<double> first_validation_loss_in(const RunValues& saved);
/// What early stopping and the best model go on with; an empty history of a checkpoint that has none.
void add_validations(RunValues& values, const ValidationHistory& history);
ValidationHistory validations_in(const RunValues& saved);

/// What may not differ when a run goes on, "--batch (16, here 32)"; empty if nothing does.
std::string differences_that_break(const RunValues& saved, const RunValues& here);
/// What differs in the schedule, which a longer run may want: "--steps (300, here 600)"; empty if nothing does.
std::string differences_of_schedule(const RunValues& saved, const RunValues& here);

}  // namespace fusedbun::train
