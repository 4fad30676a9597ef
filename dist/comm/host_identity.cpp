#include "fusedbun/dist/comm/host_identity.h"

#include <filesystem>
#include <fstream>
#include <map>

#include "fusedbun/dist/comm/object_collectives.h"

namespace fusedbun::comm {

std::string host_identity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::error_code unreadable;
  return boot + " " + std::filesystem::read_symlink("/proc/self/ns/pid", unreadable).string();
}

std::vector<int> hosts_of_ranks(Communicator& host) {
  std::map<std::string, int> lowest;
  std::vector<int> hosts;
  for (const std::string& identity : all_gather_text(host, host_identity()))
    hosts.push_back(lowest.emplace(identity, static_cast<int>(hosts.size())).first->second);
  return hosts;
}

}  // namespace fusedbun::comm
