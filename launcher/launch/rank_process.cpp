#include "fusedbun/launcher/launch/rank_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "fusedbun/core/error.h"

extern char** environ;

namespace fusedbun::launch {
namespace {

struct Pipe {
  int read = -1;
  int write = -1;
};

Pipe open_pipe() {
  std::array<int, 2> ends{};
  FUSEDBUN_REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0, IoError,
                   std::string("no pipe for a rank's output: ") + std::strerror(errno));
  return {ends[0], ends[1]};
}

void close_if_open(int descriptor) {
  if (descriptor >= 0) ::close(descriptor);
}

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> result;
  for (const std::string& word : words) result.push_back(const_cast<char*>(word.c_str()));
  result.push_back(nullptr);
  return result;
}

struct ChildSetup {
  pid_t launcher;
  int out, err, failure;
  char** arguments;
  char** environment;
};

/// What came to the launcher's process group while this was still in it comes again, through the launcher. A Ctrl-Z would stop this
/// process before its program is there, and the launcher, which waits for that, with it.
void discard_pending_signals() {
  for (const int signal : {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGTSTP}) {
    if (::signal(signal, SIG_IGN) != SIG_IGN) ::signal(signal, SIG_DFL);
  }
}

/// In the child, between fork and exec: system calls only. Reports errno on `failure` if the program cannot be started.
[[noreturn]] void become_rank(const ChildSetup& setup) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != setup.launcher) ::_exit(1);  // it died before the line above took effect
  discard_pending_signals();
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  // Rank 0 may write to the terminal by itself, from a group that is not the terminal's: under `stty tostop` that would stop it.
  ::signal(SIGTTOU, SIG_IGN);
  const int nothing = ::open("/dev/null", O_RDONLY);
  if (nothing >= 0) ::dup2(nothing, STDIN_FILENO);
  if (setup.out >= 0) ::dup2(setup.out, STDOUT_FILENO);
  if (setup.err >= 0) ::dup2(setup.err, STDERR_FILENO);
  ::execvpe(setup.arguments[0], setup.arguments, setup.environment);
  const int error = errno;
  [[maybe_unused]] const ssize_t written = ::write(setup.failure, &error, sizeof(error));
  ::_exit(1);
}

}  // namespace

void throw_cannot_start(const std::string& program, int error) {
  const std::string sentence = "cannot start '" + program + "': " + std::strerror(error);
  if (error == ENOENT) throw UsageError(sentence + "; is it on PATH, or its interpreter missing?");
  if (error == EACCES || error == EPERM) throw PermissionError(sentence);
  throw IoError(sentence);
}

std::vector<std::string> merged_environment(
    const std::map<std::string, std::string>& rank_variables) {
  std::vector<std::string> result;
  for (const auto& [name, value] : rank_variables) {
    if (name == "OMP_NUM_THREADS" && ::getenv("OMP_NUM_THREADS") != nullptr) continue;
    result.push_back(name + "=" + value);
  }
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('='));
    if (name == "OMP_NUM_THREADS" || !rank_variables.contains(name)) result.push_back(text);
  }
  return result;
}

RankProcess start_rank(const std::vector<std::string>& command,
                       const std::vector<std::string>& environment, const StartOptions& options) {
  std::vector<char*> arguments = pointers(command);
  std::vector<char*> variables = pointers(environment);
  const Pipe out = options.capture_out ? open_pipe() : Pipe{};
  const Pipe err = options.capture_err ? open_pipe() : Pipe{};
  const Pipe failure = open_pipe();
  const ChildSetup setup = {::getpid(),    out.write,        err.write,
                            failure.write, arguments.data(), variables.data()};
  const pid_t pid = ::fork();
  const int fork_error = errno;
  if (pid == 0) become_rank(setup);
  for (const int descriptor : {out.write, err.write, failure.write}) close_if_open(descriptor);
  int error = pid < 0 ? fork_error : 0;
  if (pid > 0) {
    ::setpgid(pid, pid);  // both processes do it: a signal may be sent before the child has run
    while (::read(failure.read, &error, sizeof(error)) < 0 && errno == EINTR) {
    }
  }
  ::close(failure.read);
  if (error != 0) {
    if (pid > 0) ::waitpid(pid, nullptr, 0);
    close_if_open(out.read);
    close_if_open(err.read);
    throw_cannot_start(command.front(), error);
  }
  for (const int descriptor : {out.read, err.read}) {
    if (descriptor >= 0) ::fcntl(descriptor, F_SETFL, O_NONBLOCK);
  }
  return {options.rank, pid, out.read, err.read};
}

std::optional<RankEnd> reap_one(const std::vector<RankProcess>& ranks) {
  siginfo_t info{};
  // WNOWAIT keeps the dead rank's number from being given away until its group has been killed.
  if (::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) return {};
  const auto found = std::ranges::find(ranks, info.si_pid, &RankProcess::pid);
  if (found == ranks.end()) {  // a child that the launcher inherited from its caller's exec
    ::waitpid(info.si_pid, nullptr, 0);
    return reap_one(ranks);
  }
  ::kill(-info.si_pid, SIGKILL);
  ::waitpid(info.si_pid, nullptr, 0);
  const bool by_itself = info.si_code == CLD_EXITED;
  return RankEnd{found->rank, by_itself ? info.si_status : 0, by_itself ? 0 : info.si_status};
}

}  // namespace fusedbun::launch
