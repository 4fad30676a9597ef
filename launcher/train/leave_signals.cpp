#include "fusedbun/launcher/train/leave_signals.h"

#include <unistd.h>

#include <atomic>
#include <iterator>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1};
std::atomic<Stepper*> g_stepper{nullptr};
std::atomic<int> g_arrived{0};
static_assert(std::atomic<Stepper*>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void on_signal(int number) {
  if (g_arrived.fetch_add(1) > 0) ::_exit(128 + number);
  if (Stepper* stepper = g_stepper.load()) stepper->request_leave(plan::LeaveRequest::drain);
}

}  // namespace

LeaveSignals::LeaveSignals(Stepper& stepper) {
  FUSEDBUN_ASSERT(g_stepper.load() == nullptr, "two trainings in one process");
  g_arrived = 0;
  g_stepper = &stepper;
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    ::sigaction(kSignals[i], &action, &before_[i]);
  }
}

LeaveSignals::~LeaveSignals() {
  for (size_t i = 0; i < std::size(kSignals); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  g_stepper = nullptr;
}

}  // namespace fusedbun::train
