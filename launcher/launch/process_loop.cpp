#include "fusedbun/launcher/launch/process_loop.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstring>
#include <ctime>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/launcher/cli/own_words.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/env/host.h"
#include "fusedbun/launcher/launch/free_port.h"
#include "fusedbun/launcher/launch/last_lines.h"

namespace fusedbun::launch {
namespace {

constexpr Milliseconds kFailureGrace = 10'000;
/// How long output is awaited that a rank's surviving descendants may still hold open.
constexpr Milliseconds kDrain = 1'000;

Milliseconds now_ms() {
  const auto since_start = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(since_start).count();
}

SupervisionOptions supervision_options(const LaunchOptions& options) {
  std::optional<Milliseconds> grace;
  if (options.grace_seconds) grace = std::llround(*options.grace_seconds * 1000);
  return {.ranks = options.ranks,
          .grace = grace,
          .failure_grace = std::min(grace.value_or(kFailureGrace), kFailureGrace),
          .max_restarts = options.max_restarts,
          .several_hosts = options.nodes > 1,
          .restart_delay = std::llround(options.restart_delay_seconds * 1000)};
}

bool is_ignored(int signal) {
  struct sigaction action {};
  return ::sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

bool has_logs(const LaunchOptions& options) {
  return !options.log_dir.empty();
}

}  // namespace

std::string new_run_id() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y%m%d-%H%M%S-", &local);
  return text.data() + std::to_string(::getpid());
}

ProcessLoop::ProcessLoop(const LaunchOptions& options)
    : options_(options),
      identity_{.ranks = options.ranks,
                .nodes = options.nodes,
                .node_rank = options.node_rank,
                .master_addr = options.master_addr,
                .run_id = options.run_id.empty() ? new_run_id() : options.run_id,
                .max_restarts = options.max_restarts,
                .cores = launcher::usable_cores(),
                .last_words = last_words_.path()},
      supervision_(supervision_options(options)),
      out_(STDOUT_FILENO, options.ranks > 1 && ::isatty(STDOUT_FILENO) != 0),
      err_(STDERR_FILENO, options.ranks > 1 && ::isatty(STDERR_FILENO) != 0),
      errors_(static_cast<size_t>(options.ranks)) {
  ::sigemptyset(&served_);
  for (const int signal : {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGTSTP, SIGCHLD}) {
    // Once blocked it would arrive, and end a pause; the ranks are to ignore it like us.
    if (signal != SIGHUP || !is_ignored(signal)) ::sigaddset(&served_, signal);
  }
  ::signal(SIGPIPE, SIG_IGN);
  ::sigprocmask(SIG_BLOCK, &served_, &blocked_before_);
  signals_ = ::signalfd(-1, &served_, SFD_CLOEXEC | SFD_NONBLOCK);
  FUSEDBUN_REQUIRE(signals_ >= 0, IoError, std::string("no signalfd: ") + std::strerror(errno));
}

ProcessLoop::~ProcessLoop() {
  signal_ranks(SIGKILL);
  while (std::ranges::find(lives_, true) != lives_.end()) {
    if (const auto end = reap_one(ranks_)) {
      lives_[end->rank] = false;
    } else {
      ::poll(nullptr, 0, 1);
    }
  }
  out_.write_some();  // what was said before an exception
  err_.write_some();
  ::close(signals_);
  ::sigprocmask(SIG_SETMASK, &blocked_before_, nullptr);
}

void ProcessLoop::run() {
  perform(supervision_.begin(now_ms()));
  while (!finished_) {
    wait(timeout_ms());
    perform(supervision_.time_passed(now_ms()));
  }
  drain_output();
  const Verdict& verdict = supervision_.verdict();
  if (verdict.outcome == Outcome::done) return;
  std::vector<std::string> lines =
      last_lines(verdict_in_job(), culprit(), options_.ranks * options_.nodes,
                 supervision_.restarts_used_up() ? options_.max_restarts : 0, last_words_.read(),
                 launcher::quoted(options_.own_words));
  const std::string last = std::move(lines.back());
  lines.pop_back();
  for (const std::string& line : lines) notice(launcher::shown(line));
  flush_output();
  throw Error(static_cast<ExitCode>(verdict.exit_code), last);
}

void ProcessLoop::perform(const Actions& actions) {
  if (actions.signal != 0) signal_ranks(actions.signal);
  if (actions.restart_in) {
    read_streams();  // what the ranks said last comes before it
    notice(launcher::shown(restart_line(
        supervision_.attempt(), options_.max_restarts, *actions.restart_in,
        sentence_about_verdict(verdict_in_job(), culprit(), options_.ranks * options_.nodes),
        last_words_.read())));
  }
  if (actions.start_attempt) start_attempt();
  if (actions.finished) finished_ = true;
}

void ProcessLoop::start_attempt() {
  identity_.attempt = supervision_.attempt();
  port_ = HeldPort();  // the same one may be wanted again
  if (options_.node_rank == 0) port_ = HeldPort(options_.master_port);
  identity_.master_port = options_.node_rank == 0 ? port_.number() : options_.master_port;
  if (has_logs(options_)) {
    identity_.log_dir =
        options_.log_dir / identity_.run_id / ("attempt_" + std::to_string(identity_.attempt));
  }
  ranks_.clear();
  lives_.clear();
  std::ranges::fill(errors_, std::string());
  for (int rank = 0; rank < options_.ranks; ++rank) start_one(rank);
}

void ProcessLoop::start_one(int rank) {
  if (has_logs(options_)) {
    std::error_code error;
    std::filesystem::create_directories(rank_log_dir(identity_, rank), error);
    FUSEDBUN_REQUIRE(!error, IoError,
                     "cannot make the log folder " + rank_log_dir(identity_, rank).string() + ": " +
                         error.message());
  }
  const bool out = route(options_, rank, kOut, ::isatty(STDOUT_FILENO) != 0).captured;
  const bool err = route(options_, rank, kErr, ::isatty(STDERR_FILENO) != 0).captured;
  const auto environment = merged_environment(rank_environment(identity_, rank));
  ranks_.push_back(start_rank(options_.command, environment, {rank, out, err}));
  lives_.push_back(true);
  if (out) capture(rank, kOut, ranks_.back().out);
  if (err) capture(rank, kErr, ranks_.back().err);
}

void ProcessLoop::capture(int rank, StreamBits stream, int descriptor) {
  const StreamRoute where = route(options_, rank, stream, false);
  RankStream::Options options = {.descriptor = descriptor};
  if (where.to_console) options.console = stream == kOut ? &out_ : &err_;
  if (stream == kErr) options.last_line = &errors_[static_cast<size_t>(rank)];
  if (options_.ranks * options_.nodes > 1) {
    options.prefix = "[rank " + std::to_string(in_job({.rank = rank}).rank) + "] ";
  }
  if (where.to_log) {
    options.log_file =
        rank_log_dir(identity_, rank) / (stream == kOut ? "stdout.log" : "stderr.log");
  }
  streams_.push_back(std::make_unique<RankStream>(std::move(options)));
}

int ProcessLoop::timeout_ms() const {
  const auto deadline = supervision_.deadline();
  return deadline ? static_cast<int>(std::clamp<Milliseconds>(*deadline - now_ms(), 0, INT_MAX))
                  : -1;
}

void ProcessLoop::wait(int timeout_ms) {
  std::vector<pollfd> waits = {{signals_, POLLIN, 0}};
  for (const auto& stream : streams_) {
    if (stream->may_read()) waits.push_back({stream->descriptor(), POLLIN, 0});
  }
  for (const Console* console : {&out_, &err_}) {
    if (console->has_text()) waits.push_back({console->descriptor(), POLLOUT, 0});
  }
  ::poll(waits.data(), waits.size(), timeout_ms);
  read_streams();
  serve_signals();
  out_.write_some();
  err_.write_some();
}

void ProcessLoop::read_streams() {
  std::erase_if(streams_, [](const std::unique_ptr<RankStream>& stream) {
    if (!stream->may_read() || stream->read_some()) return false;
    stream->finish();
    return true;
  });
}

void ProcessLoop::serve_signals() {
  signalfd_siginfo info;
  while (::read(signals_, &info, sizeof(info)) == sizeof(info)) {
    const int signal = static_cast<int>(info.ssi_signo);
    if (signal == SIGCHLD) continue;  // several may have merged into one: reap() asks for all
    if (signal == SIGTSTP) {
      stop_with_ranks();
      continue;
    }
    // A second request that comes when the ranks have ended is about their output, whichever is seen first. Before the
    // first one it is the other way round: a signal to the whole tree means that its sender does not want another attempt.
    if (!finished_ && supervision_.asked_to_stop()) reap();
    if (finished_) {
      abandon_output_ = true;
      continue;
    }
    const bool restart_waits = supervision_.restart_waits();
    const Actions actions = supervision_.signal_received(signal, now_ms());
    if (restart_waits) notice("received " + signal_name(signal) + ", so nothing starts again");
    if (actions.signal != 0) notice(sentence_about(signal, actions.signal));
    perform(actions);
  }
  if (!finished_) reap();
}

void ProcessLoop::stop_with_ranks() {
  signal_ranks(SIGSTOP);  // they have groups of their own, which Ctrl-Z does not reach
  ::raise(SIGSTOP);
  signal_ranks(SIGCONT);  // fg or bg has come
}

void ProcessLoop::reap() {
  while (const auto end = reap_one(ranks_)) {
    lives_[end->rank] = false;
    const Actions actions = supervision_.rank_ended(*end, now_ms());
    if (actions.signal != 0) notice(name_of_end(*end) + "; ending the others");
    perform(actions);
  }
}

void ProcessLoop::signal_ranks(int signal) {
  for (const RankProcess& process : ranks_) {
    if (lives_[process.rank]) ::kill(-process.pid, signal);
  }
}

void ProcessLoop::drain_output() {
  const Milliseconds end = now_ms() + kDrain;
  while (!streams_.empty() && now_ms() < end && !abandon_output_) {
    wait(static_cast<int>(std::max<Milliseconds>(0, end - now_ms())));
  }
  for (const auto& stream : streams_) stream->finish();
  streams_.clear();
  flush_output();
}

void ProcessLoop::flush_output() {
  while ((out_.has_text() || err_.has_text()) && !abandon_output_) wait(-1);
}

std::string ProcessLoop::sentence_about(int received, int sent) const {
  std::string sentence = "received " + signal_name(received) + ", " +
                         (received == sent ? "forwarding it" : "sending " + signal_name(sent)) +
                         " to " + std::to_string(supervision_.living()) +
                         (supervision_.living() == 1 ? " rank" : " ranks");
  if (sent != SIGKILL && supervision_.asked_to_stop()) {
    const auto deadline = supervision_.deadline();
    const Milliseconds left = deadline ? std::max<Milliseconds>(0, *deadline - now_ms()) : 0;
    sentence += (deadline ? ", which have " + std::to_string((left + 500) / 1000) + " s to leave"
                          : std::string(", which leave when they have saved")) +
                "; once more after " + std::to_string(kSameRequest / 1000) +
                " s kills them at once";
  }
  return sentence;
}

std::string ProcessLoop::name_of_end(const RankEnd& end) const {
  return sentence_about_end(in_job(end), ranks_[end.rank].pid, host_name());
}

RankEnd ProcessLoop::in_job(RankEnd end) const {
  end.rank += options_.node_rank * options_.ranks;
  return end;
}

Verdict ProcessLoop::verdict_in_job() const {
  Verdict verdict = supervision_.verdict();
  verdict.culprit = in_job(verdict.culprit);
  return verdict;
}

Culprit ProcessLoop::culprit() const {
  const auto rank = static_cast<size_t>(supervision_.verdict().culprit.rank);
  Culprit culprit{.pid = ranks_[rank].pid, .host = host_name(), .last_line = errors_[rank]};
  if (has_logs(options_)) {
    culprit.log_folder = rank_log_dir(identity_, static_cast<int>(rank)).string();
  }
  return culprit;
}

void ProcessLoop::notice(const std::string& sentence) {
  err_.put_line("fusedbun: ", sentence);
}

}  // namespace fusedbun::launch
