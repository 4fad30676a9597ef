#pragma once
// A TCP port for the ranks' rendezvous.
//
// Thread safety: a value that one thread uses.
#include <utility>

namespace fusedbun::launch {

/// A port that nobody else is given while the object lives: it is bound and not listened on, so that rank 0, which binds it as the
/// store does (SO_REUSEADDR), gets it, and neither a connection that goes out nor a program that asks for any free port.
class HeldPort {
 public:
  HeldPort() = default;
  /// `wanted`, or a free one when that is 0. Throws UnavailableError when `wanted` is taken, PermissionError when it may not be
  /// used.
  explicit HeldPort(int wanted);
  HeldPort(HeldPort&& other) noexcept
      : descriptor_(std::exchange(other.descriptor_, -1)), number_(other.number_) {}
  HeldPort& operator=(HeldPort&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    std::swap(number_, other.number_);
    return *this;
  }
  ~HeldPort();

  int number() const { return number_; }

 private:
  int descriptor_ = -1;
  int number_ = 0;
};

}  // namespace fusedbun::launch
