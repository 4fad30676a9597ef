#pragma once
// LineFile: a file that grows line by line and is worth less than the run that writes it: a line that cannot be written
// (a full disk) is counted and the run goes on.
//
// Invariants: 1. The file holds whole lines: half of one is taken back. 2. The first of several lost lines is told, and
// the first line written after them.
//
// Thread safety: none.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace fusedbun::run_folder {

class LineFile {
 public:
  using Notice = std::function<void(const std::string& sentence)>;

  /// Appends to `path`, which is made when it is missing. `notice` is called from append().
  LineFile(std::filesystem::path path, Notice notice);
  ~LineFile();
  LineFile(const LineFile&) = delete;  // owns a descriptor

  /// `line` comes without its end. It is in the file when this returns, or counted as lost.
  void append(std::string_view line);
  int64_t lost() const { return lost_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  bool try_append(const std::string& line);

  std::filesystem::path path_;
  Notice notice_;
  int fd_ = -1;
  int64_t lost_ = 0;
  bool losing_ = false;
};

}  // namespace fusedbun::run_folder
