#pragma once
// One training run: reads text and weights, joins the job, trains, saves the model, says how it went.
//
// Order, so that nothing is lost late: everything that can be refused alone is refused before ranks meet; the run
// folder is taken before anything is written to it; the model is saved atomically before anything else that the end of a
// run writes, and before the job calls itself done. What tells of a run (metrics, log, plan, record, trace) never ends it.
//
// Thread safety: one run at a time in a process.
#include "fusedbun/launcher/train/train_options.h"

namespace fusedbun::train {

/// Throws Error, with the exit code of its kind; left_early when a drain ended the run.
void train(const TrainOptions& options);

}  // namespace fusedbun::train
