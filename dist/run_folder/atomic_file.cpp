#include "fusedbun/dist/run_folder/atomic_file.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <random>
#include <system_error>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::run_folder {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSuffix = ".tmp";
constexpr size_t kDigits = 8;
constexpr int kNamesTriedMax = 100;

/// ".0123abcd.tmp"
std::string unique_ending() {
  char text[16];
  std::snprintf(text, sizeof text, ".%08x", std::random_device{}());
  return text + std::string(kSuffix);
}

bool has_unique_ending(std::string_view name) {
  if (name.size() <= kSuffix.size() + kDigits + 1 || !name.ends_with(kSuffix)) return false;
  name.remove_suffix(kSuffix.size());
  const std::string_view digits = name.substr(name.size() - kDigits);
  return name[name.size() - kDigits - 1] == '.' &&
         digits.find_first_not_of("0123456789abcdef") == digits.npos;
}

fs::path folder_of(const fs::path& target) {
  return target.has_parent_path() ? target.parent_path() : fs::path(".");
}

/// The file system has no such operation.
bool is_unknown_here(int error) {
  return error == ENOSYS || error == EOPNOTSUPP;
}

[[noreturn]] void fail_at(const char* what, const fs::path& path) {
  const int error = errno;
  throw IoError(std::string("cannot ") + what + " " + path.string() + ": " +
                std::generic_category().message(error));
}

/// Gives `from` the name `to` unless that is taken (then errno is EEXIST).
bool rename_unless_taken(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return true;
  if (errno != EINVAL && !is_unknown_here(errno)) return false;
  // A file system without that flag, as NFS: a second name leaves what is there as well.
  if (::link(from.c_str(), to.c_str()) == 0) {
    ::unlink(from.c_str());
    return true;
  }
  if (errno == EEXIST) return false;
  // Nor second names, as exFAT and some FUSE: two writers at once may then both be the first.
  std::error_code unknown;
  if (fs::exists(to, unknown)) {
    errno = EEXIST;
    return false;
  }
  return std::rename(from.c_str(), to.c_str()) == 0;
}

}  // namespace

AtomicFile::AtomicFile(fs::path target, mode_t mode) : target_(std::move(target)) {
  for (int tried = 0; descriptor_ < 0 && tried < kNamesTriedMax; ++tried) {
    temporary_ = target_.string() + unique_ending();
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (descriptor_ < 0 && errno != EEXIST) break;
  }
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

void AtomicFile::write_at(int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write");
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += written;
  }
}

void AtomicFile::finish_writing() {
  if (::fsync(descriptor_) != 0) fail("fsync");
  if (::close(std::exchange(descriptor_, -1)) != 0) fail("close");
}

void AtomicFile::commit() {
  finish_writing();
  if (std::rename(temporary_.c_str(), target_.c_str()) != 0) fail("rename");
  temporary_.clear();
  sync_folder(folder_of(target_));
}

bool AtomicFile::commit_new() {
  finish_writing();
  if (!rename_unless_taken(temporary_, target_)) {
    if (errno == EEXIST) return false;
    fail("rename");
  }
  temporary_.clear();
  sync_folder(folder_of(target_));
  return true;
}

void AtomicFile::fail(const char* what) const {
  fail_at(what, target_);
}

void sync_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail_at("open", folder);
  // Some file systems sync no folders: they have an order of their own.
  const bool synced = ::fsync(descriptor) == 0 || errno == EINVAL || is_unknown_here(errno);
  const int error = errno;
  ::close(descriptor);
  errno = error;
  if (!synced) fail_at("fsync", folder);
}

void require_writable(const fs::path& target) {
  FUSEDBUN_REQUIRE(!fs::is_directory(target), IoError,
                   "cannot write " + target.string() + ": it is a folder");
  AtomicFile probe(target);
}

void require_space(const fs::path& target, int64_t bytes) {
  struct statvfs space {};
  // A file system that does not say how large it is gets the benefit of the doubt.
  if (::statvfs(folder_of(target).c_str(), &space) != 0 || space.f_blocks == 0) return;
  const auto free = static_cast<int64_t>(space.f_bavail) * static_cast<int64_t>(space.f_frsize);
  FUSEDBUN_REQUIRE(free >= bytes, IoError,
                   "cannot write " + target.string() + ": it will take " + std::to_string(bytes) +
                       " bytes and only " + std::to_string(free) +
                       " are free there: make room, or choose another place");
}

void remove_leftovers(const fs::path& folder) noexcept {
  std::error_code error;
  for (fs::directory_iterator file(folder, error), end; !error && file != end;
       file.increment(error)) {
    std::error_code ignored;
    if (has_unique_ending(file->path().filename().native())) fs::remove(file->path(), ignored);
  }
}

}  // namespace fusedbun::run_folder
