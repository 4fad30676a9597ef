#pragma once
// Console: the launcher's standard output or error, shared by all ranks' lines. It never blocks the launcher, so that
// signals are served even when a pager downstream has stopped reading: text waits here, and while much waits, `is_full`
// tells the ranks' streams to hold back.
//
// Invariant: lines of different ranks are never mixed within a line.
//
// Thread safety: one thread at a time.
#include <string>
#include <string_view>

namespace fusedbun::launch {

class Console {
 public:
  /// `shared_with_rank`: a rank writes to the same terminal by itself, so its unfinished progress line is wiped before
  /// each of our lines (it draws it again).
  Console(int descriptor, bool shared_with_rank);

  /// Queues one line; a newline is added.
  void put_line(std::string_view prefix, std::string_view line);
  /// Writes what the descriptor takes without blocking; text for a reader that has gone is dropped.
  void write_some();

  int descriptor() const { return descriptor_; }
  bool has_text() const { return !waiting_.empty(); }
  bool is_full() const { return waiting_.size() > kBytesMax; }

 private:
  static constexpr size_t kBytesMax = 1 << 20;
  int descriptor_;
  bool shared_with_rank_;
  std::string waiting_;
};

}  // namespace fusedbun::launch
