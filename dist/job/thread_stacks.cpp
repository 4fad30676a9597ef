#include "fusedbun/dist/job/thread_stacks.h"

#include <cxxabi.h>
#include <dirent.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <mutex>
#include <sstream>
#include <thread>
#include <vector>

namespace fusedbun {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kThreadPatience{200};
constexpr std::chrono::milliseconds kPatience{2'000};
constexpr std::chrono::microseconds kLookInterval{200};
constexpr int kFramesMax = 64;
/// The handler itself and the frame by which the kernel called it.
constexpr int kFramesOfHandler = 2;

/// glibc has taken the first two for itself.
int stack_signal() {
  return SIGRTMIN + 6;
}

// Between the thread that asks and the one whose turn it is. The side that turns `wanted` to 0 has the frames: the handler writes them, or the
// asker has given up and a handler that comes late writes nothing.
std::atomic<pid_t> wanted{0};
std::atomic<bool> is_done{false};
std::array<void*, kFramesMax> frames;
int frame_count = 0;
bool handler_hangs = false;  ///< the askers'

pid_t own_id() {
  return static_cast<pid_t>(::syscall(SYS_gettid));
}

void note_frames(int) {
  const int saved_errno = errno;
  pid_t me = own_id();
  if (wanted.compare_exchange_strong(me, 0)) {
    frame_count = ::backtrace(frames.data(), kFramesMax);
    is_done.store(true);
  }
  errno = saved_errno;
}

/// For good: a signal that a thread blocks now may come to it later, and must not end the process. False if the program uses the signal.
bool install_handler() {
  static const bool is_ours = [] {
    std::array<void*, 1> ignored;
    ::backtrace(ignored.data(), 1);  // loads the unwinder, which a handler may not
    struct sigaction present = {};
    ::sigaction(stack_signal(), nullptr, &present);
    if ((present.sa_flags & SA_SIGINFO) != 0 || present.sa_handler != SIG_DFL) return false;
    struct sigaction action = {};
    action.sa_handler = note_frames;
    action.sa_flags = SA_RESTART;
    ::sigfillset(&action.sa_mask);
    return ::sigaction(stack_signal(), &action, nullptr) == 0;
  }();
  return is_ours;
}

std::string line_of(const std::string& proc_file) {
  std::string line;
  std::getline(std::ifstream(proc_file), line);
  return line;
}

std::string folder_of(pid_t thread) {
  return "/proc/self/task/" + std::to_string(thread);
}

bool blocks_the_signal(pid_t thread) {
  std::ifstream status(folder_of(thread) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (!line.starts_with("SigBlk:")) continue;
    const auto blocked = std::strtoull(line.c_str() + 7, nullptr, 16);
    return (blocked >> (stack_signal() - 1) & 1) != 0;
  }
  return true;  // it has ended
}

std::vector<pid_t> threads_of_this_process() {
  std::vector<pid_t> threads;
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir("/proc/self/task"), ::closedir);
  if (!folder) return threads;
  while (const dirent* entry = ::readdir(folder.get())) {
    if (const pid_t thread = std::atoi(entry->d_name); thread > 0) threads.push_back(thread);
  }
  std::ranges::sort(threads);
  return threads;
}

/// Whether the thread has noted its frames.
bool ask(pid_t thread, Clock::time_point until) {
  is_done.store(false);
  wanted.store(thread);
  if (::syscall(SYS_tgkill, ::getpid(), thread, stack_signal()) == 0) {
    while (!is_done.load() && Clock::now() < until) std::this_thread::sleep_for(kLookInterval);
  }
  pid_t expected = thread;
  if (wanted.compare_exchange_strong(expected, 0)) return false;
  // It writes already. If it does not come back from that, nobody is asked any more: the frames are its own.
  while (!is_done.load() && Clock::now() < until + kThreadPatience)
    std::this_thread::sleep_for(kLookInterval);
  handler_hangs = !is_done.load();
  return !handler_hangs;
}

std::string name_of_function(const char* symbol) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(symbol, nullptr, nullptr, &status), std::free);
  return status == 0 ? name.get() : symbol;
}

std::string describe_frame(void* address) {
  Dl_info info = {};
  if (::dladdr(address, &info) == 0 || info.dli_fname == nullptr) {
    std::ostringstream text;
    text << address;
    return text.str();
  }
  const std::string file = info.dli_fname;
  std::ostringstream place;
  place << file.substr(file.rfind('/') + 1) << "+0x" << std::hex
        << (static_cast<char*>(address) - static_cast<char*>(info.dli_fbase));
  if (info.dli_sname == nullptr) return place.str();
  return name_of_function(info.dli_sname) + "  (" + place.str() + ")";
}

}  // namespace

std::string thread_stacks() {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  const bool may_ask = install_handler();
  const Clock::time_point end = Clock::now() + kPatience;
  std::ostringstream text;
  if (!may_ask)
    text << "no frames: the program has a handler of SIGRTMIN + 6, by which threads are asked\n";
  for (const pid_t thread : threads_of_this_process()) {
    if (thread == own_id()) continue;  // it writes this
    const std::string folder = folder_of(thread);
    text << "thread " << thread << " \"" << line_of(folder + "/comm") << '"';
    const std::string waits_in = line_of(folder + "/wchan");
    if (!waits_in.empty() && waits_in != "0") text << ", waits in the kernel's " << waits_in;
    const bool blocks = blocks_the_signal(thread);
    if (blocks || !may_ask || handler_hangs ||
        !ask(thread, std::min(end, Clock::now() + kThreadPatience))) {
      text << (blocks ? ": blocks signals\n" : may_ask ? ": did not answer\n" : "\n");
      continue;
    }
    text << '\n';
    for (int frame = kFramesOfHandler; frame < frame_count; ++frame)
      text << "    " << describe_frame(frames[static_cast<size_t>(frame)]) << '\n';
  }
  return text.str();
}

}  // namespace fusedbun
