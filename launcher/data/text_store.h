#pragma once
// TextStore: the bytes of a text one after the other: in memory, or, of large files, where they are. The system keeps a file's
// pages once for all ranks of a host, so a corpus of ten gigabytes takes ten, not ten a rank.
//
// A file stays open, so it may be renamed or removed while the run goes on. After a write in place later reads see the new
// bytes. The part that a truncated file has lost reads as newlines and is reported once: a mapping would end the run (SIGBUS).
//
// Thread safety: append() by one thread; the rest is read-only.
#include <atomic>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/run_folder/descriptor.h"

namespace fusedbun::data {

class TextStore {
 public:
  using Notice = std::function<void(const std::string& sentence)>;
  explicit TextStore(Notice notice);
  ~TextStore();

  /// Adds bytes, which are kept in memory.
  void append(std::string_view bytes);
  /// Adds what is in `file` and keeps it open. Reads all of it once, for the digest. Throws DataError naming `path`.
  void append_file(const std::filesystem::path& path, run_folder::Descriptor file);

  size_t size() const { return size_; }
  char last() const { return last_; }  ///< of a text that is not empty
  /// XXH3 of all bytes, wherever they are.
  uint64_t digest() const;
  /// Fills `bytes` with those from `begin` on; all of them are within the text.
  void read(size_t begin, std::span<char> bytes) const;

 private:
  struct File {
    std::filesystem::path path;
    run_folder::Descriptor descriptor;
  };
  /// From its beginning to that of the next.
  struct Piece {
    size_t begin;               ///< in the text
    const File* file;           ///< null: in memory
    const std::string* memory;  ///< null: in the file
  };
  class Digest;

  void added(std::string_view bytes);
  void read_file(const File& file, size_t at, std::span<char> bytes) const;

  Notice notice_;
  std::deque<std::string> memory_;  // in parts, so that growing copies nothing
  std::deque<File> files_;          // pieces point into both
  std::vector<Piece> pieces_;
  size_t size_ = 0;
  char last_ = 0;
  std::unique_ptr<Digest> digest_;
  mutable std::atomic<bool> told_ = false;
};

}  // namespace fusedbun::data
