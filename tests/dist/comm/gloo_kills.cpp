// Kills one of three ranks by SIGKILL inside long messages, again and again: every survivor must be told of a lost
// peer within seconds, wherever the dead rank stands in the order of ranks and wherever in a message it dies.
// Usage: comm_gloo_kills ROUNDS [SEED]. Prints the seed and the longest time to the news; exits with 1 at the first
// failure.
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/gloo.h"
#include "fusedbun/dist/comm/gloo_address.h"

namespace {

using namespace fusedbun;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kSize = 3;
constexpr int64_t kBytes = 8 << 20;
constexpr milliseconds kNewsWithin{5000};  // the deadline of a wait is twelve times as long

/// Seen by parent and children.
struct Shared {
  std::atomic<int> under_way{0};
};

struct Round {
  int doomed = 0;
  milliseconds after{0};
  uint16_t port = 0;
};

// Exchanges with both peers for ever; the doomed rank kills itself meanwhile.
[[noreturn]] void run_rank(int rank, const Round& round, Shared& shared) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    const auto comm = comm::connect_gloo({.rank = rank, .size = kSize, .master_port = round.port});
    std::vector<std::byte> sent(kBytes);
    std::vector<std::vector<std::byte>> received(kSize, std::vector<std::byte>(kBytes));
    comm->barrier().wait();
    ++shared.under_way;
    std::thread killer;
    if (rank == round.doomed) {
      killer = std::thread([&] {
        while (shared.under_way < kSize) std::this_thread::sleep_for(milliseconds(1));
        std::this_thread::sleep_for(round.after);
        ::raise(SIGKILL);
      });
    }
    for (;;) {
      std::vector<comm::Message> sends;
      std::vector<comm::Message> receives;
      for (int peer = 0; peer < kSize; ++peer) {
        if (peer == rank) continue;
        sends.push_back({peer, sent.data(), kBytes});
        receives.push_back({peer, received[static_cast<size_t>(peer)].data(), kBytes});
      }
      comm->exchange(sends, receives).wait();
    }
  } catch (const Error& error) {
    if (error.code() != ExitCode::peer_lost) std::fprintf(stderr, "%s\n", error.what());
    ::_exit(static_cast<int>(error.code()));
  }
}

// The exit code; -1 if it still runs at `deadline`, and is killed.
int wait_for(pid_t child, Clock::time_point deadline) {
  int status = 0;
  while (::waitpid(child, &status, WNOHANG) == 0) {
    if (Clock::now() > deadline) {
      ::kill(child, SIGKILL);
      ::waitpid(child, &status, 0);
      return -1;
    }
    std::this_thread::sleep_for(milliseconds(2));
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// How long the news took; negative after a failure, which is printed.
milliseconds run_round(int number, const Round& round, Shared& shared) {
  shared.under_way = 0;
  std::vector<pid_t> children;
  for (int rank = 0; rank < kSize; ++rank) {
    const pid_t child = ::fork();
    if (child == 0) run_rank(rank, round, shared);
    children.push_back(child);
  }
  const int dead = wait_for(children[static_cast<size_t>(round.doomed)],
                            Clock::now() + std::chrono::seconds(60));
  const auto begin = Clock::now();
  bool is_right = dead == 128 + SIGKILL;
  if (!is_right)
    std::printf("round %d: rank %d left with %d before it was killed\n", number, round.doomed,
                dead);
  for (int rank = 0; rank < kSize; ++rank) {
    if (rank == round.doomed) continue;
    const int code = wait_for(children[static_cast<size_t>(rank)], begin + kNewsWithin);
    if (code == static_cast<int>(ExitCode::peer_lost)) continue;
    std::printf("round %d, rank %d killed after %lld ms: rank %d left with %d (-1: it still ran)\n",
                number, round.doomed, static_cast<long long>(round.after.count()), rank, code);
    is_right = false;
  }
  if (!is_right) return milliseconds(-1);
  return std::chrono::duration_cast<milliseconds>(Clock::now() - begin);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return static_cast<int>(ExitCode::usage);
  const int rounds = std::atoi(argv[1]);
  const unsigned seed =
      argc > 2 ? static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10)) : std::random_device{}();
  std::printf("seed %u\n", seed);
  std::minstd_rand random(seed);
  void* const memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Shared& shared = *new (memory) Shared;
  milliseconds longest{0};
  for (int number = 0; number < rounds; ++number) {
    comm::ListeningSocket free = comm::listen_on("127.0.0.1", 0);
    ::close(free.descriptor);
    const Round round{
        .doomed = number % kSize, .after = milliseconds(random() % 60), .port = free.port};
    const milliseconds news = run_round(number, round, shared);
    if (news.count() < 0) return 1;
    longest = std::max(longest, news);
  }
  std::printf("%d rounds, %d ranks: every survivor was told within %lld ms\n", rounds, kSize,
              static_cast<long long>(longest.count()));
  return 0;
}
