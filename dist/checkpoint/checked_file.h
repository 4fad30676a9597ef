#pragma once
// CheckedFile: a file of a checkpoint, open for reading. Read by position and never mapped, so that a file that is cut while it
// is read, or a disk that fails, is an error and no signal.
//
// Thread safety: const calls from any thread.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "fusedbun/dist/run_folder/descriptor.h"

namespace fusedbun::checkpoint {

/// Opens a folder to open what is in it. Throws DataError if there is no such folder or it is a symbolic link, or IoError.
run_folder::Descriptor open_folder(int in_folder, const std::filesystem::path& name,
                                   const std::filesystem::path& path);

class CheckedFile {
 public:
  /// Opens the file `name` in an open folder; `path` is for messages. Throws DataError if it is missing or no regular file
  /// (symbolic links included), IoError if it cannot be opened.
  CheckedFile(int in_folder, const std::filesystem::path& name, std::filesystem::path path);

  const std::filesystem::path& path() const { return path_; }
  int64_t bytes() const { return bytes_; }  ///< when it was opened
  /// Throws DataError if the file ends before, IoError if it cannot be read.
  void read(int64_t begin, std::span<std::byte> out) const;

 private:
  std::filesystem::path path_;
  run_folder::Descriptor descriptor_;
  int64_t bytes_ = 0;
};

}  // namespace fusedbun::checkpoint
