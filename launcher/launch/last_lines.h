#pragma once
// What the launcher says when an attempt is over: who failed first, what was lost, how to go on. Pure.
//
// Thread safety: functions without state.
#include <sys/types.h>

#include <string>
#include <vector>

#include "fusedbun/launcher/launch/last_words.h"
#include "fusedbun/launcher/launch/supervision.h"

namespace fusedbun::launch {

/// "SIGKILL"
std::string signal_name(int signal);

/// The rank that an attempt's verdict names, as the launcher knows it.
struct Culprit {
  pid_t pid = 0;
  std::string host = {};
  std::string last_line = {};  ///< of its standard error; empty: it wrote none, or not through us
  std::string log_folder = {};
};

/// "rank 1 (pid 4711 on node3) was ended by SIGKILL"
std::string sentence_about_end(const RankEnd& end, pid_t pid, const std::string& host);

/// Who decided the verdict, in one sentence: of `ranks` ranks.
std::string sentence_about_verdict(const Verdict& verdict, const Culprit& culprit, int ranks);

/// "restart 1 of at most 3 in 2 s: " and why.
std::string restart_line(int restart, int max_restarts, Milliseconds wait, const std::string& why,
                         const LastWords& words);

/// The last lines of a job that is not done. `restarts`: all that there were, if they are used up. `command` is the launcher's own,
/// as a shell takes it.
std::vector<std::string> last_lines(const Verdict& verdict, const Culprit& culprit, int ranks,
                                    int restarts, const LastWords& words,
                                    const std::string& command);

}  // namespace fusedbun::launch
