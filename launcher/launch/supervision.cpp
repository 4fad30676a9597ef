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

constexpr Milliseconds kRestartWaitMax = 60'000;
constexpr int kDoublingsMax = 20;

bool asks_to_stop(int signal) {
  return signal == SIGTERM || signal == SIGINT || signal == SIGQUIT;
}

}  // namespace

int shell_code(const RankEnd& end) {
  return end.signal != 0 ? 128 + end.signal : end.code;
}

bool is_restartable(const RankEnd& end, const std::set<int>& received, bool several_hosts) {
  if (const int signal = signal_of(end); signal != 0) return !received.contains(signal);
  constexpr std::array restartable = {ExitCode::unclassified, ExitCode::internal, ExitCode::device,
                                      ExitCode::io, ExitCode::peer_lost};
  const auto code = static_cast<ExitCode>(end.code);
  if (several_hosts && (code == ExitCode::unavailable || code == ExitCode::timeout)) return true;
  return std::ranges::find(restartable, code) != restartable.end();
}

Milliseconds restart_wait(Milliseconds first, int quick_failures) {
  const int doublings = std::clamp(quick_failures - 1, 0, kDoublingsMax);
  return std::min(first << doublings, std::max(first, kRestartWaitMax));
}

Supervision::Supervision(const SupervisionOptions& options) : options_(options) {
  FUSEDBUN_ASSERT(options.ranks > 0, "supervision of no ranks");
}

Actions Supervision::begin(Milliseconds now) {
  FUSEDBUN_ASSERT(living_ == 0, "begin() while ranks live");
  return start(now);
}

Actions Supervision::start(Milliseconds now) {
  living_ = options_.ranks;
  started_ = now;
  verdict_ = {};
  first_.clear();
  left_as_told_ = false;
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
  if (asks_to_stop(signal)) stop_signal_ = signal;
  if (std::exchange(restart_waits_, false)) return {.finished = true};
  if (asks_to_stop(signal)) {
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
  return std::exchange(restart_waits_, false) ? start(now) : kill_now();
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
  const bool by_request = signal_of(end) != 0 && received_.contains(signal_of(end));
  if (outcome == Outcome::stopped && !by_request) return;  // by us, after what was the cause
  left_as_told_ |= outcome == Outcome::left_early || outcome == Outcome::stopped;
  first_.try_emplace(outcome, end);
  const auto is_excused = [&](Outcome each) { return each == Outcome::peer_lost && left_as_told_; };
  const auto worst = std::find_if(first_.rbegin(), first_.rend(),
                                  [&](const auto& each) { return !is_excused(each.first); });
  if (worst == first_.rend()) return;
  verdict_ = {
      .outcome = worst->first, .culprit = worst->second, .exit_code = shell_code(worst->second)};
  if (worst->first == Outcome::overdue) {
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
  if (attempt_ == options_.max_restarts || !is_worth_another()) return {.finished = true};
  ++attempt_;
  quick_failures_ = now - started_ >= kSteady ? 1 : quick_failures_ + 1;
  const Milliseconds wait = restart_wait(options_.restart_delay, quick_failures_);
  deadline_ = now + wait;
  restart_waits_ = true;
  return {.restart_in = wait};
}

bool Supervision::is_worth_another() const {
  return stop_signal_ == 0 && !left_as_told_ &&
         (verdict_.outcome == Outcome::failed || verdict_.outcome == Outcome::peer_lost) &&
         is_restartable(verdict_.culprit, received_, options_.several_hosts);
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
