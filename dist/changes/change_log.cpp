#include "fusedbun/dist/changes/change_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/change_log_frames.h"
#include "fusedbun/dist/changes/changes_file.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/dist/run_folder/text_file.h"

namespace fusedbun::changes {
namespace {

std::filesystem::path path_in(const std::filesystem::path& run_dir) {
  return run_dir / run_folder::kChangesName;
}

/// What the file says, with its name in every complaint.
template <class Read>
auto reading(const std::filesystem::path& path, Read read) {
  const std::string bytes = run_folder::read_text_file(path);
  try {
    return read(read_frames(bytes));
  } catch (const DataError& error) {
    throw DataError(path.string() + ": " + error.what());
  }
}

}  // namespace

ChangeLog::ChangeLog(const std::filesystem::path& run_dir) : path_(path_in(run_dir)) {
  fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  FUSEDBUN_REQUIRE(fd_ >= 0, IoError,
                   "cannot open " + path_.string() + ": " + std::strerror(errno));
  try {
    run_ = reading(path_, [&](const LogText& text) {
      durable_bytes_ = text.valid_bytes;
      return read_records(text.records);
    });
  } catch (...) {
    ::close(fd_);
    throw;
  }
  if (run_.end && !run_.end->again) run_.changes.clear();
}

ChangeLog::~ChangeLog() {
  if (remnant_) static_cast<void>(try_remove(*remnant_));
  ::close(fd_);
}

void ChangeLog::begin(const std::string& run_id) {
  struct stat file {};
  const bool is_torn =
      ::fstat(fd_, &file) != 0 || static_cast<uint64_t>(file.st_size) != durable_bytes_;
  if (is_torn) remove({.keep_bytes = durable_bytes_});
  write_frames(frame(run_record(run_id, ::getpid()), durable_bytes_), std::nullopt);
  const int folder = ::open(path_.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    ::fsync(folder);  // the file's name is on disk too
    ::close(folder);
  }
}

void ChangeLog::append(std::span<const AcceptedChange> changes,
                       std::span<const LedgerGroup> groups) {
  std::string frames;
  for (const AcceptedChange& change : changes)
    frames += frame(change_record(change, groups), durable_bytes_);
  write_frames(frames, changes.front().revision);
  first_of_last_ = changes.front().revision;
}

void ChangeLog::append_run_end(const RunEnd& end) {
  write_frames(frame(end_record(end), durable_bytes_), std::nullopt);
}

void ChangeLog::undo_last_append() {
  remove({.keep_bytes = before_last_, .void_after = first_of_last_ - 1});
}

std::pair<size_t, int> ChangeLog::try_write(const std::string& frames) {
  size_t written = 0;
  while (written < frames.size()) {
    const ssize_t count = ::write(fd_, frames.data() + written, frames.size() - written);
    if (count >= 0) {
      written += static_cast<size_t>(count);
    } else if (errno != EINTR) {
      return {written, errno};
    }
  }
  return {written, ::fdatasync(fd_) == 0 ? 0 : errno};
}

void ChangeLog::write_frames(const std::string& frames, std::optional<int64_t> first_revision) {
  if (remnant_) remove(*remnant_);
  const auto [written, error] = try_write(frames);
  if (error == 0) {
    before_last_ = durable_bytes_;
    durable_bytes_ += frames.size();
    return;
  }
  Remnant remnant{.keep_bytes = durable_bytes_};
  if (written == frames.size() && first_revision) remnant.void_after = *first_revision - 1;
  if (written > 0) remove(remnant);
  throw IoError("cannot write " + path_.string() + ": " + std::strerror(error));
}

void ChangeLog::remove(Remnant remnant) {
  if (try_remove(remnant)) {
    remnant_.reset();
    return;
  }
  const std::string reason = std::strerror(errno);
  remnant_ = remnant;
  throw IoError("cannot repair " + path_.string() + ": " + reason);
}

bool ChangeLog::try_remove(Remnant& remnant) {
  if (::ftruncate(fd_, static_cast<off_t>(remnant.keep_bytes)) == 0 && ::fdatasync(fd_) == 0) {
    durable_bytes_ = remnant.keep_bytes;
    return true;
  }
  if (!remnant.void_after) return false;
  // Once a part of this record is in the file, only cutting is left: what follows it would not be read.
  const std::string record = frame(void_record(*remnant.void_after), remnant.keep_bytes);
  const auto [written, error] = try_write(record);
  if (error != 0) {
    if (written > 0) remnant.void_after.reset();
    errno = error;
    return false;
  }
  struct stat file {};
  if (::fstat(fd_, &file) != 0) return false;
  durable_bytes_ = static_cast<uint64_t>(file.st_size);
  return true;
}

std::vector<LoggedChange> read_change_log(const std::filesystem::path& run_dir) {
  const std::filesystem::path path = path_in(run_dir);
  if (!std::filesystem::exists(path)) return {};
  return reading(path, [](const LogText& text) { return read_records(text.records).changes; });
}

std::string logged_changes_as_toml(const std::filesystem::path& run_dir) {
  const std::vector<LoggedChange> logged = read_change_log(run_dir);
  std::vector<ChangeToWrite> changes;
  for (const LoggedChange& change : logged) {
    if (change.request.cancels || change.cancelled) continue;
    changes.push_back({change.effective_step, change.request.reason, change.request.patches});
  }
  return changes_as_toml(changes);
}

}  // namespace fusedbun::changes
