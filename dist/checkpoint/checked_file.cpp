#include "fusedbun/dist/checkpoint/checked_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::checkpoint {
namespace {

[[noreturn]] void fail_reading(const char* what, const std::filesystem::path& path) {
  const int error = errno;
  throw IoError(std::string("cannot ") + what + " " + path.string() + ": " +
                std::generic_category().message(error));
}

}  // namespace

run_folder::Descriptor open_folder(int in_folder, const std::filesystem::path& name,
                                   const std::filesystem::path& path) {
  // A path that a person gave may lead through links; within a checkpoint none is followed.
  const int follow = in_folder == AT_FDCWD ? 0 : O_NOFOLLOW;
  run_folder::Descriptor folder(
      ::openat(in_folder, name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | follow));
  if (folder.is_open()) return folder;
  FUSEDBUN_REQUIRE(errno != ENOENT, DataError, path.string() + " is missing");
  FUSEDBUN_REQUIRE(errno != ENOTDIR && errno != ELOOP, DataError,
                   path.string() + " is not a folder (symbolic links are not followed)");
  fail_reading("open", path);
}

CheckedFile::CheckedFile(int in_folder, const std::filesystem::path& name,
                         std::filesystem::path path)
    : path_(std::move(path)),
      // O_NONBLOCK: opening a pipe must not wait for a writer before fstat can refuse it.
      descriptor_(
          ::openat(in_folder, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)) {
  if (!descriptor_.is_open()) {
    FUSEDBUN_REQUIRE(errno != ENOENT, DataError, path_.string() + " is missing");
    FUSEDBUN_REQUIRE(errno != ELOOP, DataError,
                     path_.string() + " is a symbolic link, which is not followed");
    // What open() says of a socket.
    FUSEDBUN_REQUIRE(errno != ENXIO, DataError, path_.string() + " is not a regular file");
    fail_reading("open", path_);
  }
  struct stat facts {};
  if (::fstat(descriptor_.value(), &facts) != 0) fail_reading("stat", path_);
  FUSEDBUN_REQUIRE(S_ISREG(facts.st_mode), DataError, path_.string() + " is not a regular file");
  bytes_ = facts.st_size;
}

void CheckedFile::read(int64_t begin, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t count = ::pread(descriptor_.value(), out.data(), out.size(), begin);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_reading("read", path_);
    FUSEDBUN_REQUIRE(count > 0, DataError,
                     path_.string() + " ends at its byte " + std::to_string(begin) +
                         ": it was cut while it was read");
    begin += count;
    out = out.subspan(static_cast<size_t>(count));
  }
}

}  // namespace fusedbun::checkpoint
