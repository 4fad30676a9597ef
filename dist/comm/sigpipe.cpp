#include "fusedbun/dist/comm/sigpipe.h"

#include <signal.h>

namespace fusedbun::comm {

void ignore_sigpipe() {
  struct sigaction now {};
  if (::sigaction(SIGPIPE, nullptr, &now) == 0 && now.sa_handler == SIG_DFL)
    ::signal(SIGPIPE, SIG_IGN);
}

}  // namespace fusedbun::comm
