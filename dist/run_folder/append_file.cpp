#include "fusedbun/dist/run_folder/append_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace fusedbun::run_folder {

AppendFile::AppendFile(std::filesystem::path path, std::string_view pieces, Notice notice)
    : path_(std::move(path)), pieces_(pieces), notice_(std::move(notice)) {}

AppendFile::~AppendFile() {
  if (fd_ >= 0) ::close(fd_);
}

void AppendFile::append(std::string_view piece) {
  if (try_append(piece)) {
    if (std::exchange(losing_, false)) {
      notice_(path_.string() + " is written again; " + pieces_ +
              " lost so far: " + std::to_string(lost_));
    }
    return;
  }
  const int error = errno;
  ++lost_;
  if (!std::exchange(losing_, true)) {
    notice_("cannot write " + path_.string() + ": " + std::strerror(error) +
            "; the run goes on, and " + pieces_ + " that are lost are counted");
  }
}

bool AppendFile::try_append(std::string_view piece) {
  if (fd_ < 0) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd_ < 0) return false;
  }
  struct stat before {};
  const bool known = ::fstat(fd_, &before) == 0;
  ssize_t written = -1;
  do {
    written = ::write(fd_, piece.data(), piece.size());
  } while (written < 0 && errno == EINTR);
  if (written == static_cast<ssize_t>(piece.size())) return true;
  if (written >= 0) {
    // The disk was full in the middle of the piece.
    [[maybe_unused]] const int taken_back = known ? ::ftruncate(fd_, before.st_size) : -1;
    errno = ENOSPC;
  }
  return false;
}

}  // namespace fusedbun::run_folder
