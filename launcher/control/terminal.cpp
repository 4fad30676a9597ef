#include "fusedbun/launcher/control/terminal.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <iterator>
#include <string_view>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/cli/table.h"

namespace fusedbun::launcher {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};
constexpr std::string_view kEnter = "\033[?1049h\033[?25l";  // the other screen, no cursor
constexpr std::string_view kLeave = "\033[?25h\033[?1049l";
std::atomic<bool> g_asked_to_end{false};
std::atomic<bool> g_in_use{false};

void on_signal(int) {
  g_asked_to_end = true;
}

void put(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written <= 0) return;  // the terminal has gone; a signal follows
    text.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace

bool Terminal::is_there() {
  const char* kind = std::getenv("TERM");
  return ::isatty(STDIN_FILENO) != 0 && ::isatty(STDOUT_FILENO) != 0 && kind != nullptr &&
         std::string_view(kind) != "dumb";
}

Terminal::Terminal() {
  FUSEDBUN_ASSERT(!g_in_use.exchange(true), "two screens on one terminal");
  ::tcgetattr(STDIN_FILENO, &before_);
  termios keys = before_;
  keys.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
  keys.c_cc[VSUSP] = _POSIX_VDISABLE;  // stopped in the background it could not restore the screen
  keys.c_cc[VMIN] = 0;
  keys.c_cc[VTIME] = 0;
  ::tcsetattr(STDIN_FILENO, TCSANOW, &keys);
  g_asked_to_end = false;
  struct sigaction action {};
  action.sa_handler = on_signal;
  for (size_t i = 0; i < std::size(kSignals); ++i)
    ::sigaction(kSignals[i], &action, &actions_before_[i]);
  put(kEnter);
}

Terminal::~Terminal() {
  put(kLeave);
  ::tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  for (size_t i = 0; i < std::size(kSignals); ++i)
    ::sigaction(kSignals[i], &actions_before_[i], nullptr);
  g_in_use = false;
}

TerminalSize Terminal::size() const {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0)
    return {};
  return {.columns = size.ws_col, .lines = size.ws_row};
}

void Terminal::show(std::span<const std::string> lines) {
  const TerminalSize now = size();
  std::string frame = "\033[H";
  for (int line = 0; line < now.lines; ++line) {
    const auto index = static_cast<size_t>(line);
    if (index < lines.size()) frame += cut(lines[index], static_cast<size_t>(now.columns));
    frame += line + 1 < now.lines ? "\033[K\r\n" : "\033[K";
  }
  put(frame);
}

char Terminal::key(std::chrono::milliseconds wait) {
  pollfd input{STDIN_FILENO, POLLIN, 0};
  if (!g_asked_to_end) ::poll(&input, 1, static_cast<int>(wait.count()));
  char pressed = 0;
  if (g_asked_to_end || (input.revents & POLLHUP) != 0) return 'q';
  return (input.revents & POLLIN) != 0 && ::read(STDIN_FILENO, &pressed, 1) == 1 ? pressed : '\0';
}

}  // namespace fusedbun::launcher
