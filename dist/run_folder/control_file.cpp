#include "fusedbun/dist/run_folder/control_file.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/file_names.h"

namespace fusedbun::run_folder {
namespace {

constexpr int kControlFileVersion = 1;
constexpr const char* kFormat = "fusedbun.control";

}  // namespace

void write_control_file(const std::filesystem::path& run_dir, const ControlFile& file) {
  const nlohmann::ordered_json json = {
      {"format", kFormat},
      {"version", kControlFileVersion},
      {"address", file.address},
      {"credentials", file.credentials},
      {"token", file.token},
      {"run_id", file.run_id},
      {"pid", file.pid},
      {"host", file.host},
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
            .credentials = json.at("credentials"),
            .token = json.value("token", ""),
            .run_id = json.at("run_id"),
            .pid = json.at("pid"),
            .host = json.at("host"),
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
