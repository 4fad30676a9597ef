// The control plane of a job: rank 0's side of changes, and the job's final state.
#include <algorithm>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/changes_file.h"
#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/checkpoint/checkpoint_reader.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/health/socket.h"
#include "fusedbun/dist/job/job_impl.h"
#include "fusedbun/dist/run_folder/utc_time.h"

namespace fusedbun {
namespace {

std::vector<changes::LedgerGroup> groups_of(const ShardedFusedbun& optimizer) {
  std::vector<changes::LedgerGroup> named;
  const auto& groups = optimizer.param_groups();
  for (size_t g = 0; g < groups.size(); ++g) {
    changes::LedgerGroup& group = named.emplace_back();
    group.name = optimizer.group_name(g);
    group.is_exempt_from_decay = optimizer.is_exempt_from_decay(g);
    for (const plan::ParameterSpec& parameter : optimizer.shard_plan().parameters) {
      if (parameter.group == static_cast<int>(g)) group.parameter_count += parameter.elements();
    }
    group.options = static_cast<const FusedbunOptions&>(groups[g].options()).values();
  }
  return named;
}

#ifdef FUSEDBUN_HAS_CONTROL
control::JobDescription describe(const ShardedFusedbun& optimizer, const JobOptions& options,
                                 const plan::Identity& identity, std::string_view backend) {
  control::JobDescription job;
  job.world_size = identity.world_size;
  const changes::ActiveChanges::Saved changes = optimizer.active_changes();
  job.first_step = optimizer.job_step();
  job.known_revision = changes.known_revision;
  job.chain_hash = changes.chain_hash;
  job.total_steps = options.total_steps;
  job.restart_count = identity.restart_count;
  job.version = FUSEDBUN_VERSION;
  job.backend = backend;
  job.max_grad_norm = optimizer.max_grad_norm();
  job.capabilities = optimizer.capabilities();
  job.groups = groups_of(optimizer);
  return job;
}

control::ControlOptions control_options(const JobOptions& options, const plan::Identity& identity) {
  control::ControlOptions control;
  control.run_dir = options.run_dir;
  control.address = options.control_address;
  control.host_addresses = health::addresses_of_this_host();
  control.credentials = options.control_credentials;
  control.insecure = options.insecure_control;
  control.changes_per_second = options.control_rate;
  control.stall_timeout = std::chrono::milliseconds(options.health.stall_us / 1000);
  if (!identity.run_id.empty()) control.run_id = identity.run_id;
  return control;
}

/// How many of the checkpoints that it finds a job tells clients of.
constexpr size_t kFoundCheckpointsMax = 100;

std::string bytes_of(const checkpoint::Digest& digest) {
  std::string bytes;
  for (const uint64_t half : {digest.high, digest.low}) {
    for (int shift = 56; shift >= 0; shift -= 8) bytes += static_cast<char>(half >> shift);
  }
  return bytes;
}

control::CheckpointFacts facts_of(const SavedCheckpoint& saved, int world_size) {
  return {.job_step = saved.job_step,
          .bytes = saved.bytes,
          .world_size = world_size,
          .digest = bytes_of(saved.digest),
          .folder = saved.folder,
          .written_us = run_folder::utc_now_us()};
}

control::ControlServer::FoundCheckpoint found_checkpoint(const std::filesystem::path& folder,
                                                         int64_t job_step) {
  control::ControlServer::FoundCheckpoint found;
  found.facts.job_step = job_step;
  found.facts.folder = folder;
  try {
    const checkpoint::Manifest manifest = checkpoint::read_manifest(folder);
    for (const checkpoint::StoredFile& file : manifest.files) found.facts.bytes += file.bytes;
    found.facts.world_size = manifest.world_size;
    found.facts.digest = bytes_of(manifest.digest);
    found.facts.written_us = run_folder::read_utc_us(manifest.written).value_or(0);
  } catch (const Error& error) {
    found.damage = error.what();
  }
  return found;
}
#endif

}  // namespace

bool Job::Impl::may_serve() const {
  if (!options.control) return false;
#ifdef FUSEDBUN_HAS_CONTROL
  if (options.run_dir.empty()) notice("no run folder was given, so there is no control plane");
  return !options.run_dir.empty();
#else
  notice("this build has no control plane (FUSEDBUN_WITH_CONTROL is off)");
  return false;
#endif
}

changes::ControlPort* Job::Impl::open_port(const ShardedFusedbun& optimizer) {
  std::vector<changes::ScheduledChange> changes;
  if (!options.changes.empty()) changes = changes::read_changes_file(options.changes);
  const bool serving = may_serve();
#ifdef FUSEDBUN_HAS_CONTROL
  if (serving) {
    control::ControlOptions control = control_options(options, identity);
    control.changes = std::move(changes);
    control.notice = [this](std::string_view sentence) { notice(sentence); };
    server = std::make_unique<control::ControlServer>(
        std::move(control), describe(optimizer, options, identity, connections.data().backend()));
    server->set_ranks(heartbeats.heartbeat.get());
    server->set_orders(heartbeats.heartbeat.get());
    live_server = server.get();
    offer_checkpoints();
    server->set_state(control::JobState::running);
    if (const int64_t restored = server->restored_changes(); restored > 0) {
      notice("changes 1 to " + std::to_string(restored) +
             " of changes.log apply again at their steps");
    }
    return &server->port();
  }
#endif
  if (serving || changes.empty())
    return nullptr;  // changes that the checkpoint had scheduled are used nevertheless
  // From step 0 on, also where the job goes on after a checkpoint: the file's changes count from there.
  schedule = std::make_unique<changes::ChangeSchedule>(
      changes::ChangeLedger(groups_of(optimizer), optimizer.max_grad_norm(), 0,
                            optimizer.capabilities()),
      changes);
  const changes::ActiveChanges::Saved known = optimizer.active_changes();
  FUSEDBUN_REQUIRE(
      known.known_revision == 0 || schedule->has(known.known_revision, known.chain_hash),
      ConfigError,
      "the checkpoint was saved with other changes than " + options.changes.string() +
          " has: give the file of the run that saved it, or start from the "
          "checkpoint in a run folder of its own (--resume PATH)");
  return schedule.get();
}

void Job::Impl::offer_checkpoints() {
#ifdef FUSEDBUN_HAS_CONTROL
  if (!server || !checkpointer || identity.rank != 0) return;
  const checkpoint::CheckpointFolder folder(checkpointer->folder());
  std::vector<int64_t> steps = folder.steps();
  if (steps.size() > kFoundCheckpointsMax) steps.resize(kFoundCheckpointsMax);
  std::vector<control::ControlServer::FoundCheckpoint> found;
  for (const int64_t step : steps) found.push_back(found_checkpoint(folder.path_of(step), step));
  server->offer_checkpoints(found);
#endif
}

// live_server, since the thread that writes may tell of a save that began before there was a server.
void Job::Impl::tell(const CheckpointEvent& event) {
#ifdef FUSEDBUN_HAS_CONTROL
  if (control::ControlServer* const serving = live_server.load()) {
    if (const auto* started = std::get_if<SaveStarted>(&event)) {
      serving->save_started(started->job_step);
    } else if (const auto* refused = std::get_if<SaveRefused>(&event)) {
      serving->save_refused(refused->job_step);
    } else if (const auto* saved = std::get_if<SavedCheckpoint>(&event)) {
      serving->checkpoint_durable(facts_of(*saved, identity.world_size));
    } else if (const auto* failed = std::get_if<SaveFailed>(&event)) {
      serving->save_failed(failed->job_step, failed->problem);
    } else {
      serving->checkpoint_deleted(std::get<CheckpointDeleted>(event).job_step);
    }
  }
#endif
  const auto* saved = std::get_if<SavedCheckpoint>(&event);
  if (saved != nullptr && options.checkpoint_saved) options.checkpoint_saved(*saved);
}

void Job::Impl::serve(ShardedFusedbun& optimizer) {
  shard_bytes = optimizer.state_bytes();
  comm::rethrow_on_all_ranks(*connections.host, [&] {
    if (identity.rank == 0) port = open_port(optimizer);
  });
  optimizer.set_control(port);
}

bool Job::Impl::finish(changes::LeaveRequest left, bool has_result) {
  if (!heartbeats.heartbeat) {
    // A rank may still save, and nothing is left that waiting could cost: the transport tells of one whose process ends.
    const std::chrono::milliseconds hang(options.health.hang_us / 1000);
    connections.host->set_timeout(hang.count() == 0 ? comm::kNoDeadline
                                                    : std::max(options.timeout, hang));
  }
  if (checkpointer) {
    board.enter(plan::Phase::save);
    checkpointer->wait();
  }
  const std::vector<uint8_t> results =
      comm::all_gather_object(*connections.host, static_cast<uint8_t>(has_result));
  const bool all_have = std::ranges::all_of(results, [](uint8_t has) { return has != 0; });
#ifdef FUSEDBUN_HAS_CONTROL
  if (server) {
    switch (left) {
      case changes::LeaveRequest::none:
        server->set_state(control::JobState::succeeded);
        break;
      case changes::LeaveRequest::drain:
        server->set_state(control::JobState::drained, "drained");
        break;
      case changes::LeaveRequest::stop:
        server->set_state(
            control::JobState::stopped,
            all_have ? "stopped on request" : "stopped on request, without its result");
        break;
    }
    server->shutdown();
  }
#else
  static_cast<void>(left);
#endif
  if (heartbeats.heartbeat) heartbeats.heartbeat->leave();
  return all_have;
}

}  // namespace fusedbun
