#pragma once
// AtomicFile: a file that appears whole or not at all, also after a power cut: written under a
// temporary name in the same folder, fsynced, renamed over the target, the folder fsynced. (fsync
// and rename alone may leave only the temporary name.) The one way in which a run writes a file as
// a whole.
//
// Invariants: 1. Until commit() returns, the target is what it was. 2. Without commit() the
// temporary file is removed; only a process that is killed leaves one (remove_leftovers).
// 3. Temporary names are unique, so writers of one target never touch each other's bytes: the
// target is what the last of them has committed. 4. After any error the object can only be
// destroyed; a file whose fsync failed is never used again.
//
// Thread safety: none for one object; any number of objects and processes may write one target.
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace fusedbun::run_folder {

class AtomicFile {
 public:
  /// Creates `target` + ".<8 hex digits>.tmp" with `mode` less the umask. Throws IoError, with path
  /// and reason, here and below.
  explicit AtomicFile(std::filesystem::path target, mode_t mode = 0666);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;  // owns a descriptor and a name

  void write(std::span<const std::byte> bytes);
  /// Over bytes that were written before, as a header that says how many follow.
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  /// Over bytes that were written before, as a header that says how many follow.
  void write_at(int64_t offset, std::span<const std::byte> bytes);
  /// Where the bytes are until commit().
  const std::filesystem::path& temporary() const { return temporary_; }
  /// Replaces the target.
  void commit();
  /// commit() if there is no target yet; otherwise leaves it and returns false. Of several writers
  /// one gets true.
  bool commit_new();

 private:
  void finish_writing();
  [[noreturn]] void fail(const char* what) const;

  std::filesystem::path target_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

/// Makes the names in `folder` durable: what was created, renamed or removed there before. Throws IoError.
void sync_folder(const std::filesystem::path& folder);

/// Throws IoError now rather than after hours of work, if `target` could not be written: its folder
/// is missing or closed to us, or `target` is a folder. Leaves nothing behind.
void require_writable(const std::filesystem::path& target);

/// Throws IoError if the file system that will hold `target` has fewer than `bytes` free.
void require_space(const std::filesystem::path& target, int64_t bytes);

/// Removes the temporary files that killed writers left in `folder`. Only for who holds the folder's lock.
void remove_leftovers(const std::filesystem::path& folder) noexcept;

}  // namespace fusedbun::run_folder
