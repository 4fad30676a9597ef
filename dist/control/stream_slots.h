#pragma once
// StreamSlots: at most so many streams at once, because each holds a thread of the server.
//
// Thread safety: all members, from any thread.
#include <atomic>
#include <memory>

namespace fusedbun::control {

class StreamSlots {
 public:
  explicit StreamSlots(int max) : free_(max) {}

  /// Gives its slot back when it goes.
  class Slot {
   public:
    explicit Slot(StreamSlots& slots) : slots_(slots) {}
    ~Slot() { ++slots_.free_; }
    Slot(const Slot&) = delete;  // gives back once

   private:
    StreamSlots& slots_;
  };
  /// Null: all are taken. The slot does not outlive this object.
  std::unique_ptr<Slot> take() {
    if (--free_ >= 0) return std::make_unique<Slot>(*this);
    ++free_;
    return nullptr;
  }

 private:
  std::atomic<int> free_;
};

}  // namespace fusedbun::control
