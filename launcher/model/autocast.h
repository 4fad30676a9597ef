#pragma once
// Autocast: a scope in which LibTorch chooses the number format of each operation, as Python's `with torch.autocast(...)`. LibTorch's C++
// interface has the switches and no scope.
//
// A cast of a parameter is kept for the rest of the outermost scope, so a parameter that is used twice is cast once; it goes with
// the scope, since the next step changes the parameter. Run backward() outside.
//
// Thread safety: the state is the thread's.
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <optional>

namespace fusedbun::model {

/// What of autocast a thread has set for one kind of device.
struct AutocastState {
  bool enabled = false;
  c10::ScalarType type = c10::ScalarType::BFloat16;  ///< that matrix products take

  static AutocastState of_this_thread(c10::DeviceType device);
};

class Autocast {
 public:
  /// From here on, on this thread, for operations on `device`.
  Autocast(c10::DeviceType device, const AutocastState& state);
  Autocast(c10::DeviceType device, c10::ScalarType type)
      : Autocast(device, AutocastState{.enabled = true, .type = type}) {}
  ~Autocast();
  Autocast(const Autocast&) = delete;  // a scope

 private:
  c10::DeviceType device_;
  AutocastState before_;
};

}  // namespace fusedbun::model
