#include "fusedbun/dist/comm/host_window.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <span>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/available_memory.h"
#include "fusedbun/dist/comm/host_identity.h"
#include "fusedbun/dist/comm/object_collectives.h"

namespace fusedbun::comm {
namespace {

constexpr size_t kPage = 4096;
constexpr int kCacheLine = 64;
/// A waiter looks at aborts, deadlines and dead processes at least this often.
constexpr std::chrono::milliseconds kLookAround{20};
/// Tries before sleeping: a few microseconds, about what a futex costs.
constexpr int kSpins = 2000;

int64_t rounded_up(int64_t bytes) {
  return (bytes + static_cast<int64_t>(kPage) - 1) / static_cast<int64_t>(kPage) *
         static_cast<int64_t>(kPage);
}

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

/// What rank 0 tells the others: where the memory is, and how to know that it is the right one.
struct Offer {
  int64_t pid = 0;
  int32_t fd = -1;  ///< -1: rank 0 has none
  int32_t error = 0;
  int64_t bytes = 0;
  uint64_t device = 0;
  uint64_t inode = 0;
};

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;  // owns it
  int get() const { return value_; }

 private:
  const int value_;
};

/// An anonymous file of `bytes` that cannot change its size any more; -1 with errno set if there is none.
int make_file(int64_t bytes) {
  if (const auto available = available_memory(); available && bytes > *available) {
    errno = ENOMEM;
    return -1;
  }
  const int fd = ::memfd_create("fusedbun-host-window", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return -1;
  if (::ftruncate(fd, bytes) == 0 && ::fcntl(fd, F_ADD_SEALS, kSeals) == 0) return fd;
  const int error = errno;
  ::close(fd);
  errno = error;
  return -1;
}

Offer make_offer(int fd, int64_t bytes) {
  Offer offer{.pid = ::getpid(), .fd = fd, .error = fd < 0 ? errno : 0, .bytes = bytes};
  struct stat status {};
  if (fd >= 0 && ::fstat(fd, &status) == 0) {
    offer.device = status.st_dev;
    offer.inode = status.st_ino;
  }
  return offer;
}

/// Whether `fd` is the file that was offered: nothing of another file is touched.
bool is_offered(int fd, const Offer& offer) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == offer.bytes &&
         status.st_dev == offer.device && status.st_ino == offer.inode &&
         (::fcntl(fd, F_GET_SEALS) & kSeals) == kSeals;
}

void* map(int fd, int64_t bytes) {
  void* memory =
      ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return nullptr;
  ::madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a wish; refused is fine
  return memory;
}

long futex(std::atomic<uint32_t>& word, int operation, uint32_t value, const timespec* timeout) {
  return ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation, value, timeout,
                   nullptr, 0);
}

}  // namespace

/// What a rank tells of itself.
struct HostWindow::RankCell {
  static constexpr size_t kReasonBytes = 400;
  std::atomic<int32_t> pid;
  std::atomic<uint32_t> times_aside;
  // Written before times_aside grows; who reads it is needed for the call that it names, so it does not change meanwhile.
  char reason[kReasonBytes];
};

/// The start of the memory. A cell of each rank follows, then the counters, one per cache line, [event][rank].
struct HostWindow::Header {
  std::atomic<uint32_t> aborted;
};

HostWindow::HostWindow(void* memory, size_t bytes, const WindowSize& size, Communicator& host,
                       std::chrono::milliseconds timeout)
    : memory_(static_cast<std::byte*>(memory)),
      bytes_(bytes),
      size_(size),
      host_(host),
      rank_(host.rank()),
      world_size_(host.size()),
      timeout_(timeout) {}

HostWindow::~HostWindow() {
  for (const int process : processes_) {
    if (process >= 0) ::close(process);
  }
  ::munmap(memory_, bytes_);
}

namespace {

constexpr int64_t kCellBytes = 448;  // of a rank, whole cache lines

int64_t header_bytes(int world_size) {
  return rounded_up(kCacheLine + kCellBytes * world_size);
}
int64_t counter_bytes(const WindowSize& size, int world_size) {
  return rounded_up(static_cast<int64_t>(size.events) * world_size * kCacheLine);
}

}  // namespace

