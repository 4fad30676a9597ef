#include "fusedbun/launcher/train/leave_signals.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <string_view>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/standard_error.h"

namespace fusedbun::train {
namespace {

constexpr int kSignals[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1};
constexpr int64_t kSameRequestNs = 1'000'000'000;
/// The line before is for terminals, where the progress line is still open.
constexpr std::string_view kSentence =
    "\nfusedbun: told to leave: the model is saved after this step; another signal, a second or "
    "more from now, "
    "leaves at once without it\n";

constexpr std::string_view kSentenceAtStart =
    "fusedbun: told to leave while it was starting: no step is lost\n";

std::atomic<Stepper*> g_stepper{nullptr};
std::atomic<bool> g_is_starting{false};
std::atomic<bool> g_is_over{false};  ///< there are no more steps to leave after
std::atomic<bool> g_tells{false};
std::atomic<bool> g_on_terminal{false};
std::atomic<int64_t> g_first_ns{0};  ///< when the first signal came; 0: none has
std::atomic<bool> g_launcher_has_told{false};
static_assert(std::atomic<Stepper*>::is_always_lock_free &&
              std::atomic<int64_t>::is_always_lock_free);

int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

void on_signal(int number, siginfo_t* info, void*) {
  if (g_is_starting.load()) {
    if (g_tells) run_folder::write_to_standard_error(kSentenceAtStart);
    ::_exit(static_cast<int>(ExitCode::left_early));
  }
  const int error = errno;
  const bool by_launcher = info->si_code == SI_USER && info->si_pid == ::getppid();
  const bool launchers_first = by_launcher && !g_launcher_has_told.exchange(true);
  const int64_t now = now_ns();
  int64_t first = 0;
  if (!g_first_ns.compare_exchange_strong(first, now)) {
    if (now - first >= kSameRequestNs && !launchers_first) ::_exit(128 + number);
  } else if (!g_is_over.load()) {
    if (Stepper* stepper = g_stepper.load()) stepper->request_leave(changes::LeaveRequest::drain);
    if (g_tells) {
      run_folder::write_to_standard_error(kSentence.substr(g_on_terminal ? 0 : 1));
    }
  }
  errno = error;
}

}  // namespace

LeaveSignals::LeaveSignals(bool tells) {
  static std::atomic<bool> was_made{false};
  FUSEDBUN_ASSERT(!was_made.exchange(true), "two trainings in one process");
  g_tells = tells;
  g_on_terminal = ::isatty(STDERR_FILENO) != 0;
  g_is_starting = true;
  for (const int number : kSignals) {
    struct sigaction action {};
    ::sigaction(number, nullptr, &action);
    if (action.sa_handler == SIG_IGN) continue;
    action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_RESTART | SA_SIGINFO;
    ::sigaction(number, &action, nullptr);
  }
}

void LeaveSignals::keep() {
  g_is_starting = false;
}

LeaveSignals::Serving::Serving(Stepper& stepper) {
  g_stepper = &stepper;
  if (g_first_ns != 0) stepper.request_leave(changes::LeaveRequest::drain);
}

LeaveSignals::Serving::~Serving() {
  g_is_over = true;
  g_stepper = nullptr;
}

LeaveSignals::~LeaveSignals() {
  g_is_over = true;
  g_is_starting = false;
}

}  // namespace fusedbun::train
