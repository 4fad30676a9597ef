#include "fusedbun/dist/run_folder/private_folder.h"

#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun::run_folder {
namespace {

constexpr size_t kRuntimeRootBytesMax = 64;  // leaves room for /fusedbun/<16 digits>.sock in 107

struct stat make_and_look(const std::filesystem::path& given) {
  std::filesystem::path folder = std::filesystem::absolute(given).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // "runs/a/"
  std::error_code error;
  std::filesystem::create_directories(folder.parent_path(), error);  // mkdir says what went wrong
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
    throw IoError("cannot make the folder " + folder.string() + ": " + std::strerror(errno));
  }
  struct stat found {};
  FUSEDBUN_REQUIRE(::stat(folder.c_str(), &found) == 0, IoError,
                   "cannot look at " + folder.string() + ": " + std::strerror(errno));
  FUSEDBUN_REQUIRE(S_ISDIR(found.st_mode), IoError, folder.string() + " is not a folder");
  return found;
}

std::string name_of_user(uid_t user) {
  const struct passwd* const entry = ::getpwuid(user);
  return entry != nullptr ? entry->pw_name : std::to_string(user);
}

// "user bob", "the members of group staff", or empty. Root does not count. Nor does a group with the user's own name: Debian and
// Red Hat give each user a private group, and often umask 002.
std::string others_who_may_write(const struct stat& folder) {
  if (folder.st_uid != ::geteuid() && folder.st_uid != 0)
    return "user " + name_of_user(folder.st_uid);
  if ((folder.st_mode & S_IWGRP) == 0 || folder.st_gid == 0) return {};
  const struct group* const entry = ::getgrgid(folder.st_gid);
  const std::string group = entry != nullptr ? entry->gr_name : std::to_string(folder.st_gid);
  return group == name_of_user(folder.st_uid) ? "" : "the members of group " + group;
}

bool is_of_this_user_alone(const std::filesystem::path& folder) {
  const struct stat found = make_and_look(folder);
  return found.st_uid == ::geteuid() && (found.st_mode & (S_IRWXG | S_IRWXO)) == 0;
}

}  // namespace

std::string make_private_folder(const std::filesystem::path& folder) {
  const struct stat found = make_and_look(folder);
  FUSEDBUN_REQUIRE(
      (found.st_mode & S_IWOTH) == 0, PermissionError,
      "every user of this machine may write " + folder.string() +
          ", so the control plane cannot trust it: take a folder of your own, or chmod o-w");
  const std::string others = others_who_may_write(found);
  if (others.empty()) return {};
  return others + " may change what lies in " + folder.string() +
         ", its socket and tokens included: take a folder of your own if you do not trust them";
}

std::filesystem::path runtime_folder() {
  const char* given = std::getenv("XDG_RUNTIME_DIR");
  std::error_code error;
  const bool usable = given != nullptr && given[0] == '/' &&
                      std::strlen(given) <= kRuntimeRootBytesMax &&
                      std::filesystem::is_directory(given, error);
  if (usable) {
    const std::filesystem::path folder = std::filesystem::path(given) / "fusedbun";
    try {
      if (is_of_this_user_alone(folder)) return folder;
    } catch (const IoError&) {
      // sudo and su may leave the variable as it was for another user.
    }
  }
  const std::filesystem::path folder = "/tmp/fusedbun-" + std::to_string(::geteuid());
  FUSEDBUN_REQUIRE(
      is_of_this_user_alone(folder), PermissionError,
      folder.string() +
          " is not a folder of this user alone (mode 0700): remove it, or set XDG_RUNTIME_DIR");
  return folder;
}

}  // namespace fusedbun::run_folder
