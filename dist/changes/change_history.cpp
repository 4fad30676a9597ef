#include "fusedbun/dist/changes/change_history.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun::changes {
namespace {

IoError failed(const std::string& what) {
  return IoError("cannot " + what + " the history of changes: " + std::strerror(errno));
}

/// All of `bytes` at `offset`, or an exception. `Transfer` is pread or pwrite.
template <class Pointer, class Transfer>
void transfer_all(Pointer data, size_t bytes, uint64_t offset, const char* what,
                  Transfer transfer) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t count = transfer(data + done, bytes - done, static_cast<off_t>(offset + done));
    if (count > 0) {
      done += static_cast<size_t>(count);
    } else if (count == 0 || errno != EINTR) {
      if (count == 0) errno = EIO;  // the file is shorter than what was written to it
      throw failed(what);
    }
  }
}

}  // namespace

ChangeHistory::ChangeHistory(const std::filesystem::path& run_dir) {
  std::string name = run_dir / ".changes-history-XXXXXX";
  fd_ = ::mkostemp(name.data(), O_CLOEXEC);
  if (fd_ < 0) throw failed("make a file in " + run_dir.string() + " for");
  ::unlink(name.c_str());
}

ChangeHistory::~ChangeHistory() {
  ::close(fd_);
}

void ChangeHistory::append(std::span<const Entry> entries) {
  std::string bytes;
  std::vector<Place> places;
  for (const Entry& entry : entries) {
    FUSEDBUN_ASSERT(!entry.text.empty(), "a change has a text");
    places.push_back({size_ + bytes.size(), entry.text.size()});
    bytes += entry.text;
  }
  transfer_all(bytes.data(), bytes.size(), size_, "write",
               [&](auto... where) { return ::pwrite(fd_, where...); });
  size_ += bytes.size();
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < entries.size(); ++i) {
    const auto index = static_cast<size_t>(entries[i].revision - 1);
    if (places_.size() <= index) places_.resize(index + 1);
    FUSEDBUN_ASSERT(places_[index].bytes == 0, "a change enters the history once");
    places_[index] = places[i];
  }
}

std::string ChangeHistory::read(int64_t revision) const {
  Place place;
  {
    const std::lock_guard lock(mutex_);
    const auto index = static_cast<size_t>(revision - 1);
    if (index < places_.size()) place = places_[index];
  }
  FUSEDBUN_ASSERT(place.bytes > 0, "the ledger forgets a change when the history has it");
  std::string bytes(place.bytes, '\0');
  transfer_all(bytes.data(), bytes.size(), place.offset, "read",
               [&](auto... where) { return ::pread(fd_, where...); });
  return bytes;
}

}  // namespace fusedbun::changes
