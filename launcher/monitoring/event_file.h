#pragma once
// EventFile: a run as TensorBoard shows it, in a file of the run folder per attempt: `tensorboard --logdir runs`. Scalars of each step and
// validation under the steps of metrics.jsonl, hyperparameters once, changes of them as text at their step. Records that a full disk does
// not take are lost and counted, as lines of metrics.jsonl are.
//
// Thread safety: as RunObserver.
#include <filesystem>
#include <vector>

#include "fusedbun/dist/run_folder/append_file.h"
#include "fusedbun/launcher/monitoring/event_records.h"
#include "fusedbun/launcher/monitoring/run_observer.h"

namespace fusedbun::monitoring {

class EventFile final : public RunObserver {
 public:
  /// An attempt that begins at `first_step`: what earlier files of the folder say of that step and of later ones counts no more.
  EventFile(const std::filesystem::path& run_dir, int64_t first_step,
            const std::vector<HyperParameter>& parameters, run_folder::AppendFile::Notice notice);

  void step_done(const StepMetrics& metrics) override;
  void validated(int64_t step, double loss) override;

 private:
  run_folder::AppendFile file_;
};

}  // namespace fusedbun::monitoring
