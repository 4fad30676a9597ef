#pragma once
// RankProcess: one started rank. It leads a process group of its own, so that signals and the end reach its children
// too; its standard input is /dev/null; the kernel kills it when the launcher dies, however that happens.
//
// Thread safety: start ranks from the thread that lives as long as the launcher: the kernel ties their lives to it.
#include <sys/types.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/launcher/launch/supervision.h"

namespace fusedbun::launch {

struct RankProcess {
  int rank = 0;
  pid_t pid = 0;
  int out = -1;  ///< read end of its standard output; -1: it writes to ours
  int err = -1;  ///< the same of standard error
};

struct StartOptions {
  int rank = 0;
  bool capture_out = true;
  bool capture_err = true;
};

/// This process's environment with `rank_variables` over it; OMP_NUM_THREADS stays as it is where it is set.
std::vector<std::string> merged_environment(
    const std::map<std::string, std::string>& rank_variables);

/// Starts `command` with exactly `environment`, found along PATH. Signals that the launcher blocks are open in it.
/// Throws what throw_cannot_start() does.
RankProcess start_rank(const std::vector<std::string>& command,
                       const std::vector<std::string>& environment, const StartOptions& options);

/// The sentence and code for a program that could not be started, by what exec said: UsageError when there is none, PermissionError when
/// it may not be run, IoError for other failures.
[[noreturn]] void throw_cannot_start(const std::string& program, int error);

/// A rank that has ended, after killing what is left of its process group; nothing when none has.
std::optional<RankEnd> reap_one(const std::vector<RankProcess>& ranks);

}  // namespace fusedbun::launch
