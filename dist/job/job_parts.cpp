#include "fusedbun/dist/job/job_parts.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/job/capability.h"
#include "fusedbun/dist/run_folder/error_file.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/dist/run_folder/standard_error.h"

namespace fusedbun {
namespace {

/// A process that a lost rank holds up gets at least this long to leave by itself.
constexpr int64_t kLeaveUsMin = 5'000'000;

using Cause = plan::LostRank::Cause;

/// Nobody asks whether the GPU's peers live: NCCL's watchdog has a deadline, which comes after the heartbeats would have ended a job in
/// which no rank moves, because they say where each one is. It ends a rank that waits on the GPU for one that moves elsewhere.
std::chrono::milliseconds gpu_timeout_of(const plan::HealthLimits& health) {
  if (health.hang_us == 0) return comm::kNoDeadline;
  const std::chrono::microseconds limit(health.hang_us + health.lost_us);
  return std::chrono::duration_cast<std::chrono::milliseconds>(limit);
}

/// Of this process; 0 where the system does not tell.
int64_t resident_bytes() {
  int64_t pages = 0, resident_pages = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident_pages;
  return resident_pages * ::sysconf(_SC_PAGESIZE);
}

JobOptions checked(JobOptions options) {
  plan::validate(options.health);
  return options;
}

}  // namespace

Job::Parts::Parts(JobOptions given)
    : options(checked(std::move(given))),
      identity(plan::identify(read_environment(), options.identity)),
      connections(connect(identity, {.backend = options.backend,
                                     .gpu = {.use = options.use_gpu, .share = options.share_gpu},
                                     .program = options.program,
                                     .timeout = options.timeout,
                                     .on_gpu_failure = [this](const comm::Failure& failure) {
                                       gpu_failure.tell(failure);
                                     }})) {
  const at::Device device = connections.placement.device;
  if (!device.is_cpu()) c10::impl::VirtualGuardImpl(device.type()).setDevice(device);
  take_run_folder();
  start_heartbeats_of_job();
}

Job::Parts::~Parts() {
  gpu_failure.stop();  // it uses the heartbeat
  if (!heartbeats.heartbeat) return;
  if (std::uncaught_exceptions() > 0) {
    heartbeats.heartbeat->fail(static_cast<int>(ExitCode::unclassified),
                               "it left with an exception");
  }
  heartbeats.heartbeat->leave();
#ifdef FUSEDBUN_HAS_CONTROL
  if (server) server->shutdown();  // it asks the heartbeat for the ranks
#endif
}

void Job::Parts::take_run_folder() {
  comm::rethrow_on_all_ranks(*connections.host, [&] {
    if (identity.rank != 0 || options.run_dir.empty()) return;
    lock = std::make_unique<run_folder::RunFolderLock>(options.run_dir);
    for (const std::string& warning : lock->warnings()) notice(warning);
    run_folder::keep_earlier_error_file(options.run_dir);
  });
}

Checkpointer& Job::Parts::open_checkpointer() {
  if (checkpointer) return *checkpointer;
  // Rank 0's name of it: others may have another working folder, or a name of their own process.
  const std::string run_dir = comm::broadcast_text(
      *connections.host,
      options.run_dir.empty() ? "" : std::filesystem::absolute(options.run_dir).string(), 0);
  FUSEDBUN_REQUIRE(!run_dir.empty(), ConfigError,
                   "checkpoints need a run folder: JobOptions{.run_dir = \"runs/a\"}");
  const std::filesystem::path folder =
      std::filesystem::path(run_dir) / run_folder::kCheckpointsName;
  if (identity.rank == 0) checkpoint::CheckpointFolder(folder).remove_leftovers();
  checkpointer = std::make_unique<Checkpointer>(
      *connections.host,
      CheckpointerOptions{.folder = folder,
                          .keep = options.keep_checkpoints,
                          .notice = [this](std::string_view sentence) { notice(sentence); },
                          .on_event = [this](const CheckpointEvent& event) { tell(event); }});
  offer_checkpoints();
  return *checkpointer;
}

void Job::Parts::start_heartbeats_of_job() {
  health::HeartbeatOptions watch;
  watch.me.local_rank = identity.local_rank;
  watch.me.device = connections.placement.device.str();
  watch.limits = options.health;
  watch.leave_us = std::max(options.health.lost_us, kLeaveUsMin);
  watch.beat = [this] {
    return health::Beat{board.position(), board.state_digest(), shard_bytes.load(), usage()};
  };
  watch.on_lost = [this](const plan::LostRank& lost) { on_lost(lost); };
  watch.on_overdue = [this] { on_overdue(); };
  heartbeats = start_heartbeats(connections, std::move(watch), options.run_dir, options.timeout);
  started = true;
  if (heartbeats.heartbeat) {
    // From here on they alone decide that a rank is gone: a peer may load, validate or save for as long as it lives.
    connections.set_timeout(comm::kNoDeadline, gpu_timeout_of(options.health));
    if (connections.choice.backend == plan::BackendRequest::nccl) {
      gpu_failure.start(*heartbeats.heartbeat, *connections.host, patience_with_peers());
    }
  } else {
    connections.set_timeout(options.timeout, options.timeout);
    notice("no heartbeats: a stopped rank is noticed only when a wait of " +
           std::to_string(options.timeout.count() / 1000) +
           " s (--timeout) ends, and a rank that is busy for longer ends the job: " +
           heartbeats.reason);
  }
}

plan::RankUsage Job::Parts::usage() const {
  return {.phase_us = board.phase_us(),
          .sent_bytes = connections.device ? std::nullopt : connections.host->sent_bytes(),
          .resident_bytes = resident_bytes()};
}

void Job::Parts::notice(std::string_view sentence) const {
  if (identity.rank != 0) return;
  if (options.notice) {
    options.notice(sentence);
  } else {
    run_folder::write_to_standard_error("fusedbun: " + std::string(sentence) + "\n");
  }
}

// ---- a rank is lost ----------------------------------------------------------------------------

std::string Job::Parts::sentence_about(const plan::LostRank& lost) const {
  const bool is_me = lost.rank == identity.rank;
  if (is_me && lost.cause == Cause::failed) return lost.reason;
  return (is_me ? "the other ranks gave this one up: " : "") + plan::sentence_of(lost);
}

ExitCode Job::Parts::exit_code_after(const plan::LostRank& lost) const {
  if (lost.cause == Cause::hung) return ExitCode::timeout;
  const bool is_own_failure = lost.rank == identity.rank && lost.cause == Cause::failed;
  return is_own_failure ? static_cast<ExitCode>(lost.code) : ExitCode::peer_lost;
}

void Job::Parts::abort(const std::string& reason) noexcept {
  connections.data().abort(reason);
  connections.host->abort(reason);
}

void Job::Parts::on_lost(const plan::LostRank& lost) {
  abort(sentence_about(lost));
  if (!started || lost.rank == identity.rank) return;  // the others have told of it
  run_folder::write_error_file(heartbeats.run_dir, lost);
#ifdef FUSEDBUN_HAS_CONTROL
  if (auto* serving = live_server.load()) {
    if (lost.rank != plan::LostRank::kNone) {
      serving->report_lost_rank(heartbeats.heartbeat->ranks().at(static_cast<size_t>(lost.rank)));
    }
    serving->warn(plan::sentence_of(lost));
  }
#endif
}

void Job::Parts::on_overdue() {
  const plan::LostRank lost = *heartbeats.heartbeat->lost();
  const std::string sentence = "fusedbun: " + sentence_about(lost) +
                               " (ended while it was busy in " + describe(board.position()) + ")\n";
  run_folder::write_to_standard_error(sentence);
  ::_exit(static_cast<int>(exit_code_after(lost)));
}

/// A connection breaks before the heartbeats know whose fault it was.
std::chrono::milliseconds Job::Parts::patience_with_peers() const {
  const std::chrono::microseconds patience(options.health.lost_us + options.health.late_us());
  return std::chrono::duration_cast<std::chrono::milliseconds>(patience);
}

std::optional<plan::LostRank> Job::Parts::lost_rank_behind(const std::exception& error) const {
  const auto* ours = dynamic_cast<const Error*>(&error);
  if (ours == nullptr || !heartbeats.heartbeat) return {};
  if (ours->code() == ExitCode::timeout) return heartbeats.heartbeat->lost();
  if (ours->code() != ExitCode::peer_lost) return {};
  // A connection may break before the heartbeat has found out why, and that of a peer that gave up first.
  return heartbeats.heartbeat->wait_lost(patience_with_peers());
}

void Job::Parts::fail(int code, const std::string& reason) noexcept {
  if (heartbeats.heartbeat) heartbeats.heartbeat->fail(code, reason);
  abort(reason);
  if (heartbeats.heartbeat) {
    const auto lost = heartbeats.heartbeat->lost();
    if (lost && lost->rank == identity.rank && lost->cause == Cause::failed) {
      run_folder::write_error_file(heartbeats.run_dir, *lost);
    }
  }
#ifdef FUSEDBUN_HAS_CONTROL
  if (!server) return;
  const bool of_its_values = code == static_cast<int>(ExitCode::config);
  server->set_state(of_its_values ? control::JobState::diverged : control::JobState::failed,
                    reason);
  server->shutdown();
#endif
}

}  // namespace fusedbun
