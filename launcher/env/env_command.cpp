#include "fusedbun/launcher/env/env_command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/capability.h"
#include "fusedbun/dist/plan/backend_choice.h"
#include "fusedbun/dist/plan/identity.h"
#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/cli/torch_program.h"
#include "fusedbun/launcher/env/host.h"
#include "fusedbun/launcher/env/versions.h"

namespace fusedbun::launcher {
namespace {

using Json = nlohmann::ordered_json;

/// What `--backend auto` decides for a job on this device, if all ranks find what this one finds and the ranks of one
/// host take its GPUs in order.
Json expected_backend(const plan::Identity& identity, bool use_gpu) {
  if (identity.world_size == 1 && !use_gpu) {
    return {{"auto", "local"}, {"reason", "local: one process, nothing travels"}};
  }
  const plan::Capability here =
      capability_of(identity, plan::BackendRequest::automatic, {.use = use_gpu});
  std::vector<plan::Capability> ranks(identity.world_size, here);
  for (int rank = 0; rank < identity.world_size && use_gpu; ++rank) {
    const int local_rank = rank % identity.local_world_size;
    ranks[rank].host_hash = static_cast<uint64_t>(rank / identity.local_world_size);
    ranks[rank].gpu_uuid[0] = static_cast<uint8_t>(local_rank);
    ranks[rank].gpu_uuid[1] = static_cast<uint8_t>(local_rank >> 8);
  }
  try {
    const plan::BackendChoice choice = plan::choose_backend(ranks);
    return {{"auto", plan::name_of(choice.backend)}, {"reason", choice.reason}};
  } catch (const Error& error) {
    return {{"auto", nullptr}, {"reason", std::string("none: ") + error.what()}};
  }
}

Json identity_json(const plan::Identity& identity) {
  return {{"rank", identity.rank},
          {"world_size", identity.world_size},
          {"local_rank", identity.local_rank},
          {"local_world_size", identity.local_world_size},
          {"launcher", plan::name_of(identity.launcher)},
          {"master_addr", identity.master_addr},
          {"master_port", identity.master_port},
          {"master_origin", identity.master_origin},
          {"agent_serves_store", identity.agent_serves_store},
          {"run_id", identity.run_id},
          {"restart_count", identity.restart_count},
          {"ignored", identity.ignored}};
}

constexpr int kExampleRanks = 2;
constexpr int kExampleGraceSeconds = 10;

/// How ranks are started on this machine, with what each launcher insists on.
Json start_lines(const std::string& command) {
  const std::string ranks = std::to_string(kExampleRanks);
  Json lines;
  lines["launch"] = command + " launch -n " + ranks + " -- train";
#ifdef FUSEDBUN_HAS_MPI
  std::string mpirun = "mpirun";
  if (::geteuid() == 0) mpirun += " --allow-run-as-root";
  if (usable_cores() < kExampleRanks) mpirun += " --oversubscribe";
  // mpirun waits that long before it passes SIGTERM on, and as long again before it kills: else one second, in which a
  // rank may not have saved its model.
  mpirun += " --mca odls_base_sigkill_timeout " + std::to_string(kExampleGraceSeconds);
  lines["mpirun"] = mpirun + " -np " + ranks + " " + command + " train";
#endif
  lines["torchrun"] =
      "torchrun --standalone --no-python --nproc-per-node " + ranks + " " + command + " train";
  return lines;
}

Json collect() {
  const plan::Identity identity = plan::identify(read_environment(), {});
  const std::vector<std::string> gpus = visible_gpus();
  Json json;
  json["identity"] = identity_json(identity);
  json["backend"]["cpu"] = expected_backend(identity, false);
  if (!gpus.empty()) {
    json["backend"]["cuda"] = expected_backend(identity, true);
  }
  for (const auto& [name, version] : versions()) json["versions"][std::string(name)] = version;
  json["cores"] = usable_cores();
  json["shared_memory"] = nullptr;
  if (const auto memory = shared_memory()) {
    json["shared_memory"] = {{"free_bytes", memory->free_bytes},
                             {"total_bytes", memory->total_bytes}};
  }
  json["gpus"] = gpus;
  json["start"] = start_lines(fusedbun_program().string());
  return json;
}

std::string mebibytes(const Json& bytes) {
  return std::to_string(bytes.get<int64_t>() >> 20) + " MiB";
}

void print_text(const Json& json, std::ostream& out) {
  const auto line = [&out](std::string_view name, const std::string& value) {
    out << std::left << std::setw(14) << name << value << '\n';
  };
  const Json& identity = json["identity"];
  line("identity", "rank " + identity["rank"].dump() + " of " + identity["world_size"].dump() +
                       ", local rank " + identity["local_rank"].dump() + " of " +
                       identity["local_world_size"].dump() + " (" +
                       identity["launcher"].get<std::string>() + ")");
  for (const Json& other : identity["ignored"]) line("ignored", other.get<std::string>());
  if (identity["master_port"] != 0) {
    line("rendezvous", identity["master_addr"].get<std::string>() + ":" +
                           identity["master_port"].dump() +
                           (identity["agent_serves_store"] ? ", served by torchrun's agent"
                                                           : ", served by rank 0") +
                           (identity["master_origin"] == ""
                                ? ""
                                : ", by " + identity["master_origin"].get<std::string>()));
  }
  for (const auto& [device, backend] : json["backend"].items()) {
    line("backend", "auto on " + device + " takes " + backend["reason"].get<std::string>());
  }
  for (const auto& [name, version] : json["versions"].items()) line(name, version);
  line("cores", json["cores"].dump());
  const Json& memory = json["shared_memory"];
  line("/dev/shm", memory.is_null() ? "not mounted"
                                    : mebibytes(memory["free_bytes"]) + " free of " +
                                          mebibytes(memory["total_bytes"]));
  if (json["gpus"].empty()) line("GPUs", "none visible");
  for (const Json& gpu : json["gpus"]) line("GPU", gpu.get<std::string>());
  for (const auto& [launcher, words] : json["start"].items())
    line("start with", words.get<std::string>());
  if (json["start"].contains("mpirun")) {
    line("", "(mpirun: more than " + json["cores"].dump() +
                 " ranks here need --oversubscribe; told to stop it gives ranks as many seconds as "
                 "that --mca says, "
                 "else 1; SIGUSR1 is passed on at once and kills nobody)");
  }
}

}  // namespace

CLI::App* add_env_command(CLI::App& app) {
  CLI::App* const command = add_torch_command(app, kEnv);
  command->footer(
      "Examples:\n"
      "  fusedbun env\n"
      "  mpirun -np 2 fusedbun env --output json");
  auto format = add_output_flag(*command);
  command->callback([format] {
    const Json json = collect();
    if (*format == OutputFormat::json) {
      std::cout << json.dump(2) << '\n';
    } else {
      print_text(json, std::cout);
    }
  });
  return command;
}

}  // namespace fusedbun::launcher
