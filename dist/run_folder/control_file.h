#pragma once
// control.json in the run folder: where a job's control plane listens, and whose it is. Written whole or not at all (temporary
// file, rename), mode 0600, removed at a clean end; after a crash it stays and names a pid that is gone.
//
// Thread safety: functions without state.
#include <cstdint>
#include <filesystem>
#include <string>

namespace fusedbun::run_folder {

struct ControlFile {
  std::string address;           ///< "unix:/runs/a/control.sock"
  std::string credentials = {};  ///< the owner's folder for client_credentials(); empty: plaintext
  std::string token = {};  ///< that a client shows over loopback TCP; empty: none is asked for
  std::string run_id;
  int64_t pid = 0;
  std::string host;
  std::string start_time;  ///< RFC 3339, UTC
};

/// Throws IoError.
void write_control_file(const std::filesystem::path& run_dir, const ControlFile& file);
/// Throws UnavailableError (69) if there is none: no job runs there; DataError (65) if it is not one of ours.
ControlFile read_control_file(const std::filesystem::path& run_dir);
void remove_control_file(const std::filesystem::path& run_dir) noexcept;

}  // namespace fusedbun::run_folder
