#pragma once
// AppendFile: a file that grows piece by piece and is worth less than the run that writes it: a piece that cannot be written
// (a full disk) is counted and the run goes on.
//
// Invariants: 1. The file holds whole pieces: half of one is taken back. 2. The first of several lost pieces is told, and
// the first piece written after them.
//
// Thread safety: none.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace fusedbun::run_folder {

class AppendFile {
 public:
  using Notice = std::function<void(const std::string& sentence)>;

  /// Appends to `path`, which is made when it is missing. `notice` is called from append(), and calls pieces `pieces` ("lines").
  AppendFile(std::filesystem::path path, std::string_view pieces, Notice notice);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;  // owns a descriptor

  /// `piece` is in the file when this returns, or counted as lost.
  void append(std::string_view piece);
  int64_t lost() const { return lost_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  bool try_append(std::string_view piece);

  std::filesystem::path path_;
  std::string pieces_;
  Notice notice_;
  int fd_ = -1;
  int64_t lost_ = 0;
  bool losing_ = false;
};

}  // namespace fusedbun::run_folder
