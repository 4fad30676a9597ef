// Loaded before the C library (LD_PRELOAD) into real processes, for what a test machine does not do by itself:
//
//   FUSEDBUN_TEST_FSYNC_SECONDS=S    every fsync takes S seconds, as on a slow disk
//   FUSEDBUN_TEST_NO_FSYNC=WHAT      no fsync of files, or of folders, does anything
//   FUSEDBUN_TEST_DROP_HEARTBEATS=1  the port of the heartbeats drops what comes, as behind a firewall; it is told from the others by
//                                    its backlog, and from the store's by its number
//   FUSEDBUN_TEST_POOR_FOLDER=DIR    the file system of DIR has no locks, no second names, no sockets, and syncs no folders
//   FUSEDBUN_TEST_CLOCK_BACK=FILE    from when FILE exists, the clock on the wall is an hour behind
#include <dlfcn.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

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

bool is_poor(std::string_view path) {
  const char* const folder = std::getenv("FUSEDBUN_TEST_POOR_FOLDER");
  return folder != nullptr && path.starts_with(folder) &&
         (path.size() == std::strlen(folder) || path[std::strlen(folder)] == '/');
}

bool is_poor(int descriptor) {
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  char path[4096];
  const ssize_t length = ::readlink(link.c_str(), path, sizeof path);
  return length > 0 && is_poor(std::string_view(path, static_cast<size_t>(length)));
}

int refuse(int error) {
  errno = error;
  return -1;
}

bool is_folder(int descriptor) {
  struct stat found {};
  return ::fstat(descriptor, &found) == 0 && S_ISDIR(found.st_mode);
}

}  // namespace

extern "C" int flock(int descriptor, int operation) noexcept {
  if (is_poor(descriptor)) return refuse(ENOSYS);
  return real<int (*)(int, int)>("flock")(descriptor, operation);
}

extern "C" int link(const char* from, const char* to) noexcept {
  if (is_poor(to)) return refuse(EPERM);
  return real<int (*)(const char*, const char*)>("link")(from, to);
}

extern "C" int renameat2(int from_folder, const char* from, int to_folder, const char* to,
                         unsigned flags) noexcept {
  if (is_poor(to) && flags != 0) return refuse(EINVAL);
  return real<int (*)(int, const char*, int, const char*, unsigned)>("renameat2")(
      from_folder, from, to_folder, to, flags);
}

extern "C" int bind(int descriptor, const sockaddr* address, socklen_t size) noexcept {
  if (address->sa_family == AF_UNIX &&
      is_poor(reinterpret_cast<const sockaddr_un*>(address)->sun_path))
    return refuse(EPERM);
  return real<int (*)(int, const sockaddr*, socklen_t)>("bind")(descriptor, address, size);
}

extern "C" int fsync(int descriptor) {
  if (is_folder(descriptor) && is_poor(descriptor)) return refuse(EINVAL);
  if (const char* const what = std::getenv("FUSEDBUN_TEST_NO_FSYNC")) {
    if (is_folder(descriptor) == (std::string_view(what) == "folders")) return 0;
  }
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
