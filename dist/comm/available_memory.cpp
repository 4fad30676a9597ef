#include "fusedbun/dist/comm/available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace fusedbun::comm {
namespace {

namespace fs = std::filesystem;

// The number behind `name` in lines of "name number ..."; an empty name takes the first word. Nothing for "max" and no
// file.
std::optional<int64_t> number_in(const fs::path& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string word; file >> word;) {
    if (name.empty() || word == name) {
      if (!name.empty() && !(file >> word)) return std::nullopt;
      try {
        return std::stoll(word);
      } catch (const std::exception&) {  // "max", or more than fits: no limit
        return std::nullopt;
      }
    }
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::nullopt;
}

struct Names {
  const char* limit;
  const char* usage;
  const char* droppable;  // in memory.stat
};
constexpr Names kVersion1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};
constexpr Names kVersion2{"memory.max", "memory.current", "inactive_file"};

int64_t left_in(const fs::path& group, const Names& names) {
  const auto limit = number_in(group / names.limit, "");
  const auto usage = number_in(group / names.usage, "");
  if (!limit || !usage) return std::numeric_limits<int64_t>::max();
  const int64_t droppable = number_in(group / "memory.stat", names.droppable).value_or(0);
  return std::max<int64_t>(*limit - (*usage - std::min(droppable, *usage)), 0);
}

// Limits of a group and of all above it hold together. Inside a container the path may not exist: its own root does.
int64_t left_in_hierarchy(const fs::path& mount, const fs::path& group, const Names& names) {
  int64_t left = left_in(mount, names);
  for (fs::path each = group.relative_path(); !each.empty(); each = each.parent_path()) {
    left = std::min(left, left_in(mount / each, names));
  }
  return left;
}

}  // namespace

std::optional<int64_t> available_memory(const fs::path& root) {
  int64_t available = std::numeric_limits<int64_t>::max();
  if (const auto kib = number_in(root / "proc/meminfo", "MemAvailable:")) available = *kib * 1024;
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "4:memory:/path" or "0::/path"
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const fs::path group = line.substr(second + 1);
    const fs::path mount = root / "sys/fs/cgroup";
    if (controllers.empty()) {
      available = std::min(available, left_in_hierarchy(mount, group, kVersion2));
    } else if (("," + controllers + ",").find(",memory,") != std::string::npos) {
      available = std::min(available, left_in_hierarchy(mount / "memory", group, kVersion1));
    }
  }
  if (available == std::numeric_limits<int64_t>::max()) return std::nullopt;
  return available;
}

}  // namespace fusedbun::comm
