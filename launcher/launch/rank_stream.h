#pragma once
// RankStream: reads one output stream of one rank, writes it to the rank's log file as it comes, and to a console
// line by line with the rank's prefix; a log record goes without it, since it names its rank.
//
// Thread safety: one thread at a time.
#include <filesystem>
#include <string>

#include "fusedbun/launcher/launch/console.h"

namespace fusedbun::launch {

class RankStream {
 public:
  struct Options {
    int descriptor = -1;                  ///< read end of a pipe, non-blocking; owned from here on
    Console* console = nullptr;           ///< null: the log file alone
    std::string prefix = {};              ///< "[rank 1] "
    std::filesystem::path log_file = {};  ///< empty: none
    std::string* last_line = nullptr;     ///< kept up to date: the last line that is not blank
  };
  /// Throws IoError when the log file cannot be made.
  explicit RankStream(Options options);
  ~RankStream();
  RankStream(const RankStream&) = delete;  // owns descriptors
  RankStream& operator=(const RankStream&) = delete;

  /// Reads what is there. Returns false once the stream has ended.
  bool read_some();
  /// Passes on an unfinished last line.
  void finish();

  int descriptor() const { return options_.descriptor; }
  bool may_read() const { return options_.console == nullptr || !options_.console->is_full(); }

 private:
  void pass_on(std::string_view text);
  void end_line();
  void write_log(std::string_view text);

  static constexpr size_t kLineBytesMax = 64 << 10;
  Options options_;
  int log_ = -1;
  std::string line_;  ///< begun, not ended
};

}  // namespace fusedbun::launch
