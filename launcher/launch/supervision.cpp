#include "fusedbun/launcher/launch/supervision.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::launch {
namespace {

/// The signal that ended a rank, also where a shell in between turned it into 128 + n; 0 if none did.
int signal_of(const RankEnd& end) {
  if (end.signal != 0) return end.signal;
  return end.code > 128 && end.code < 128 + NSIG ? end.code - 128 : 0;
}

constexpr Milliseconds kRestartDelayMax = 60'000;

bool asks_to_stop(int signal) {
  return signal == SIGTERM || signal == SIGINT || signal == SIGQUIT;
}

}  // namespace

int shell_code(const RankEnd& end) {
  return end.signal != 0 ? 128 + end.signal : end.code;
}

bool is_restartable(const RankEnd& end, const std::set<int>& received) {
  if (const int signal = signal_of(end); signal != 0) return !received.contains(signal);
  constexpr std::array restartable = {ExitCode::unclassified, ExitCode::internal, ExitCode::device,
                                      ExitCode::io, ExitCode::peer_lost};
  return std::ranges::find(restartable, static_cast<ExitCode>(end.code)) != restartable.end();
}

Supervision::Supervision(const SupervisionOptions& options) : options_(options) {
  FUSEDBUN_ASSERT(options.ranks > 0, "supervision of no ranks");
}

Actions Supervision::begin() {
  FUSEDBUN_ASSERT(living_ == 0, "begin() while ranks live");
  living_ = options_.ranks;
  verdict_ = {};
  deadline_.reset();
  sent_.clear();
  return {.start_attempt = true};
}

Actions Supervision::rank_ended(const RankEnd& end, Milliseconds now) {
  FUSEDBUN_ASSERT(living_ > 0, "a rank ended twice");
  --living_;
  const Outcome outcome = classify(end);
  judge(end, outcome);
  if (living_ == 0) return attempt_over(now);
  return outcome == Outcome::done ? Actions{} : end_others(outcome, now);
}

Actions Supervision::signal_received(int signal, Milliseconds now) {
  received_.insert(signal);
  if (asks_to_stop(signal)) {
    stop_signal_ = signal;
    if (std::exchange(restart_waits_, false)) return {.finished = true};
    if (first_stop_ && now - *first_stop_ >= kSameRequest) return kill_now();
    if (first_stop_ && sent_.contains(signal)) return {};
    if (!first_stop_) {
      first_stop_ = now;
      if (options_.grace) kill_by(now + *options_.grace);
    }
  }
  sent_.insert(signal);
  return {.signal = signal};
}

Actions Supervision::time_passed(Milliseconds now) {
  if (!deadline_ || now < *deadline_) return {};
  return std::exchange(restart_waits_, false) ? begin() : kill_now();
}

Outcome Supervision::classify(const RankEnd& end) const {
  const int signal = signal_of(end);
  if (signal == SIGKILL && sent_.contains(SIGKILL)) return Outcome::overdue;
  if (signal != 0) return sent_.contains(signal) ? Outcome::stopped : Outcome::failed;
  switch (static_cast<ExitCode>(end.code)) {
    case ExitCode::done:
      return Outcome::done;
    case ExitCode::left_early:
      return Outcome::left_early;
    case ExitCode::peer_lost:
      return Outcome::peer_lost;
    default:
      return Outcome::failed;
  }
}

void Supervision::judge(const RankEnd& end, Outcome outcome) {
  if (outcome <= verdict_.outcome) return;
  verdict_ = {.outcome = outcome, .culprit = end, .exit_code = shell_code(end)};
  if (outcome == Outcome::overdue) {
    // The rank's own code would be 137, which says that somebody else killed it.
    verdict_.exit_code =
        stop_signal_ != 0 ? 128 + stop_signal_ : static_cast<int>(ExitCode::timeout);
  }
}

Actions Supervision::end_others(Outcome outcome, Milliseconds now) {
  if (outcome == Outcome::left_early) {  // the others were asked the same and are on their way
    if (options_.grace) kill_by(now + *options_.grace);
    return {};
  }
  kill_by(now + options_.failure_grace);
  if (sent_.contains(SIGTERM) || sent_.contains(SIGKILL)) return {};
  sent_.insert(SIGTERM);
  return {.signal = SIGTERM};
}

Actions Supervision::attempt_over(Milliseconds now) {
  deadline_.reset();
  if (!may_restart()) return {.finished = true};
  ++attempt_;
  if (options_.restart_delay == 0) return begin();
  // What failed at once would fail as fast again, and fill logs and a cluster's scheduler.
  const int doublings = std::min(attempt_ - 1, 20);
  deadline_ = now + std::min(options_.restart_delay << doublings, kRestartDelayMax);
  restart_waits_ = true;
  return {};
}

bool Supervision::may_restart() const {
  return attempt_ < options_.max_restarts && stop_signal_ == 0 &&
         (verdict_.outcome == Outcome::failed || verdict_.outcome == Outcome::peer_lost) &&
         is_restartable(verdict_.culprit, received_);
}

void Supervision::kill_by(Milliseconds time) {
  if (!sent_.contains(SIGKILL)) deadline_ = deadline_ ? std::min(*deadline_, time) : time;
}

Actions Supervision::kill_now() {
  deadline_.reset();
  sent_.insert(SIGKILL);
  return {.signal = SIGKILL};
}

}  // namespace fusedbun::launch
