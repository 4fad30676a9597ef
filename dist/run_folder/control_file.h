#pragma once
// control.json in the run folder: where a job's control plane listens, and whose it is, for readers on this host, in other
// containers of it and on other hosts. Written whole or not at all (temporary file, rename), mode 0600 because of the token,
// removed at a clean end; after a crash it stays.
//
// Thread safety: functions without state.
#include <filesystem>
#include <string>
#include <vector>

#include "fusedbun/dist/run_folder/process_place.h"

namespace fusedbun::run_folder {

struct ControlFile {
  /// As a process beside the job reaches it: "unix:/runs/a/control.sock", "127.0.0.1:41373".
  std::string address = {};
  /// The socket's name in the run folder, wherever that is mounted; empty: it is elsewhere, or TCP.
  std::string socket = {};
  /// TCP: every address under which it may be reached, those of loopback first; never 0.0.0.0.
  std::vector<std::string> addresses = {};
  /// What clients show on loopback, "authorization: Bearer TOKEN"; empty: nothing.
  std::string token = {};
  std::string credentials = {};  ///< the owner's folder for client_credentials(); empty: plaintext
  std::string tls_name = {};     ///< a name that the server's certificate has; empty: the address
  std::string run_id = {};
  ProcessPlace place = {};
  std::string start_time = {};  ///< RFC 3339, UTC
};

/// Throws IoError.
void write_control_file(const std::filesystem::path& run_dir, const ControlFile& file);
/// Throws UnavailableError (69) if there is none: no job runs there; DataError (65) if it is not one of ours.
ControlFile read_control_file(const std::filesystem::path& run_dir);
void remove_control_file(const std::filesystem::path& run_dir) noexcept;

}  // namespace fusedbun::run_folder
