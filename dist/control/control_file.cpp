#include "fusedbun/dist/control/control_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"

namespace fusedbun::control {
namespace {

constexpr int kControlFileVersion = 1;
constexpr const char* kFormat = "fusedbun.control";
constexpr const char* kName = "control.json";

void write_private_file(const std::filesystem::path& path, const std::string& text) {
  ::unlink(path.c_str());  // left by a crash in between
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  FUSEDBUN_REQUIRE(fd >= 0, IoError, "cannot write " + path.string() + ": " + std::strerror(errno));
  const ssize_t written = ::write(fd, text.data(), text.size());
  const bool whole = written == static_cast<ssize_t>(text.size()) && ::fsync(fd) == 0;
  const int error = errno;
  ::close(fd);
  FUSEDBUN_REQUIRE(whole, IoError, "cannot write " + path.string() + ": " + std::strerror(error));
}

}  // namespace

void write_control_file(const std::filesystem::path& run_dir, const ControlFile& file) {
  const nlohmann::ordered_json json = {
      {"format", kFormat},       {"version", kControlFileVersion},
      {"address", file.address}, {"credentials", file.credentials},
      {"run_id", file.run_id},   {"pid", file.pid},
      {"host", file.host},       {"start_time", file.start_time},
  };
  const std::filesystem::path temporary = run_dir / (std::string(kName) + ".tmp");
  write_private_file(temporary,
                     json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  std::error_code error;
  std::filesystem::rename(temporary, run_dir / kName, error);
  FUSEDBUN_REQUIRE(!error, IoError,
                   "cannot write " + (run_dir / kName).string() + ": " + error.message());
}

ControlFile read_control_file(const std::filesystem::path& run_dir) {
  const std::filesystem::path path = run_dir / kName;
  std::ifstream stream(path);
  FUSEDBUN_REQUIRE(stream.good(), UnavailableError,
                   "no job with a control plane runs in " + run_dir.string() +
                       ": there is no readable " + kName + " in it");
  try {
    const nlohmann::json json = nlohmann::json::parse(stream);
    FUSEDBUN_REQUIRE(json.at("format") == kFormat && json.at("version") == kControlFileVersion,
                     DataError, path.string() + " has a format that this version does not know");
    return {.address = json.at("address"),
            .credentials = json.at("credentials"),
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
  std::filesystem::remove(run_dir / kName, ignored);
}

}  // namespace fusedbun::control
