#pragma once
// AtomicFile: a file that appears whole or not at all, also after a power cut: written under a
// temporary name in the same folder, fsynced, renamed over the target, the folder fsynced. (fsync
// and rename alone may leave only the temporary name.)
//
// Invariants: 1. Until commit() returns, the target is what it was. 2. Without commit() the
// temporary file is removed.
// 3. After any error the object can only be destroyed; a file whose fsync failed is never used
// again.
//
// Thread safety: none. Two writers of one target at the same time are the caller's to prevent.
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

namespace fusedbun::checkpoint {

class AtomicFile {
 public:
  /// Creates `target` + ".tmp". Throws IoError, with path and reason, here and below.
  explicit AtomicFile(std::filesystem::path target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;  // owns a descriptor and a name

  void write(std::span<const std::byte> bytes);
  void commit();

 private:
  [[noreturn]] void fail(const char* what) const;
  void sync_folder() const;

  std::filesystem::path target_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

/// Throws IoError now rather than after hours of work, if `target` could not be written: its folder
/// is missing or closed to us, or `target` is a folder. Leaves nothing behind.
void require_writable(const std::filesystem::path& target);

}  // namespace fusedbun::checkpoint
