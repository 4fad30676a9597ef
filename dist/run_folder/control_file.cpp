#include "fusedbun/dist/run_folder/control_file.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/file_names.h"

namespace fusedbun::run_folder {
namespace {

constexpr int kControlFileVersion = 2;
constexpr const char* kFormat = "fusedbun.control";

}  // namespace

void write_control_file(const std::filesystem::path& run_dir, const ControlFile& file) {
  const ProcessPlace& place = file.place;
  const nlohmann::ordered_json json = {
      {"format", kFormat},
      {"version", kControlFileVersion},
      {"address", file.address},
      {"socket", file.socket},
      {"addresses", file.addresses},
      {"token", file.token},
      {"credentials", file.credentials},
      {"tls_name", file.tls_name},
      {"run_id", file.run_id},
      {"pid", place.pid},
      {"host", place.host},
      {"boot_id", place.boot_id},
      {"pid_namespace", place.pid_namespace},
      {"network_namespace", place.network_namespace},
      {"start_time", file.start_time},
  };
  AtomicFile out(run_dir / kControlName, 0600);
  out.write(json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  out.commit();
}

ControlFile read_control_file(const std::filesystem::path& run_dir) {
  const std::filesystem::path path = run_dir / kControlName;
  std::ifstream stream(path);
  FUSEDBUN_REQUIRE(stream.good(), UnavailableError,
                   "no job with a control plane runs in " + run_dir.string() +
                       ": there is no readable " + kControlName + " in it");
  try {
    const nlohmann::json json = nlohmann::json::parse(stream);
    FUSEDBUN_REQUIRE(json.at("format") == kFormat && json.at("version") == kControlFileVersion,
                     DataError, path.string() + " has a format that this version does not know");
    return {.address = json.at("address"),
            .socket = json.at("socket"),
            .addresses = json.at("addresses"),
            .token = json.at("token"),
            .credentials = json.at("credentials"),
            .tls_name = json.at("tls_name"),
            .run_id = json.at("run_id"),
            .place = {.host = json.at("host"),
                      .pid = json.at("pid"),
                      .boot_id = json.at("boot_id"),
                      .pid_namespace = json.at("pid_namespace"),
                      .network_namespace = json.at("network_namespace")},
            .start_time = json.at("start_time")};
  } catch (const nlohmann::json::exception& error) {
    throw DataError(path.string() + " is damaged: " + error.what());
  }
}

void remove_control_file(const std::filesystem::path& run_dir) noexcept {
  std::error_code ignored;  // it may be gone already, with the whole folder
  std::filesystem::remove(run_dir / kControlName, ignored);
}

}  // namespace fusedbun::run_folder
