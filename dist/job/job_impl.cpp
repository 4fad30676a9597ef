#include "fusedbun/dist/job/job_impl.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/job/capability.h"
#include "fusedbun/dist/job/thread_stacks.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/error_file.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/dist/run_folder/run_record.h"
#include "fusedbun/dist/run_folder/standard_error.h"
#include "fusedbun/dist/run_folder/utc_time.h"

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

/// Of another thread than the job's, which may be gone by then. Returns why it could not.
std::string write_dump(const std::string& folder, int rank, const std::string& text) {
  try {
    std::filesystem::create_directories(folder);
    std::filesystem::permissions(folder, std::filesystem::perms::owner_all);
    run_folder::AtomicFile file(std::filesystem::path(folder) / run_folder::diagnostics_name(rank),
                                0600);
    file.write(text);
    file.commit();
    return {};
  } catch (const std::exception& error) {
    return "rank " + std::to_string(rank) + " has not written what it is doing: " + error.what();
  }
}

pid_t parent_of(pid_t process) {
  std::ifstream stat("/proc/" + std::to_string(process) + "/stat");
  std::string text;
  std::getline(stat, text);
  const size_t after_name = text.rfind(')');
  char state = 0;
  pid_t parent = 0;
  if (after_name != text.npos) std::istringstream(text.substr(after_name + 1)) >> state >> parent;
  return parent;
}

/// A rank that the same launcher has started here: no other process, and none that another container calls by that number.
void kill_sibling(int64_t pid) {
  if (pid > 1 && parent_of(static_cast<pid_t>(pid)) == ::getppid())
    ::kill(static_cast<pid_t>(pid), SIGKILL);
}

JobOptions checked(JobOptions options) {
  plan::validate(options.health);
  return options;
}

}  // namespace

Job::Impl::Impl(JobOptions given)
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

Job::Impl::~Impl() {
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

void Job::Impl::take_run_folder() {
  comm::rethrow_on_all_ranks(*connections.host, [&] {
    if (identity.rank != 0 || options.run_dir.empty()) return;
    lock = std::make_unique<run_folder::RunFolderLock>(options.run_dir);
    for (const std::string& warning : lock->warnings()) notice(warning);
    run_folder::keep_earlier_error_file(options.run_dir);
  });
}

Checkpointer& Job::Impl::open_checkpointer() {
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

void Job::Impl::start_heartbeats_of_job() {
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
  watch.describe = [this] { return describe_rank(); };
  watch.write_dump = [rank = identity.rank](const std::string& folder, const std::string& text) {
    return write_dump(folder, rank, text);
  };
  watch.exit = [this](int code, const std::string& reason) { exit_now(code, reason); };
  watch.end_forcibly = [](const health::RankInfo& rank) { kill_sibling(rank.pid); };
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

plan::RankUsage Job::Impl::usage() const {
  return {.phase_us = board.phase_us(),
          .sent_bytes = connections.device ? std::nullopt : connections.host->sent_bytes(),
          .resident_bytes = resident_bytes()};
}

void Job::Impl::notice(std::string_view sentence) const {
  if (identity.rank != 0) return;
  if (options.notice) {
    options.notice(sentence);
  } else {
    run_folder::write_to_standard_error("fusedbun: " + std::string(sentence) + "\n");
  }
}

// ---- orders that people give ---------------------------------------------------------------------

std::string Job::Impl::describe_rank() const {
  std::ostringstream text;
  text << "rank " << identity.rank << " of " << identity.world_size << ", pid " << ::getpid()
       << " on " << host_name() << ", " << connections.placement.describe() << ", "
       << run_folder::utc_text_us(run_folder::utc_now_us()) << '\n'
       << "in " << plan::describe(board.position()) << '\n';
  for (const auto* const channel : {connections.host.get(), connections.device.get()}) {
    if (channel == nullptr) continue;
    for (const std::string& operation : channel->pending_operations())
      text << "under way: " << operation << '\n';
    if (const auto failure = channel->failure()) text << "broken: " << failure->text << '\n';
  }
  text << "memory: " << (resident_bytes() >> 20) << " MiB resident, of it optimizer state "
       << (shard_bytes.load() >> 20) << " MiB\n";
  const auto phases = board.phase_us();
  for (size_t phase = 0; phase < phases.size(); ++phase) {
    if (phases[phase] == 0) continue;
    text << "spent in " << plan::name_of(static_cast<plan::Phase>(phase)) << ": "
         << static_cast<double>(phases[phase]) / 1e6 << " s\n";
  }
  text << '\n' << thread_stacks();
  return text.str();
}

// By the heartbeat's thread: the job's own may hang.
void Job::Impl::exit_now(int code, const std::string& reason) {
  if (identity.rank == 0) {
    run_folder::write_to_standard_error("fusedbun: " + reason + '\n');
    const auto state = code == static_cast<int>(ExitCode::done) ? run_folder::RunState::stopped
                                                                : run_folder::RunState::drained;
    run_folder::end_newest_attempt(heartbeats.run_dir, state, code, reason,
                                   board.position().job_step);
#ifdef FUSEDBUN_HAS_CONTROL
    if (auto* const serving = live_server.load()) serving->shutdown();
#endif
  }
  ::_exit(code);
}

// ---- a rank is lost ----------------------------------------------------------------------------

std::string Job::Impl::sentence_about(const plan::LostRank& lost) const {
  const bool is_me = lost.rank == identity.rank;
  if (is_me && lost.cause == Cause::failed) return lost.reason;
  return (is_me ? "the other ranks gave this one up: " : "") + plan::sentence_of(lost);
}

ExitCode Job::Impl::exit_code_after(const plan::LostRank& lost) const {
  if (lost.cause == Cause::hung) return ExitCode::timeout;
  const bool is_own_failure = lost.rank == identity.rank && lost.cause == Cause::failed;
  return is_own_failure ? static_cast<ExitCode>(lost.code) : ExitCode::peer_lost;
}

void Job::Impl::abort(const std::string& reason) noexcept {
  connections.data().abort(reason);
  connections.host->abort(reason);
}

void Job::Impl::on_lost(const plan::LostRank& lost) {
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

void Job::Impl::on_overdue() {
  const plan::LostRank lost = *heartbeats.heartbeat->lost();
  const std::string sentence = "fusedbun: " + sentence_about(lost) +
                               " (ended while it was busy in " + describe(board.position()) + ")\n";
  run_folder::write_to_standard_error(sentence);
  ::_exit(static_cast<int>(exit_code_after(lost)));
}

/// A connection breaks before the heartbeats know whose fault it was.
std::chrono::milliseconds Job::Impl::patience_with_peers() const {
  const std::chrono::microseconds patience(options.health.lost_us + options.health.late_us());
  return std::chrono::duration_cast<std::chrono::milliseconds>(patience);
}

std::optional<plan::LostRank> Job::Impl::lost_rank_behind(const std::exception& error) const {
  const auto* ours = dynamic_cast<const Error*>(&error);
  if (ours == nullptr || !heartbeats.heartbeat) return {};
  if (ours->code() == ExitCode::timeout) return heartbeats.heartbeat->lost();
  if (ours->code() != ExitCode::peer_lost) return {};
  // A connection may break before the heartbeat has found out why, and that of a peer that gave up first.
  return heartbeats.heartbeat->wait_lost(patience_with_peers());
}

void Job::Impl::fail(int code, const std::string& reason) noexcept {
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
