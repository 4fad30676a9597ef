#include "fusedbun/dist/run_folder/run_folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/dist/run_folder/private_folder.h"

namespace fusedbun::run_folder {
namespace {

/// "pid 4711 on host alpha", as the holder wrote it; it may not have got that far.
std::string holder_of(int fd) {
  std::array<char, 256> text{};
  const ssize_t bytes = ::pread(fd, text.data(), text.size(), 0);
  if (bytes <= 0) return "another process";
  const std::string line(text.data(), static_cast<size_t>(bytes));
  return line.substr(0, line.find('\n'));
}

// Lustre without -o flock, some FUSE; NFS whose lock service does not answer.
bool has_no_locks(int error) {
  return error == ENOSYS || error == EOPNOTSUPP || error == ENOLCK;
}

void write_holder(int fd) {
  const std::string line = "pid " + std::to_string(::getpid()) + " on host " + host_name() + "\n";
  // Only for people: the lock holds without it, so a full disk is no reason to refuse the run here.
  if (::ftruncate(fd, 0) == 0) {
    [[maybe_unused]] const ssize_t written = ::pwrite(fd, line.data(), line.size(), 0);
  }
}

}  // namespace

RunFolderLock::RunFolderLock(const std::filesystem::path& run_dir) {
  if (const std::string others = make_private_folder(run_dir); !others.empty())
    warnings_.push_back(others);
  const std::filesystem::path file = run_dir / kLockName;
  fd_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  FUSEDBUN_REQUIRE(fd_ >= 0, IoError, "cannot open " + file.string() + ": " + std::strerror(errno));
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    if (!has_no_locks(error)) {
      const std::string holder = holder_of(fd_);
      ::close(fd_);
      FUSEDBUN_REQUIRE(error == EWOULDBLOCK, IoError,
                       "cannot lock " + file.string() + ": " + std::strerror(error));
      throw UnavailableError("the run folder " + run_dir.string() + " is in use by " + holder +
                             ": end that job, or give this one another run folder");
    }
    warnings_.push_back(
        "the file system of " + run_dir.string() + " has no locks (" + std::strerror(error) +
        "), so a second job in it would not be noticed: give each job a run folder of its own");
  }
  write_holder(fd_);
  remove_leftovers(run_dir);
}

RunFolderLock::~RunFolderLock() {
  ::close(fd_);
}

}  // namespace fusedbun::run_folder
