#pragma once
// Connection: frames over one socket that does not block. Sending queues what the kernel does not take; a peer that
// takes nothing for long loses beats, never a word about a loss or a farewell. Receiving reads once, so a peer that
// sends without end holds nobody up.
//
// Thread safety: none; the heartbeat's thread.
#include <string>
#include <vector>

#include "fusedbun/dist/health/frame.h"
#include "fusedbun/dist/health/socket.h"

namespace fusedbun::health {

class Connection {
 public:
  static constexpr size_t kReceiveBytesMax = 4096;

  explicit Connection(Descriptor descriptor) : descriptor_(std::move(descriptor)) {}

  int descriptor() const { return descriptor_.value(); }
  /// False once the peer has closed it, it broke, or what came over it was no frame.
  bool is_open() const { return descriptor_.is_open(); }
  bool has_unsent() const { return !unsent_.empty(); }

  void send(const Frame& frame);
  /// Sends what the kernel takes.
  void flush();
  /// The frames that one read completes. At most `bytes_max` bytes are ever held; more than that without a whole frame
  /// closes the connection.
  std::vector<Frame> receive(size_t bytes_max = kReceiveBytesMax);
  /// Reads what has come and drops it: to close a socket with unread bytes would break it under what was sent last.
  void drain();
  void close() { descriptor_.close(); }

 private:
  Descriptor descriptor_;
  std::string unsent_;
  std::string received_;
};

}  // namespace fusedbun::health
