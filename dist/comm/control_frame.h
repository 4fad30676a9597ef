#pragma once
// ControlFrame: what a rank tells another beside the messages of operations: where it waits, that it left, why it
// failed. Frames have one size, and a receive for the next one is always posted, so they arrive whatever else is stuck.
//
// Thread safety: a value.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

namespace fusedbun::comm {

struct ControlFrame {
  enum class Kind : uint32_t {
    none,
    asks,  ///< "I wait for you in operation `number`": the receiver compares its own operation of that number
    answers,  ///< to an ask: the sender's next operation is `number`
    left,  ///< the sender destroyed its communicator before operation `number`; `text`: its last operation
    failed,  ///< the sender's communicator is broken: `code` and `text`
  };
  static constexpr size_t kTextBytes = 1024;
  static constexpr uint32_t kComplete = 0x636f6d6du;

  Kind kind = Kind::none;
  int32_t code = 0;           ///< ExitCode, of `failed`
  uint64_t number = 0;        ///< of an operation
  uint64_t digest = 0;        ///< of `asks`: CollectiveCall::digest()
  uint64_t sends_digest = 0;  ///< of `asks`: the sender's messages to the receiver, for an exchange
  uint64_t receives_digest = 0;  ///< the same of its messages from the receiver
  char text[kTextBytes] = {};    ///< ends with 0; a longer text is cut
  uint32_t padding = 0;
  uint32_t complete = kComplete;  ///< last: once it has arrived, all has

  void set_text(std::string_view from) {
    std::memcpy(text, from.data(), std::min(from.size(), kTextBytes - 1));
  }
};
static_assert(std::is_trivially_copyable_v<ControlFrame>);
static_assert(offsetof(ControlFrame, complete) + sizeof(uint32_t) == sizeof(ControlFrame));

}  // namespace fusedbun::comm
