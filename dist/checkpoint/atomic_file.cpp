#include "fusedbun/dist/checkpoint/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::checkpoint {

AtomicFile::AtomicFile(std::filesystem::path target)
    : target_(std::move(target)), temporary_(target_.string() + ".tmp") {
  descriptor_ =
      ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (descriptor_ < 0) fail("create");
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write");
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) fail("fsync");
  if (::close(std::exchange(descriptor_, -1)) != 0) fail("close");
  if (std::rename(temporary_.c_str(), target_.c_str()) != 0) fail("rename");
  temporary_.clear();
  sync_folder();
}

void AtomicFile::sync_folder() const {
  const std::filesystem::path folder = target_.has_parent_path() ? target_.parent_path() : ".";
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail("open the folder of");
  const bool synced = ::fsync(descriptor) == 0;
  const int error = errno;
  ::close(descriptor);
  errno = error;
  if (!synced) fail("fsync the folder of");
}

void AtomicFile::fail(const char* what) const {
  const int error = errno;
  throw IoError(std::string("cannot ") + what + " " + target_.string() + ": " +
                std::generic_category().message(error));
}

void require_writable(const std::filesystem::path& target) {
  FUSEDBUN_REQUIRE(!std::filesystem::is_directory(target), IoError,
                   "cannot write " + target.string() + ": it is a folder");
  AtomicFile probe(target);
}

}  // namespace fusedbun::checkpoint
