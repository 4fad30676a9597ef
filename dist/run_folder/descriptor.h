#pragma once
// Descriptor: the number of an open file, which is closed with it.
//
// Thread safety: none.
#include <unistd.h>

#include <utility>

namespace fusedbun::run_folder {

class Descriptor {
 public:
  Descriptor() = default;
  /// Of open(); negative: nothing is open.
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() { close(); }
  Descriptor(Descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      close();
      value_ = std::exchange(other.value_, -1);
    }
    return *this;
  }

  bool is_open() const { return value_ >= 0; }
  int value() const { return value_; }
  void close() {
    if (is_open()) ::close(std::exchange(value_, -1));
  }

 private:
  int value_ = -1;
};

}  // namespace fusedbun::run_folder
