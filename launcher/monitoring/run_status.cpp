#include "fusedbun/launcher/monitoring/run_status.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

namespace fusedbun::monitoring {
namespace {

/// Fields of /proc/self/stat from the third on: the second, the program's name, may hold spaces.
std::vector<std::string> fields_of_stat() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  std::istringstream rest(line.substr(std::min(line.size(), line.rfind(')') + 1)));
  return {std::istream_iterator<std::string>(rest), {}};
}

double boot_unix_time() {
  std::ifstream file("/proc/stat");
  for (std::string word; file >> word;) {
    double seconds = 0;
    if (word == "btime" && file >> seconds) return seconds;
  }
  return 0;
}

}  // namespace

void DurationHistogram::add(double seconds) {
  const auto* const bound = std::ranges::lower_bound(kBoundsSeconds, seconds);
  ++counts[static_cast<size_t>(bound - kBoundsSeconds.begin())];
  sum_seconds += seconds;
}

ProcessUse process_use() {
  // proc(5): of the fields after the name, utime and stime are the 12th and 13th, starttime the 20th, rss the 22nd.
  constexpr size_t kUser = 11, kSystem = 12, kStart = 19, kResident = 21;
  const std::vector<std::string> fields = fields_of_stat();
  if (fields.size() <= kResident) return {};
  const auto ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
  ProcessUse use;
  use.cpu_seconds = (std::stod(fields[kUser]) + std::stod(fields[kSystem])) / ticks;
  use.start_unix_time = boot_unix_time() + std::stod(fields[kStart]) / ticks;
  use.resident_bytes = std::stoll(fields[kResident]) * ::sysconf(_SC_PAGESIZE);
  std::error_code error;
  use.open_descriptors = std::distance(std::filesystem::directory_iterator("/proc/self/fd", error),
                                       std::filesystem::directory_iterator());
  return use;
}

}  // namespace fusedbun::monitoring
