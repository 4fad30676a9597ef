#pragma once
// Supervision: what to do when a rank ends, a signal arrives or time passes. A pure state machine: the loop that owns
// processes, signals and clocks (process_loop.h) tells it events and performs the actions it returns.
//
// Invariants: 1. An attempt starts all ranks and is over when all have ended; only then comes the next one or the
// end. 2. The first rank that fails ends the others: SIGTERM at once, SIGKILL after `failure_grace`. 3. A signal that
// the launcher receives goes to all ranks; after the first SIGTERM, SIGINT or SIGQUIT, SIGKILL follows within
// `grace`, if there is one. A second one kills at once if it comes kSameRequest or more after the first; sooner it is
// the same request, because a signal to a whole process tree can reach the launcher twice. 4. SIGTERM is never sent a
// second time by our own decision, because ranks take a second one for "leave now, without a checkpoint". 5. Nothing is
// restarted once the launcher itself was told to stop, nor after a rank that left because it was told to. 6. Between two
// attempts lies a pause; a signal that comes in it, and would have ended ranks or made them leave, ends the waiting.
//
// Times are milliseconds of a clock of the caller's.
//
// Thread safety: one thread at a time.
#include <cstdint>
#include <map>
#include <optional>
#include <set>

namespace fusedbun::launch {

using Milliseconds = int64_t;

/// Signals that ask to stop and come within this time are one request.
inline constexpr Milliseconds kSameRequest = 1'000;

struct SupervisionOptions {
  int ranks = 1;
  /// From a stop signal, or the first rank leaving with 75, to SIGKILL; none: for as long as it takes.
  std::optional<Milliseconds> grace = {};
  Milliseconds failure_grace = 10'000;  ///< from a failure to SIGKILL
  int max_restarts = 0;
  bool several_hosts =
      false;  ///< then a rank that could not meet the others (69, 124) may do so later
  Milliseconds restart_delay = 0;  ///< before the first restart; restart_wait() says how it grows
};

/// How long an attempt runs before its failure counts as the first of a new row.
inline constexpr Milliseconds kSteady = 300'000;

/// The pause before a restart after `quick_failures` attempts in a row that failed within kSteady: twice as long each time,
/// at most a minute or `first`, whichever is longer. What failed at once would fail as fast again, and fill logs and a
/// cluster's scheduler.
Milliseconds restart_wait(Milliseconds first, int quick_failures);

/// How a rank ended: by itself with `code`, or by `signal` when that is not 0.
struct RankEnd {
  int rank = 0;
  int code = 0;
  int signal = 0;

  bool operator==(const RankEnd&) const = default;
};

/// What an attempt's end means, from best to worst; the worst rank decides, the earliest among equals. But that a peer is lost
/// (76) means nothing where a rank left because it was told to: it is the one that is missed.
enum class Outcome : uint8_t {
  done,        ///< exit 0
  left_early,  ///< exit 75: asked to leave, run me again
  stopped,     ///< ended by a signal that it got from us
  overdue,     ///< did not leave in time and was killed by us
  peer_lost,   ///< exit 76: it says that another rank died
  failed,      ///< anything else: the cause
};

struct Verdict {
  Outcome outcome = Outcome::done;
  RankEnd culprit;  ///< meaningful unless `done`
  int exit_code = 0;
};

/// To be performed in this order.
struct Actions {
  int signal = 0;              ///< 1. send to the process group of every living rank, if not 0
  bool start_attempt = false;  ///< 2. start all ranks; `attempt()` is the new one's number
  bool finished = false;       ///< 3. nothing lives and nothing will; read `verdict()`
  /// Nothing lives, and attempt `attempt()` starts after this pause; `verdict()` is of the one before.
  std::optional<Milliseconds> restart_in = {};
};

class Supervision {
 public:
  explicit Supervision(const SupervisionOptions& options);

  /// Once, before any other event.
  Actions begin(Milliseconds now);
  /// Each rank of an attempt exactly once.
  Actions rank_ended(const RankEnd& end, Milliseconds now);
  Actions signal_received(int signal, Milliseconds now);
  /// To be called when `deadline()` has passed; earlier calls do nothing.
  Actions time_passed(Milliseconds now);

  std::optional<Milliseconds> deadline() const { return deadline_; }
  int attempt() const { return attempt_; }
  int living() const { return living_; }
  /// Whether the launcher has received SIGTERM, SIGINT or SIGQUIT: nothing starts again.
  bool asked_to_stop() const { return first_stop_.has_value(); }
  /// Of the attempt so far; in a pause, of the one before it.
  const Verdict& verdict() const { return verdict_; }
  /// Another attempt would be made if one were left.
  bool restarts_used_up() const { return attempt_ == options_.max_restarts && is_worth_another(); }
  bool restart_waits() const { return restart_waits_; }

 private:
  Actions start(Milliseconds now);
  Outcome classify(const RankEnd& end) const;
  void judge(const RankEnd& end, Outcome outcome);
  Actions end_others(Outcome outcome, Milliseconds now);
  Actions attempt_over(Milliseconds now);
  bool is_worth_another() const;
  void kill_by(Milliseconds time);
  Actions kill_now();

  SupervisionOptions options_;
  int attempt_ = 0;
  int living_ = 0;
  Verdict verdict_;
  std::map<Outcome, RankEnd> first_;  ///< of this attempt's ranks, of each way to end
  bool left_as_told_ = false;         ///< some rank of this attempt
  Milliseconds started_ = 0;          ///< this attempt
  int quick_failures_ = 0;            ///< in a row
  std::optional<Milliseconds> deadline_;
  bool restart_waits_ = false;              ///< for deadline_; no rank lives
  std::set<int> sent_;                      ///< to the ranks of this attempt
  std::set<int> received_;                  ///< by the launcher, in all attempts
  int stop_signal_ = 0;                     ///< the newest of SIGTERM, SIGINT, SIGQUIT received
  std::optional<Milliseconds> first_stop_;  ///< when the first of them came
};

/// The exit code of the rank as a shell shows it: its code, or 128 + signal.
int shell_code(const RankEnd& end);

/// Whether a rank's own failure is worth another attempt: codes 1, 70, 71, 74, 76, and a signal that hit it alone.
/// With `several_hosts` also 69 and 124: their ranks are started by other launchers, which may be restarting too.
bool is_restartable(const RankEnd& end, const std::set<int>& received, bool several_hosts = false);

}  // namespace fusedbun::launch
