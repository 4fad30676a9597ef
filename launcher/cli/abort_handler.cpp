#include "fusedbun/launcher/cli/abort_handler.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "fusedbun/core/error.h"

namespace fusedbun::launcher {
namespace {

void exit_as_our_bug(int) {
  rlimit core{};
  if (::getrlimit(RLIMIT_CORE, &core) == 0 && core.rlim_cur > 0) {
    // _Fork, not fork: fork takes every lock that pthread_atfork knows and the allocator's, and the interrupted thread may hold one (a
    // damaged heap aborts under it). The process would wait for itself.
    const pid_t copy = ::_Fork();
    if (copy == 0) {
      std::signal(SIGABRT, SIG_DFL);
      sigset_t abort;
      ::sigemptyset(&abort);
      ::sigaddset(&abort, SIGABRT);
      ::sigprocmask(SIG_UNBLOCK, &abort, nullptr);
      ::raise(SIGABRT);
    }
    if (copy > 0) ::waitpid(copy, nullptr, 0);
  }
  ::_exit(static_cast<int>(ExitCode::internal));
}

}  // namespace

void install_abort_handler() {
  std::signal(SIGABRT, exit_as_our_bug);
}

}  // namespace fusedbun::launcher
