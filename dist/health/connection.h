#pragma once
// Connection: frames over one socket that does not block. Sending queues what the kernel does not take; a peer that
// takes nothing for long loses beats, never a word about a loss or a farewell.
//
// Thread safety: none; the heartbeat's thread.
#include <string>
#include <vector>

#include "fusedbun/dist/health/frame.h"
#include "fusedbun/dist/health/socket.h"

namespace fusedbun::health {

class Connection {
 public:
  explicit Connection(Descriptor descriptor) : descriptor_(std::move(descriptor)) {}

  int descriptor() const { return descriptor_.value(); }
  /// False once the peer has closed it, it broke, or what came over it was no frame.
  bool is_open() const { return descriptor_.is_open(); }
  bool has_unsent() const { return !unsent_.empty(); }

  void send(const Frame& frame);
  /// Sends what the kernel takes.
  void flush();
  /// All frames that have come; those before an end are delivered with it.
  std::vector<Frame> receive();
  void close() { descriptor_.close(); }

 private:
  Descriptor descriptor_;
  std::string unsent_;
  std::string received_;
};

}  // namespace fusedbun::health
