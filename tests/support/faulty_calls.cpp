#include "fusedbun/tests/support/faulty_calls.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>

namespace fusedbun::support {

FaultyCalls& FaultyCalls::instance() {
  static FaultyCalls calls;
  return calls;
}

void FaultyCalls::reset() {
  recording_ = exchange_forbidden_ = fsync_skipped_ = failed_ = false;
  records_.clear();
  left_until_failure_ = error_ = 0;
  calls_left_ = 0;
  bytes_read = 0;
}

void FaultyCalls::fail(DiskCall call, int nth, int error) {
  failing_ = call;
  left_until_failure_ = nth;
  error_ = error;
  failed_ = false;
}

std::optional<FaultyCalls::Instead> FaultyCalls::before(DiskCall call) {
  if (calls_left_ > 0 && --calls_left_ == 0) ::raise(SIGKILL);
  if (left_until_failure_ == 0 || call != failing_ || --left_until_failure_ > 0)
    return std::nullopt;
  failed_ = true;
  return Instead{error_, error_ == 0};
}

void FaultyCalls::after(DiskCallRecord record) {
  if (recording_) records_.push_back(std::move(record));
}

namespace {

template <class Function>
Function real(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

std::string path_of(int descriptor) {
  char path[4096];
  const ssize_t length =
      ::readlink(("/proc/self/fd/" + std::to_string(descriptor)).c_str(), path, sizeof path);
  return {path, static_cast<size_t>(std::max<ssize_t>(0, length))};
}

int fail_with(int error) {
  errno = error;
  return -1;
}

/// Opens with what `open_it` does, unless that call is to fail.
template <class Open>
int opened(int flags, Open open_it) {
  FaultyCalls& calls = FaultyCalls::instance();
  if (const auto instead = calls.before(DiskCall::open)) return fail_with(instead->error);
  const int descriptor = open_it();
  if (descriptor >= 0 && calls.is_recording())
    calls.after({.call = DiskCall::open,
                 .path = path_of(descriptor),
                 .to = {},
                 .creates = (flags & O_CREAT) != 0});
  return descriptor;
}

mode_t mode_argument(int flags, va_list arguments) {
  return (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
}

template <class Rename>
int renamed(const char* from, const char* to, bool exchanges, Rename rename_it) {
  FaultyCalls& calls = FaultyCalls::instance();
  if (const auto instead = calls.before(DiskCall::rename)) return fail_with(instead->error);
  if (exchanges && calls.is_exchange_forbidden()) return fail_with(EINVAL);
  const int result = rename_it();
  if (result == 0)
    calls.after({.call = DiskCall::rename, .path = from, .to = to, .exchanges = exchanges});
  return result;
}

}  // namespace
}  // namespace fusedbun::support

using fusedbun::support::DiskCall;
using fusedbun::support::FaultyCalls;
namespace support = fusedbun::support;

// Each name of open() is a function of its own in libc, and each is called by some library.
#define FUSEDBUN_DEFINE_OPEN(name)                                                 \
  extern "C" int name(const char* path, int flags, ...) {                          \
    va_list arguments;                                                             \
    va_start(arguments, flags);                                                    \
    const mode_t mode = support::mode_argument(flags, arguments);                  \
    va_end(arguments);                                                             \
    static const auto real = support::real<int (*)(const char*, int, ...)>(#name); \
    return support::opened(flags, [&] { return real(path, flags, mode); });        \
  }
#define FUSEDBUN_DEFINE_OPENAT(name)                                                    \
  extern "C" int name(int folder, const char* path, int flags, ...) {                   \
    va_list arguments;                                                                  \
    va_start(arguments, flags);                                                         \
    const mode_t mode = support::mode_argument(flags, arguments);                       \
    va_end(arguments);                                                                  \
    static const auto real = support::real<int (*)(int, const char*, int, ...)>(#name); \
    return support::opened(flags, [&] { return real(folder, path, flags, mode); });     \
  }
FUSEDBUN_DEFINE_OPEN(open)
FUSEDBUN_DEFINE_OPEN(open64)
FUSEDBUN_DEFINE_OPENAT(openat)
FUSEDBUN_DEFINE_OPENAT(openat64)

extern "C" ssize_t write(int descriptor, const void* bytes, size_t count) {
  static const auto real = support::real<ssize_t (*)(int, const void*, size_t)>("write");
  FaultyCalls& calls = FaultyCalls::instance();
  if (const auto instead = calls.before(DiskCall::write)) {
    if (!instead->short_write) return support::fail_with(instead->error);
    count = (count + 1) / 2;
  }
  const ssize_t written = real(descriptor, bytes, count);
  if (written >= 0 && calls.is_recording())
    calls.after({.call = DiskCall::write, .path = support::path_of(descriptor), .to = {}});
  return written;
}

extern "C" ssize_t pread(int descriptor, void* bytes, size_t count, off_t begin) {
  static const auto real = support::real<ssize_t (*)(int, void*, size_t, off_t)>("pread");
  FaultyCalls& calls = FaultyCalls::instance();
  if (const auto instead = calls.before(DiskCall::pread)) {
    if (!instead->short_write) return support::fail_with(instead->error);
    count = (count + 1) / 2;
  }
  const ssize_t read = real(descriptor, bytes, count, begin);
  if (read > 0) calls.bytes_read += read;
  return read;
}

extern "C" int fsync(int descriptor) {
  static const auto real = support::real<int (*)(int)>("fsync");
  FaultyCalls& calls = FaultyCalls::instance();
  if (const auto instead = calls.before(DiskCall::fsync)) return support::fail_with(instead->error);
  const int result = calls.is_fsync_skipped() ? 0 : real(descriptor);
  if (result == 0 && calls.is_recording())
    calls.after({.call = DiskCall::fsync, .path = support::path_of(descriptor), .to = {}});
  return result;
}

extern "C" int close(int descriptor) {
  static const auto real = support::real<int (*)(int)>("close");
  // Linux frees the number whatever close() says.
  const auto instead = FaultyCalls::instance().before(DiskCall::close);
  const int result = real(descriptor);
  return instead ? support::fail_with(instead->error) : result;
}

extern "C" int mkdir(const char* path, mode_t mode) noexcept {
  static const auto real = support::real<int (*)(const char*, mode_t)>("mkdir");
  FaultyCalls& calls = FaultyCalls::instance();
  if (const auto instead = calls.before(DiskCall::mkdir)) return support::fail_with(instead->error);
  const int result = real(path, mode);
  if (result == 0) calls.after({.call = DiskCall::mkdir, .path = path, .to = {}});
  return result;
}

extern "C" int rename(const char* from, const char* to) noexcept {
  static const auto real = support::real<int (*)(const char*, const char*)>("rename");
  return support::renamed(from, to, false, [&] { return real(from, to); });
}

extern "C" int renameat2(int from_folder, const char* from, int to_folder, const char* to,
                         unsigned flags) noexcept {
  static const auto real =
      support::real<int (*)(int, const char*, int, const char*, unsigned)>("renameat2");
  return support::renamed(from, to, (flags & RENAME_EXCHANGE) != 0,
                          [&] { return real(from_folder, from, to_folder, to, flags); });
}

extern "C" int unlink(const char* path) noexcept {
  static const auto real = support::real<int (*)(const char*)>("unlink");
  if (const auto instead = FaultyCalls::instance().before(DiskCall::unlink))
    return support::fail_with(instead->error);
  return real(path);
}

extern "C" int unlinkat(int folder, const char* path, int flags) noexcept {
  static const auto real = support::real<int (*)(int, const char*, int)>("unlinkat");
  if (const auto instead = FaultyCalls::instance().before(DiskCall::unlink))
    return support::fail_with(instead->error);
  return real(folder, path, flags);
}
