#pragma once
// StreamSlots: at most so many streams at once, because each holds a thread of the server, and at most so many of one actor, so
// that nobody keeps all others out.
//
// Thread safety: all members, from any thread.
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace fusedbun::control {

class StreamSlots {
 public:
  StreamSlots(int max, int max_of_one) : max_(max), max_of_one_(max_of_one) {}

  /// Gives its slot back when it goes.
  class Slot {
   public:
    Slot(StreamSlots& slots, std::string actor) : slots_(slots), actor_(std::move(actor)) {}
    ~Slot() { slots_.give_back(actor_); }
    Slot(const Slot&) = delete;  // gives back once

   private:
    StreamSlots& slots_;
    const std::string actor_;
  };
  /// Null: all are taken, or all that one actor gets. The slot does not outlive this object.
  std::unique_ptr<Slot> take(const std::string& actor) {
    const std::lock_guard lock(mutex_);
    int& of_actor = taken_of_[actor];
    if (taken_ >= max_ || of_actor >= max_of_one_) {
      if (of_actor == 0) taken_of_.erase(actor);
      return nullptr;
    }
    ++taken_;
    ++of_actor;
    return std::make_unique<Slot>(*this, actor);
  }

 private:
  void give_back(const std::string& actor) {
    const std::lock_guard lock(mutex_);
    --taken_;
    if (--taken_of_.at(actor) == 0) taken_of_.erase(actor);
  }

  const int max_;
  const int max_of_one_;
  std::mutex mutex_;
  int taken_ = 0;
  std::map<std::string, int> taken_of_;  ///< [actor] more than 0
};

}  // namespace fusedbun::control
