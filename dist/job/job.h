#pragma once
// Job: the facade that programs link. It finds out which rank this is, connects the ranks, and,
// where a run folder is given, serves the control plane from rank 0.
//
//   fusedbun::Job job;                               // under torchrun, mpirun, or alone
//   fusedbun::ShardedFusedbun optimizer(job.channels(), model->named_parameters(),
//                                       fusedbun::FusedbunOptions::recommended(3e-3));
//   job.serve(optimizer);                            // optional: fusedbun status, set, health
//
// Invariants: 1. The job outlives the optimizers made from its channels. 2. Constructing it is
// collective. 3. An error on rank 0 alone (run folder in use, socket taken) is the same error on
// every rank.
//
// Thread safety: one thread at a time, except fail().
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/plan/backend_choice.h"
#include "fusedbun/dist/plan/identity.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"

namespace fusedbun {

struct JobOptions {
  plan::BackendRequest backend = plan::BackendRequest::automatic;
  plan::IdentityFlags identity = {};
  /// Everything a run writes. Empty: nothing is written and there is no control plane.
  std::filesystem::path run_dir = {};
  /// Serve the control plane on <run_dir>/control.sock from rank 0 (serve() does it).
  bool control = true;
  /// Where it listens instead: "127.0.0.1:PORT".
  std::string control_address = {};
  bool use_gpu = false;                       ///< the job's parameters live on a GPU
  std::chrono::milliseconds timeout{60'000};  ///< deadline of every wait between ranks
  int64_t total_steps = 0;                    ///< for progress; 0: unknown
  /// Called with one sentence a person should know; default: stderr on rank 0.
  std::function<void(std::string_view)> notice = {};
};

class Job {
 public:
  /// Throws ConfigError (identity, backend), UnavailableError (address or run folder in use),
  /// PeerLostError, TimeoutError.
  explicit Job(JobOptions options = {});
  ~Job();
  Job(const Job&) = delete;

  const plan::Identity& identity() const;
  int rank() const { return identity().rank; }
  int world_size() const { return identity().world_size; }
  const plan::BackendChoice& backend() const;
  Channels channels();

  /// Connects the control plane to the optimizer; collective. Without a run folder, or without gRPC
  /// built in, it says so once and does nothing.
  void serve(ShardedFusedbun& optimizer);
  /// "unix:/path/control.sock", or empty when nothing is served.
  std::string control_address() const;

  /// The run ends, at its last step (none) or before it on request: waits for all ranks, sets the
  /// job's final state, takes the control plane down. Collective; the optimizer is finished before.
  void finish(plan::LeaveRequest left = plan::LeaveRequest::none);
  /// This rank fails: tells the peers and the control plane. Never blocks long, never throws.
  void fail(const std::string& reason) noexcept;

 private:
  class Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace fusedbun