namespace {

// Maps the memory that was offered. Returns why not; own_fd is rank 0's.
std::string map_offer(const Offer& offer, const std::string& home, int rank, int own_fd,
                      void** memory) {
  const std::string me = "rank " + std::to_string(rank);
  if (offer.fd < 0) {
    return "rank 0 gets no " + std::to_string(offer.bytes >> 20) +
           " MiB of shared memory: " + std::strerror(offer.error);
  }
  if (home != host_identity()) return me + " is not on rank 0's host (or in another container)";
  const std::string path = "/proc/" + std::to_string(offer.pid) + "/fd/" + std::to_string(offer.fd);
  const Descriptor opened(rank == 0 ? -1 : ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOCTTY));
  const int fd = rank == 0 ? own_fd : opened.get();
  if (fd < 0) return me + " cannot open rank 0's memory: " + std::strerror(errno);
  if (!is_offered(fd, offer)) return me + " finds another file where rank 0's memory should be";
  *memory = map(fd, offer.bytes);
  return *memory == nullptr ? me + " cannot map rank 0's memory: " + std::strerror(errno) : "";
}

}  // namespace

HostWindow::Opened HostWindow::open(Communicator& host, const WindowSize& size,
                                    std::chrono::milliseconds timeout) {
  const int world_size = host.size();
  const int64_t bytes = header_bytes(world_size) + counter_bytes(size, world_size) +
                        rounded_up(size.region_bytes) * world_size + rounded_up(size.shared_bytes);
  const Descriptor own(host.rank() == 0 ? make_file(bytes) : -1);
  const Offer offer = broadcast_object(host, make_offer(own.get(), bytes), 0);
  const std::string home = broadcast_text(host, host_identity(), 0);

  void* memory = nullptr;
  const std::string problem = map_offer(offer, home, host.rank(), own.get(), &memory);
  for (const std::string& each : all_gather_text(host, problem)) {
    if (each.empty()) continue;
    if (memory != nullptr) ::munmap(memory, static_cast<size_t>(offer.bytes));
    return {nullptr, each};
  }
  auto window = std::shared_ptr<HostWindow>(
      new HostWindow(memory, static_cast<size_t>(offer.bytes), size, host, timeout));
  window->cell(host.rank()).pid.store(::getpid());
  host.barrier().wait();
  window->watch_processes();
  return {std::move(window), {}};
}

std::byte* HostWindow::region(int rank) const {
  return memory_ + header_bytes(world_size_) + counter_bytes(size_, world_size_) +
         rounded_up(size_.region_bytes) * rank;
}

std::byte* HostWindow::shared() const {
  return region(world_size_);
}

HostWindow::RankCell& HostWindow::cell(int rank) const {
  static_assert(sizeof(RankCell) <= kCellBytes && sizeof(Header) <= kCacheLine);
  return *reinterpret_cast<RankCell*>(memory_ + kCacheLine + kCellBytes * rank);
}

// Handles of the processes, taken while all of them are known to live: a pid that is used again cannot be mistaken.
void HostWindow::watch_processes() {
  for (int rank = 0; rank < world_size_; ++rank) {
    processes_.push_back(
        static_cast<int>(::syscall(SYS_pidfd_open, pid_t{cell(rank).pid.load()}, 0U)));
  }
  host_.barrier().wait();
}

std::atomic<uint32_t>& HostWindow::counter(int event, int rank) const {
  FUSEDBUN_ASSERT(event >= 0 && event < size_.events, "the event is one of the window's");
  std::byte* counters = memory_ + header_bytes(world_size_);
  return *reinterpret_cast<std::atomic<uint32_t>*>(
      counters + (static_cast<int64_t>(event) * world_size_ + rank) * kCacheLine);
}

void HostWindow::post(int event, uint32_t round) {
  std::atomic<uint32_t>& word = counter(event, rank_);
  FUSEDBUN_ASSERT(round > word.load(std::memory_order_relaxed), "the rounds of an event grow");
  word.store(round, std::memory_order_release);
  futex(word, FUTEX_WAKE, INT_MAX, nullptr);
}

