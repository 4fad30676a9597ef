#pragma once
// ProcessLoop: starts the ranks, passes on their output and the signals that arrive, and performs what Supervision
// decides.
//
// Invariants: 1. When it is destroyed no rank lives. 2. While it exists the signals it serves are blocked in this
// process and read from a descriptor, so nothing happens inside a signal handler.
//
// Thread safety: make, run and destroy it on one thread, and only one per process at a time.
#include <csignal>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/launcher/launch/console.h"
#include "fusedbun/launcher/launch/free_port.h"
#include "fusedbun/launcher/launch/last_lines.h"
#include "fusedbun/launcher/launch/last_words.h"
#include "fusedbun/launcher/launch/launch_options.h"
#include "fusedbun/launcher/launch/rank_process.h"
#include "fusedbun/launcher/launch/rank_stream.h"
#include "fusedbun/launcher/launch/supervision.h"

namespace fusedbun::launch {

class ProcessLoop {
 public:
  explicit ProcessLoop(const LaunchOptions& options);
  ~ProcessLoop();
  ProcessLoop(const ProcessLoop&) = delete;  // owns processes

  /// Returns when all ranks are done. Otherwise says who failed first, with process, host and log files, what was lost and how to go
  /// on, all but the last of these lines on standard error, and throws Error with that one and the exit code to exit with. What
  /// start_rank and free_port throw passes through.
  void run();

 private:
  void perform(const Actions& actions);
  void start_attempt();
  void start_one(int rank);
  void capture(int rank, StreamBits stream, int descriptor);
  void wait(int timeout_ms);
  void serve_signals();
  void stop_with_ranks();
  void reap();
  void signal_ranks(int signal);
  void read_streams();
  void drain_output();
  void flush_output();
  int timeout_ms() const;
  std::string sentence_about(int received, int sent) const;
  std::string name_of_end(const RankEnd& end) const;
  Culprit culprit() const;
  /// With the rank among those of all hosts.
  RankEnd in_job(RankEnd end) const;
  Verdict verdict_in_job() const;
  void notice(const std::string& sentence);

  LaunchOptions options_;
  LastWordsFile last_words_;  ///< of all attempts
  AttemptIdentity identity_;
  HeldPort port_;  ///< of this attempt
  Supervision supervision_;
  Console out_;
  Console err_;
  std::vector<RankProcess> ranks_;  ///< [rank] of this attempt
  std::vector<bool> lives_;         ///< [rank]
  std::vector<std::string>
      errors_;  ///< [rank] the last line of its standard error; never grows: streams point into it
  std::vector<std::unique_ptr<RankStream>> streams_;  ///< open ones, of earlier attempts too
  int signals_ = -1;
  sigset_t served_{};
  sigset_t blocked_before_{};
  bool finished_ = false;
  bool abandon_output_ = false;  ///< told to stop while only unread output was left
};

/// "20260131-235959-4711": names a launch among others in one log folder.
std::string new_run_id();

}  // namespace fusedbun::launch
