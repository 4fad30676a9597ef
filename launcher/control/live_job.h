#pragma once
// LiveJob: a running job as it is watched: its metrics arrive on a thread of their own, the rest is asked for on
// refresh().
//
// Thread safety: one thread calls the members.
#include <mutex>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/launcher/control/watch_view.h"

namespace fusedbun::launcher {

class LiveJob {
 public:
  /// Throws what ControlClient throws when there is no such job.
  explicit LiveJob(const control::JobLocation& location);
  ~LiveJob();
  LiveJob(const LiveJob&) = delete;  // owns a thread

  /// Asks for state, changes and ranks. If the job does not answer, the view keeps its last values; its state becomes the final
  /// one that the run folder records, or, without a record, `trouble` says that no job answers.
  void refresh();
  WatchView view() const;
  /// The stream of metrics has ended: the job has, or does not answer.
  bool has_ended() const;
  /// The newest sample is of the step that the job had finished at the last refresh, or of a later one.
  bool is_up_to_date() const;

 private:
  void show_end(const Error& unanswered);

  const control::JobLocation location_;
  control::ControlClient client_;
  mutable std::mutex mutex_;  // guards what follows
  WatchView view_;
  bool ended_ = false;
  std::thread metrics_;
};

}  // namespace fusedbun::launcher
