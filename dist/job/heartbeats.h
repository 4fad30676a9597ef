#pragma once
// From connected ranks to heartbeats: rank 0 listens and tells over the host channel where, with a token; all
// connect, or none.
//
// Thread safety: none; collective.
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include "fusedbun/dist/health/heartbeat.h"
#include "fusedbun/dist/job/connect.h"
#include "fusedbun/dist/plan/identity.h"

namespace fusedbun {

struct Heartbeats {
  std::unique_ptr<health::Heartbeat> heartbeat;  ///< null: some rank could not connect
  std::string reason;                            ///< why not, the same on every rank
  std::filesystem::path run_dir;                 ///< rank 0's, absolute; empty: none
};

/// `options.me` needs no host, pid or device yet. `run_dir` is read on rank 0. Throws what the host channel throws.
Heartbeats start_heartbeats(const plan::Identity& identity, Connections& connections,
                            health::HeartbeatOptions options, const std::filesystem::path& run_dir,
                            std::chrono::milliseconds timeout);

}  // namespace fusedbun
