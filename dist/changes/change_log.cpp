#include "fusedbun/dist/changes/change_log.h"

#include <fcntl.h>
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

ChangeLog::ChangeLog(const std::filesystem::path& run_dir, const std::string& run_id)
    : path_(path_in(run_dir)) {
  fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  FUSEDBUN_REQUIRE(fd_ >= 0, IoError,
                   "cannot open " + path_.string() + ": " + std::strerror(errno));
  try {
    LoggedRun run = reading(path_, [&](const LogText& text) {
      durable_bytes_ = text.valid_bytes;
      return read_records(text.records);
    });
    if (!run.ended_for_good) changes_ = std::move(run.changes);
    truncate(durable_bytes_);  // cuts off a torn end
    write_frames(frame(run_record(run_id, ::getpid()), durable_bytes_));
    const int folder = ::open(run_dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) {
      ::fsync(folder);  // the file's name is on disk too
      ::close(folder);
    }
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

ChangeLog::~ChangeLog() {
  ::close(fd_);
}

void ChangeLog::append(std::span<const AcceptedChange> changes,
                       std::span<const LedgerGroup> groups) {
  std::string frames;
  for (const AcceptedChange& change : changes)
    frames += frame(change_record(change, groups), durable_bytes_);
  write_frames(frames);
}

void ChangeLog::append_end(int64_t step, std::string_view state, bool again,
                           std::span<const int64_t> rejected) {
  write_frames(frame(end_record(step, state, again, rejected), durable_bytes_));
}

void ChangeLog::take_back() {
  truncate(before_last_);
  durable_bytes_ = before_last_;
}

void ChangeLog::write_frames(const std::string& frames) {
  FUSEDBUN_REQUIRE(!broken_, IoError,
                   path_.string() + " could not be mended after a failed write: " +
                       "it takes nothing more in this attempt of the run");
  size_t written = 0;
  int error = 0;
  while (error == 0 && written < frames.size()) {
    const ssize_t count = ::write(fd_, frames.data() + written, frames.size() - written);
    if (count >= 0) {
      written += static_cast<size_t>(count);
    } else if (errno != EINTR) {
      error = errno;
    }
  }
  if (error == 0 && ::fdatasync(fd_) != 0) error = errno;
  if (error != 0) {
    truncate(durable_bytes_);
    throw IoError("cannot write " + path_.string() + ": " + std::strerror(error));
  }
  before_last_ = durable_bytes_;
  durable_bytes_ += frames.size();
}

void ChangeLog::truncate(uint64_t bytes) {
  if (::ftruncate(fd_, static_cast<off_t>(bytes)) == 0 && ::fdatasync(fd_) == 0) return;
  broken_ = true;
  throw IoError("cannot mend " + path_.string() + ": " + std::strerror(errno));
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
