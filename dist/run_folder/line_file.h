#pragma once
// LineFile: an AppendFile of lines.
//
// Thread safety: none.
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "fusedbun/dist/run_folder/append_file.h"

namespace fusedbun::run_folder {

class LineFile {
 public:
  using Notice = AppendFile::Notice;

  LineFile(std::filesystem::path path, Notice notice)
      : file_(std::move(path), "lines", std::move(notice)) {}

  /// `line` comes without its end. It is in the file when this returns, or counted as lost.
  void append(std::string_view line) { file_.append(std::string(line) + "\n"); }
  int64_t lost() const { return file_.lost(); }
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  AppendFile file_;
};

}  // namespace fusedbun::run_folder
