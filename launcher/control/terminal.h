#pragma once
// Terminal: a screen of its own on the terminal, keys as they are pressed, and everything as it was when the object
// goes, also after SIGINT, SIGTERM or SIGHUP.
//
// Invariant: at most one object at a time.
//
// Thread safety: one thread; the signals may arrive on any.
#include <signal.h>
#include <termios.h>

#include <chrono>
#include <span>
#include <string>

namespace fusedbun::launcher {

struct TerminalSize {
  int columns = 80;
  int lines = 24;
};

class Terminal {
 public:
  /// Whether standard input and output are a terminal that can do it.
  static bool is_there();

  Terminal();
  ~Terminal();
  Terminal(const Terminal&) = delete;  // restores once

  /// As it is now: it may change at any time.
  TerminalSize size() const;
  /// Replaces the whole screen; what does not fit is cut.
  void show(std::span<const std::string> lines);
  /// The next key, or 0 if none is pressed within `wait`; 'q' after a signal that asks to end.
  char key(std::chrono::milliseconds wait);

 private:
  termios before_{};
  struct sigaction actions_before_[3];
};

}  // namespace fusedbun::launcher
