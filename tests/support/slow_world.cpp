// Loaded before the C library (LD_PRELOAD) into real processes, for what a test machine does not do by itself:
//
//   FUSEDBUN_TEST_FSYNC_SECONDS=S    every fsync takes S seconds, as on a slow disk
//   FUSEDBUN_TEST_DROP_HEARTBEATS=1  the port of the heartbeats drops what comes, as behind a firewall; it is told from the others by
//                                    its backlog, and from the store's by its number
#include <dlfcn.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>

namespace {

template <class Function>
Function real(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

bool is_of_heartbeats(int descriptor, int backlog) {
  sockaddr_in address{};
  socklen_t length = sizeof address;
  const char* const store = std::getenv("MASTER_PORT");
  return backlog == SOMAXCONN && store != nullptr &&
         ::getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &length) == 0 &&
         address.sin_family == AF_INET && ntohs(address.sin_port) != std::atoi(store);
}

}  // namespace

extern "C" int fsync(int descriptor) {
  if (const char* const seconds = std::getenv("FUSEDBUN_TEST_FSYNC_SECONDS")) {
    ::sleep(static_cast<unsigned>(std::atoi(seconds)));
  }
  return real<int (*)(int)>("fsync")(descriptor);
}

extern "C" int listen(int descriptor, int backlog) noexcept {
  if (std::getenv("FUSEDBUN_TEST_DROP_HEARTBEATS") != nullptr &&
      is_of_heartbeats(descriptor, backlog)) {
    sock_filter none = BPF_STMT(BPF_RET | BPF_K, 0);
    const sock_fprog program{1, &none};
    ::setsockopt(descriptor, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
  }
  return real<int (*)(int, int)>("listen")(descriptor, backlog);
}
