#include "fusedbun/dist/comm/host_window.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <fstream>
#include <random>
#include <span>
#include <vector>

#include "fusedbun/core/error.h"
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

/// What rank 0 tells the others: where the memory is, and how to know that it is the right one.
struct Offer {
  int64_t pid = 0;
  int32_t fd = -1;  ///< -1: rank 0 has none
  int32_t error = 0;
  int64_t bytes = 0;
  uint64_t token = 0;
};

/// MemAvailable in bytes; 0 if the kernel does not say.
int64_t available_bytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string name; file >> name;) {
    int64_t kib = 0;
    file >> kib;
    if (name == "MemAvailable:") return kib * 1024;
    file.ignore(LLONG_MAX, '\n');
  }
  return 0;
}

Offer make_offer(int64_t bytes) {
  Offer offer;
  offer.pid = ::getpid();
  offer.bytes = bytes;
  offer.token = (static_cast<uint64_t>(std::random_device{}()) << 32) | std::random_device{}();
  if (const int64_t available = available_bytes(); available > 0 && bytes > available) {
    offer.error = ENOMEM;
    return offer;
  }
  offer.fd = ::memfd_create("fusedbun-host-window", MFD_CLOEXEC);
  if (offer.fd < 0 || ::ftruncate(offer.fd, bytes) != 0) {
    offer.error = errno;
    if (offer.fd >= 0) ::close(offer.fd);
    offer.fd = -1;
  }
  return offer;
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

/// The start of the memory; counters follow, one per cache line, [event][rank].
struct HostWindow::Header {
  uint64_t token;
  std::atomic<uint32_t> aborted;
  std::atomic<int32_t> pid[1];  ///< [world_size]
};

HostWindow::HostWindow(void* memory, size_t bytes, const WindowSize& size, const Communicator& host,
                       std::chrono::milliseconds timeout)
    : memory_(static_cast<std::byte*>(memory)),
      bytes_(bytes),
      size_(size),
      host_(host),
      rank_(host.rank()),
      world_size_(host.size()),
      timeout_(timeout) {}

HostWindow::~HostWindow() {
  ::munmap(memory_, bytes_);
}

namespace {

int64_t header_bytes(int world_size) {
  return rounded_up(static_cast<int64_t>(sizeof(uint64_t) * 2 + sizeof(int32_t) * world_size));
}
int64_t counter_bytes(const WindowSize& size, int world_size) {
  return rounded_up(static_cast<int64_t>(size.events) * world_size * kCacheLine);
}

}  // namespace

HostWindow::Opened HostWindow::open(Communicator& host, const WindowSize& size,
                                    std::chrono::milliseconds timeout) {
  const int world_size = host.size();
  const int64_t bytes = header_bytes(world_size) + counter_bytes(size, world_size) +
                        rounded_up(size.region_bytes) * world_size + rounded_up(size.shared_bytes);
  Offer offer;
  if (host.rank() == 0) offer = make_offer(bytes);
  offer = broadcast_object(host, offer, 0);

  int fd = offer.fd;
  if (host.rank() != 0 && offer.fd >= 0) {
    const std::string path =
        "/proc/" + std::to_string(offer.pid) + "/fd/" + std::to_string(offer.fd);
    fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  }
  void* memory = fd >= 0 ? map(fd, offer.bytes) : nullptr;
  if (memory != nullptr && host.rank() == 0) static_cast<Header*>(memory)->token = offer.token;
  host.barrier().wait();

  std::string problem;
  if (offer.fd < 0) {
    problem = "rank 0 gets no " + std::to_string(bytes >> 20) +
              " MiB of shared memory: " + std::strerror(offer.error);
  } else if (memory == nullptr) {
    problem = "rank " + std::to_string(host.rank()) +
              " cannot map rank 0's memory: " + std::strerror(errno);
  } else if (static_cast<Header*>(memory)->token != offer.token) {
    problem = "rank " + std::to_string(host.rank()) + " is not on rank 0's host";
  }
  const std::vector<std::string> problems = all_gather_text(host, problem);
  if (fd >= 0) ::close(fd);  // all have mapped it or never will
  for (const std::string& each : problems) {
    if (each.empty()) continue;
    if (memory != nullptr) ::munmap(memory, static_cast<size_t>(offer.bytes));
    return {nullptr, each};
  }
  auto window = std::shared_ptr<HostWindow>(
      new HostWindow(memory, static_cast<size_t>(offer.bytes), size, host, timeout));
  static_cast<Header*>(memory)->pid[host.rank()].store(::getpid());
  host.barrier().wait();
  return {std::move(window), {}};
}

std::byte* HostWindow::region(int rank) const {
  return memory_ + header_bytes(world_size_) + counter_bytes(size_, world_size_) +
         rounded_up(size_.region_bytes) * rank;
}

std::byte* HostWindow::shared() const {
  return region(world_size_);
}

std::atomic<uint32_t>& HostWindow::counter(int event, int rank) const {
  FUSEDBUN_ASSERT(event >= 0 && event < size_.events, "the event is one of the window's");
  std::byte* counters = memory_ + header_bytes(world_size_);
  return *reinterpret_cast<std::atomic<uint32_t>*>(
      counters + (static_cast<int64_t>(event) * world_size_ + rank) * kCacheLine);
}

void HostWindow::post(int event, uint32_t round) {
  std::atomic<uint32_t>& word = counter(event, rank_);
  word.store(round, std::memory_order_release);
  futex(word, FUTEX_WAKE, INT_MAX, nullptr);
}

void HostWindow::require_unbroken() const {
  if (const auto failure = host_.failure()) failure->raise();
  FUSEDBUN_REQUIRE(reinterpret_cast<const Header*>(memory_)->aborted.load() == 0, PeerLostError,
                   "rank " + std::to_string(rank_) +
                       " left the host window: another rank ended this step with an error");
}

void HostWindow::require_alive(int rank) const {
  const auto* header = reinterpret_cast<const Header*>(memory_);
  const int32_t pid = header->pid[rank].load();
  FUSEDBUN_REQUIRE(::kill(pid, 0) == 0 || errno != ESRCH, PeerLostError,
                   "rank " + std::to_string(rank) + " (pid " + std::to_string(pid) +
                       ") is gone: rank " + std::to_string(rank_) +
                       " waited for it in the host window");
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

/// Keeps the window alive while it is waited for.
class WindowWait : public PendingOperation {
 public:
  WindowWait(const HostWindow& window, int event, uint32_t round)
      : window_(window), event_(event), round_(round) {}
  void wait(std::chrono::milliseconds timeout) override { window_.wait(event_, round_, timeout); }
  void wait_on(Stream, std::chrono::milliseconds timeout) override { wait(timeout); }
  bool aborted() const noexcept override { return true; }  // nothing of it is under way in memory

 private:
  const HostWindow& window_;
  int event_;
  uint32_t round_;
};

Work HostWindow::when_all(int event, uint32_t round) {
  return Work(std::make_unique<WindowWait>(*this, event, round), timeout_);
}

}  // namespace fusedbun::comm
