#include "fusedbun/tests/dist/changes/disk_faults.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

namespace fusedbun::changes {

DiskFaults& DiskFaults::instance() {
  static DiskFaults faults;
  return faults;
}

void DiskFaults::reset() {
  sync_error = truncate_error = sync_us_max = 0;
  hangs = false;
}

namespace {

int fail(int error) {
  errno = error;
  return -1;
}

}  // namespace
}  // namespace fusedbun::changes

using fusedbun::changes::DiskFaults;

extern "C" int fdatasync(int fd) {
  DiskFaults& faults = DiskFaults::instance();
  static std::atomic<unsigned> calls = 0;
  if (const int us_max = faults.sync_us_max; us_max > 0)
    std::this_thread::sleep_for(
        std::chrono::microseconds(++calls * 7919U % static_cast<unsigned>(us_max)));
  ++faults.hanging;
  while (faults.hangs) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  --faults.hanging;
  if (const int error = faults.sync_error; error != 0) return fusedbun::changes::fail(error);
  return static_cast<int>(::syscall(SYS_fdatasync, fd));
}

extern "C" int ftruncate(int fd, off_t size) noexcept {
  if (const int error = DiskFaults::instance().truncate_error; error != 0)
    return fusedbun::changes::fail(error);
  return static_cast<int>(::syscall(SYS_ftruncate, fd, size));
}
