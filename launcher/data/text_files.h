#pragma once
// TextFiles: files and folders of text as one stream of bytes.
//
// Invariants: 1. The text is the same on every rank: sources in the order given, folders walked recursively in order of
// path, symbolic links and files that are not text (a NUL byte in their first 8 KiB) left out, each file followed by a
// newline if it lacks one. 2. Each file is a document.
//
// Thread safety: read-only after construction.
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/launcher/data/text_store.h"

namespace fusedbun::data {

/// Where Debian keeps the texts of common licences: English that every installation has.
inline constexpr std::string_view kDefaultTextFolder = "/usr/share/common-licenses";

/// "a, b, c".
std::string joined(const std::vector<std::filesystem::path>& paths);

class TextFiles {
 public:
  /// Files of `large_from` bytes and more are read where they are when they are needed, smaller ones kept in memory. `notice` hears of a
  /// file that is lost while the run goes on. Throws DataError naming the path that is missing, unreadable or empty, or no text.
  TextFiles(const std::vector<std::filesystem::path>& sources, int64_t large_from,
            TextStore::Notice notice);

  size_t bytes() const { return store_.size(); }
  void read(size_t begin, std::span<char> bytes) const { store_.read(begin, bytes); }
  /// Of each file its first byte, and last the number of bytes; files without a byte are not among them.
  const std::vector<uint64_t>& begins() const { return begins_; }
  int64_t files() const { return files_; }
  /// What lies in the folders and is not read, by kind: "symbolic links", "binary files", "compressed by gzip".
  struct LeftOut {
    int64_t count = 0;
    std::filesystem::path first;  ///< in order of path
  };
  const std::map<std::string_view, LeftOut>& left_out() const { return left_out_; }
  /// XXH3 of the text: equal on ranks that read the same.
  uint64_t digest() const { return store_.digest(); }

 private:
  void read(const std::filesystem::path& source);
  void append(const std::filesystem::path& file, bool must_be_text);
  void leave_out(const std::filesystem::path& path, std::string_view why);

  int64_t large_from_;
  TextStore store_;
  std::vector<uint64_t> begins_ = {0};
  int64_t files_ = 0;
  std::map<std::string_view, LeftOut> left_out_;  // keys are literals
};

}  // namespace fusedbun::data
