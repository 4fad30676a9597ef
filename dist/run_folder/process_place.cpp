#include "fusedbun/dist/run_folder/process_place.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <fstream>

#include "fusedbun/core/host_name.h"

namespace fusedbun::run_folder {
namespace {

std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  file >> id;
  return id;
}

std::string namespace_of_this_process(const char* link) {
  std::array<char, 64> text{};
  const ssize_t bytes = ::readlink(link, text.data(), text.size());
  return bytes > 0 ? std::string(text.data(), static_cast<size_t>(bytes)) : std::string();
}

/// What is not known of one of the two does not tell them apart.
bool may_be_equal(const std::string& one, const std::string& other) {
  return one.empty() || other.empty() || one == other;
}

}  // namespace

ProcessPlace this_process() {
  return {.host = host_name(),
          .pid = ::getpid(),
          .boot_id = boot_id(),
          .pid_namespace = namespace_of_this_process("/proc/self/ns/pid"),
          .network_namespace = namespace_of_this_process("/proc/self/ns/net")};
}

bool is_on_this_kernel(const ProcessPlace& place) {
  return may_be_equal(place.boot_id, boot_id());
}

bool shares_loopback(const ProcessPlace& place) {
  return is_on_this_kernel(place) &&
         may_be_equal(place.network_namespace, namespace_of_this_process("/proc/self/ns/net"));
}

bool shares_processes(const ProcessPlace& place) {
  const ProcessPlace here = this_process();
  return !place.boot_id.empty() && place.boot_id == here.boot_id && !place.pid_namespace.empty() &&
         place.pid_namespace == here.pid_namespace;
}

bool is_surely_gone(const ProcessPlace& place) {
  return shares_processes(place) && place.pid > 0 &&
         ::kill(static_cast<pid_t>(place.pid), 0) != 0 && errno == ESRCH;
}

std::string describe(const ProcessPlace& place) {
  const ProcessPlace here = this_process();
  const std::string text = "pid " + std::to_string(place.pid) + " on " + place.host;
  if (!is_on_this_kernel(place))
    return text + (place.host == here.host ? " before a reboot, or another host of that name"
                                           : ", another host than this one");
  return may_be_equal(place.pid_namespace, here.pid_namespace)
             ? text
             : text + ", in another container of this host";
}

}  // namespace fusedbun::run_folder
