#pragma once
// Folders that nobody else may write: what lies in them (the socket, control.json) is trusted.
//
// Thread safety: functions without state.
#include <filesystem>
#include <string>

namespace fusedbun::run_folder {

/// Makes `folder`, its parents with the user's umask and itself with mode 0700, unless it is there. Throws PermissionError (77)
/// if it is there and every user may write it (a shared /tmp-like folder with the sticky bit too); IoError (74). Returns a
/// warning for the user if another user or a shared group can write to it, else an empty string.
std::string make_private_folder(const std::filesystem::path& folder);

/// A folder of this user alone for sockets whose path cannot be used elsewhere: $XDG_RUNTIME_DIR/fusedbun if that is this
/// user's, else /tmp/fusedbun-<uid>. Throws PermissionError if somebody else has made it; IoError.
std::filesystem::path runtime_folder();

}  // namespace fusedbun::run_folder