void HostWindow::require_unbroken() const {
  if (const auto failure = host_.failure()) failure->raise();
  FUSEDBUN_REQUIRE(reinterpret_cast<const Header*>(memory_)->aborted.load() == 0, PeerLostError,
                   "rank " + std::to_string(rank_) +
                       " left the host window: another rank ended this step with an error");
}

// A process that has ended is gone, also one that its parent has not reaped.
void HostWindow::require_alive(int rank) const {
  const int32_t pid = cell(rank).pid.load();
  pollfd process{processes_[static_cast<size_t>(rank)], POLLIN, 0};
  const bool is_gone =
      process.fd >= 0 ? ::poll(&process, 1, 0) == 1 : ::kill(pid, 0) != 0 && errno == ESRCH;
  FUSEDBUN_REQUIRE(!is_gone, PeerLostError,
                   "rank " + std::to_string(rank) + " (pid " + std::to_string(pid) +
                       ") is gone: rank " + std::to_string(rank_) +
                       " waited for it in the host window");
}

// What it posted before still counts. A count and not a flag: after the call both are back, but not at the same moment.
void HostWindow::require_not_aside(int rank, std::atomic<uint32_t>& word, uint32_t round) const {
  const RankCell& other = cell(rank);
  if (other.times_aside.load(std::memory_order_acquire) <= cell(rank_).times_aside.load()) return;
  FUSEDBUN_REQUIRE(word.load(std::memory_order_acquire) >= round, RankAsideError,
                   "rank " + std::to_string(rank) + " is elsewhere (" + other.reason +
                       ") where rank " + std::to_string(rank_) +
                       " waits for it in the host window: all ranks must "
                       "do the same steps");
}

void HostWindow::step_aside(const std::string& reason) noexcept {
  RankCell& mine = cell(rank_);
  const size_t length = std::min(reason.size(), RankCell::kReasonBytes - 1);
  std::memcpy(mine.reason, reason.data(), length);
  mine.reason[length] = 0;
  mine.times_aside.fetch_add(1, std::memory_order_release);
  for (int event = 0; event < size_.events; ++event)
    futex(counter(event, rank_), FUTEX_WAKE, INT_MAX, nullptr);
}

void HostWindow::wait(int event, uint32_t round, std::chrono::milliseconds timeout) const {
  const Clock::time_point deadline = Clock::now() + timeout;
  for (int rank = 0; rank < world_size_; ++rank) {
    std::atomic<uint32_t>& word = counter(event, rank);
    int spins = 0;
    for (uint32_t seen; (seen = word.load(std::memory_order_acquire)) < round;) {
      if (++spins < kSpins) continue;
      const auto nap = std::chrono::duration_cast<std::chrono::nanoseconds>(kLookAround);
      const timespec at_most{0, nap.count()};
      futex(word, FUTEX_WAIT, seen, &at_most);
      require_unbroken();
      require_not_aside(rank, word, round);
      require_alive(rank);
      FUSEDBUN_REQUIRE(Clock::now() < deadline, TimeoutError,
                       "rank " + std::to_string(rank_) + " waited " +
                           std::to_string(timeout.count()) + " ms for rank " +
                           std::to_string(rank) +
                           " in the host window: it is stopped or far behind");
    }
  }
}

void HostWindow::abort() noexcept {
  reinterpret_cast<Header*>(memory_)->aborted.store(1);
}

/// Keeps the window alive until it was waited for.
class WindowWait : public PendingOperation {
 public:
  WindowWait(std::shared_ptr<const HostWindow> window, int event, uint32_t round)
      : window_(std::move(window)), event_(event), round_(round) {}
  void wait(std::chrono::milliseconds timeout) override { window_->wait(event_, round_, timeout); }
  void wait_on(Stream, std::chrono::milliseconds timeout) override { wait(timeout); }
  bool may_drop() const noexcept override { return true; }  // no memory is in use by it

 private:
  const std::shared_ptr<const HostWindow> window_;
  const int event_;
  const uint32_t round_;
};

Work HostWindow::when_all(int event, uint32_t round) {
  return Work(std::make_unique<WindowWait>(shared_from_this(), event, round), timeout_);
}

}  // namespace fusedbun::comm
