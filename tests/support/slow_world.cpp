// Loaded before the C library (LD_PRELOAD) into real processes, for what a test machine does not do by itself:
//
//   FUSEDBUN_TEST_FSYNC_SECONDS=S    every fsync takes S seconds, as on a slow disk
//   FUSEDBUN_TEST_DROP_HEARTBEATS=1  the port of the heartbeats drops what comes, as behind a firewall; it is told from the others by
//                                    its backlog, and from the store's by its number
//   FUSEDBUN_TEST_CLOCK_BACK=FILE    from when FILE exists, the clock on the wall is an hour behind
#include <dlfcn.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>

namespace {

template <class Function>
Function real(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

time_t seconds_behind() {
  const char* const file = std::getenv("FUSEDBUN_TEST_CLOCK_BACK");
  return file != nullptr && ::access(file, F_OK) == 0 ? 3600 : 0;
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
    ::usleep(static_cast<useconds_t>(1e6 * std::atof(seconds)));
  }
  return real<int (*)(int)>("fsync")(descriptor);
}

extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
  const int result = real<int (*)(clockid_t, timespec*)>("clock_gettime")(clock, time);
  if (clock == CLOCK_REALTIME && result == 0) time->tv_sec -= seconds_behind();
  return result;
}

extern "C" time_t time(time_t* seconds) noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  if (seconds != nullptr) *seconds = now.tv_sec;
  return now.tv_sec;
}

extern "C" int gettimeofday(timeval* time, void*) noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  *time = {now.tv_sec, now.tv_nsec / 1000};
  return 0;
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
