#pragma once
// From connected ranks to heartbeats: rank 0 listens and tells over the host channel under which of its own addresses, with
// a token; all join, or none. A rank that cannot reach rank 0 costs the start a few seconds, never the job.
//
// Thread safety: none; collective.
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include "fusedbun/dist/health/heartbeat.h"
#include "fusedbun/dist/job/connect.h"

namespace fusedbun {

struct Heartbeats {
  std::unique_ptr<health::Heartbeat> heartbeat;  ///< null: some rank could not join
  std::string reason;                            ///< why not, the same on every rank
  std::filesystem::path run_dir;                 ///< rank 0's, absolute; empty: none
};

/// `options.me` needs no host, pid or device yet. `run_dir` is read on rank 0. `timeout` is the host channel's. Throws what
/// the host channel throws.
Heartbeats start_heartbeats(Connections& connections, health::HeartbeatOptions options,
                            const std::filesystem::path& run_dir,
                            std::chrono::milliseconds timeout);

}  // namespace fusedbun
