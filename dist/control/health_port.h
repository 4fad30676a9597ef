#pragma once
// HealthPort: grpc.health.v1 alone, in plaintext, for those who probe a process and can show neither token nor certificate: kubelet.
// "" is SERVING while the process lives, "fusedbun.progress" while its steps end. No other service can be called there.
//
// Needs no gRPC headers. Thread safety: any thread.
#include <functional>
#include <memory>
#include <string>

namespace fusedbun::control {

class HealthPort {
 public:
  /// Listens on all interfaces: a probe comes to the pod's address. `is_progressing` is asked twice a second, by a thread of this object.
  /// Port 0 takes a free one. Throws UnavailableError (69) if the port is taken.
  HealthPort(int port, std::function<bool()> is_progressing);
  ~HealthPort();
  HealthPort(const HealthPort&) = delete;  // owns a listener and its threads

  int port() const;

 private:
  class Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace fusedbun::control
