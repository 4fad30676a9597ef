#include "fusedbun/launcher/launch/last_lines.h"

#include <csignal>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "fusedbun/core/error.h"

namespace fusedbun::launch {
namespace {

/// Of a rank's last line.
constexpr size_t kQuotedBytesMax = 400;

std::string end_of(const RankEnd& end) {
  return end.signal != 0 ? "was ended by " + signal_name(end.signal)
                         : "left with exit code " + std::to_string(end.code);
}

std::string name_of(int rank, pid_t pid, const std::string& host) {
  return "rank " + std::to_string(rank) + " (pid " + std::to_string(pid) + " on " + host + ") ";
}

std::string quotation(std::string_view line) {
  constexpr std::string_view ours = "fusedbun: ";
  if (line.starts_with(ours)) line.remove_prefix(ours.size());
  return std::string(line.substr(0, kQuotedBytesMax)) +
         (line.size() > kQuotedBytesMax ? "..." : "");
}

/// A wait as people write it: "0.5 s", "2 s".
std::string seconds(Milliseconds time) {
  char text[32];
  std::snprintf(text, sizeof text, "%g s", static_cast<double>(time) / 1000);
  return text;
}

}  // namespace

std::string signal_name(int signal) {
  const char* const name = ::sigabbrev_np(signal);
  return name != nullptr ? std::string("SIG") + name : "signal " + std::to_string(signal);
}

std::string sentence_about_end(const RankEnd& end, pid_t pid, const std::string& host) {
  return name_of(end.rank, pid, host) + end_of(end);
}

std::string sentence_about_verdict(const Verdict& verdict, const Culprit& culprit, int ranks) {
  const RankEnd& end = verdict.culprit;
  const bool is_first = verdict.outcome == Outcome::failed && ranks > 1;
  std::string sentence = name_of(end.rank, culprit.pid, culprit.host) +
                         (is_first ? "failed first: it " : "") + end_of(end);
  if (verdict.outcome == Outcome::overdue) sentence += ", because it did not leave in time";
  if (verdict.outcome == Outcome::peer_lost) sentence += ", because another rank was lost";
  if (verdict.outcome == Outcome::left_early) return sentence + ", as it was asked to";
  // Who was killed had no time to say why.
  if (end.signal == 0 && !culprit.last_line.empty()) {
    sentence += "; its last line: " + quotation(culprit.last_line);
  }
  if (!culprit.log_folder.empty()) sentence += "; its output: " + culprit.log_folder;
  return sentence;
}

std::string restart_line(int restart, int max_restarts, Milliseconds wait, const std::string& why,
                         const LastWords& words) {
  return "restart " + std::to_string(restart) + " of at most " + std::to_string(max_restarts) +
         " in " + seconds(wait) + ": " + why + (words.lost.empty() ? "" : "; " + words.lost);
}

std::vector<std::string> last_lines(const Verdict& verdict, const Culprit& culprit, int ranks,
                                    int restarts, const LastWords& words,
                                    const std::string& command) {
  std::vector<std::string> lines = {sentence_about_verdict(verdict, culprit, ranks)};
  if (restarts > 0) {
    lines[0] += restarts == 1 ? "; the one restart is used up"
                              : "; all " + std::to_string(restarts) + " restarts are used up";
  }
  if (words.lost.empty()) return lines;
  lines.push_back(words.lost);
  // The same again would fail the same way.
  const bool is_hopeless =
      verdict.outcome == Outcome::failed && !is_restartable(verdict.culprit, {});
  lines.push_back((is_hopeless ? "to go on once that is put right: " : "to go on: ") + command +
                  (words.more_words.empty() ? "" : " " + words.more_words));
  return lines;
}

}  // namespace fusedbun::launch
