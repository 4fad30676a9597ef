#pragma once
// ProcessPlace: where a process runs, for readers that may be elsewhere: a run folder is often seen from other hosts and from
// inside and outside of containers, where the same pid, or 127.0.0.1, is somebody else's.
//
// Thread safety: values and functions without state.
#include <cstdint>
#include <string>

namespace fusedbun::run_folder {

struct ProcessPlace {
  std::string host;
  int64_t pid = 0;
  std::string boot_id;        ///< of the running kernel, one for all its containers; empty: unknown
  std::string pid_namespace;  ///< "pid:[4026531836]": within it `pid` means this process
  std::string network_namespace;  ///< "net:[4026531840]": within it loopback is shared

  bool operator==(const ProcessPlace&) const = default;
};

ProcessPlace this_process();

/// Whether the process runs under this process's kernel, so that a Unix socket of it can be reached; true if that is unknown.
bool is_on_this_kernel(const ProcessPlace& place);
/// Whether its 127.0.0.1 is this process's; true if that is unknown.
bool shares_loopback(const ProcessPlace& place);
/// Whether `place.pid` surely means the same process here: false on another host, after a reboot, in another container, or if one of
/// them is unknown.
bool shares_processes(const ProcessPlace& place);
/// Whether it is certain that the process has ended: never of one on another host, after a reboot or in another container.
bool is_surely_gone(const ProcessPlace& place);

/// "pid 17 on node3", and whether its processes can be seen from here.
std::string describe(const ProcessPlace& place);

}  // namespace fusedbun::run_folder
