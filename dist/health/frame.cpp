#include "fusedbun/dist/health/frame.h"

#include <algorithm>
#include <cstring>

#include "fusedbun/core/error.h"

namespace fusedbun::health {
namespace {

constexpr uint16_t kVersion = 4;

struct Header {
  uint32_t body_bytes = 0;
  uint16_t kind = 0;  ///< index in Frame
  uint16_t version = kVersion;
};
static_assert(sizeof(Header) == kHeaderBytes);

template <size_t kBytes>
struct Text {
  char bytes[kBytes] = {};

  Text() = default;
  explicit Text(const std::string& text) {
    std::memcpy(bytes, text.data(), std::min(text.size(), kBytes - 1));
  }
  std::string str() const { return {bytes, ::strnlen(bytes, kBytes)}; }
};

constexpr int64_t kNotCounted = -1;

// Bodies. Every byte is a member's, so that none travels uninitialised.
struct HelloBody {
  int32_t rank = 0;
  int32_t local_rank = 0;
  int64_t pid = 0;
  Text<64> host = {};
  Text<16> device = {};
  Nonce nonce = {};
  Proof proof = {};
};
static_assert(kHeaderBytes + sizeof(HelloBody) == kHelloBytes);
struct BeatBody {
  uint64_t position = 0;
  uint64_t state_digest = 0;
  int64_t shard_bytes = 0;
  std::array<int64_t, plan::kPhaseCount> phase_us = {};
  int64_t sent_bytes = kNotCounted;
  int64_t resident_bytes = 0;
};
struct LostBody {
  int32_t rank = 0;
  int32_t code = 0;
  int64_t pid = 0;
  uint64_t position = 0;
  int64_t silence_us = 0;
  uint64_t cause = 0;
  Text<64> host = {};
  Text<512> reason = {};
};
struct ByeBody {
  uint64_t reserved = 0;
};
struct OrderBody {
  uint64_t kind = 0;
  uint64_t number = 0;
  int64_t code = 0;
  Text<Order::kTextBytesMax + 1> text = {};
};
struct OrderAnswerBody {
  uint64_t number = 0;
  Text<512> problem = {};
};
static_assert(sizeof(LostBody) <= kBodyBytesMax && sizeof(OrderBody) <= kBodyBytesMax);

// These two are arrays of bytes, and travel as they are.
Challenge body_of(const Challenge& challenge) {
  return challenge;
}
Welcome body_of(const Welcome& welcome) {
  return welcome;
}
HelloBody body_of(const Hello& hello) {
  const RankInfo& info = hello.info;
  return {info.rank,   info.local_rank, info.pid, Text<64>(info.host), Text<16>(info.device),
          hello.nonce, hello.proof};
}
BeatBody body_of(const Beat& beat) {
  const plan::RankUsage& usage = beat.usage;
  return {plan::pack(beat.position),
          beat.state_digest,
          beat.shard_bytes,
          usage.phase_us,
          usage.sent_bytes.value_or(kNotCounted),
          usage.resident_bytes};
}
LostBody body_of(const plan::LostRank& lost) {
  return {lost.rank,
          lost.code,
          lost.pid,
          plan::pack(lost.last),
          lost.silence_us,
          static_cast<uint64_t>(lost.cause),
          Text<64>(lost.host),
          Text<512>(lost.reason)};
}
ByeBody body_of(const Bye&) {
  return {};
}
OrderBody body_of(const Order& order) {
  return {static_cast<uint64_t>(order.kind), order.number, order.code,
          Text<Order::kTextBytesMax + 1>(order.text)};
}
OrderAnswerBody body_of(const OrderAnswer& answer) {
  return {answer.number, Text<512>(answer.problem)};
}

template <class Body>
Body read(const std::string& bytes, const Header& header) {
  FUSEDBUN_REQUIRE(header.body_bytes == sizeof(Body), DataError,
                   "a heartbeat frame of kind " + std::to_string(header.kind) + " has " +
                       std::to_string(header.body_bytes) + " bytes");
  Body body;
  std::memcpy(&body, bytes.data() + sizeof(Header), sizeof(Body));
  return body;
}

Frame frame_of(const HelloBody& body) {
  return Hello{.info = {.rank = body.rank,
                        .local_rank = body.local_rank,
                        .pid = body.pid,
                        .host = body.host.str(),
                        .device = body.device.str()},
               .nonce = body.nonce,
               .proof = body.proof};
}
Frame frame_of(const BeatBody& body) {
  Beat beat{plan::unpack(body.position), body.state_digest, body.shard_bytes};
  beat.usage.phase_us = body.phase_us;
  if (body.sent_bytes != kNotCounted) beat.usage.sent_bytes = body.sent_bytes;
  beat.usage.resident_bytes = body.resident_bytes;
  return beat;
}
Frame frame_of(const LostBody& body) {
  using Cause = plan::LostRank::Cause;
  FUSEDBUN_REQUIRE(body.cause <= static_cast<uint64_t>(Cause::hung), DataError,
                   "a heartbeat frame names no cause of loss: " + std::to_string(body.cause));
  return plan::LostRank{.rank = body.rank,
                        .host = body.host.str(),
                        .pid = body.pid,
                        .last = plan::unpack(body.position),
                        .cause = static_cast<Cause>(body.cause),
                        .silence_us = body.silence_us,
                        .code = body.code,
                        .reason = body.reason.str()};
}

Frame frame_of(const OrderBody& body) {
  FUSEDBUN_REQUIRE(body.kind <= static_cast<uint64_t>(Order::Kind::exit), DataError,
                   "a heartbeat frame has no order that is known: " + std::to_string(body.kind));
  return Order{.kind = static_cast<Order::Kind>(body.kind),
               .number = body.number,
               .code = static_cast<int>(body.code),
               .text = body.text.str()};
}
Frame frame_of(const OrderAnswerBody& body) {
  return OrderAnswer{body.number, body.problem.str()};
}

Frame read_frame(const std::string& bytes, const Header& header) {
  switch (header.kind) {
    case 0:
      return read<Challenge>(bytes, header);
    case 1:
      return frame_of(read<HelloBody>(bytes, header));
    case 2:
      return read<Welcome>(bytes, header);
    case 3:
      return frame_of(read<BeatBody>(bytes, header));
    case 4:
      return frame_of(read<LostBody>(bytes, header));
    case 5:
      read<ByeBody>(bytes, header);
      return Bye{};
    case 6:
      return frame_of(read<OrderBody>(bytes, header));
    case 7:
      return frame_of(read<OrderAnswerBody>(bytes, header));
    default:
      throw DataError("a heartbeat frame has the unknown kind " + std::to_string(header.kind));
  }
}

}  // namespace

std::string encode(const Frame& frame) {
  return std::visit(
      [&](const auto& content) {
        const auto body = body_of(content);
        const Header header{.body_bytes = sizeof(body),
                            .kind = static_cast<uint16_t>(frame.index())};
        std::string bytes(sizeof(header) + sizeof(body), '\0');
        std::memcpy(bytes.data(), &header, sizeof(header));
        std::memcpy(bytes.data() + sizeof(header), &body, sizeof(body));
        return bytes;
      },
      frame);
}

std::optional<Frame> take_frame(std::string& bytes) {
  if (bytes.size() < sizeof(Header)) return {};
  Header header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  FUSEDBUN_REQUIRE(header.version == kVersion && header.body_bytes <= kBodyBytesMax, DataError,
                   "what came over the heartbeat connection is no frame of this version");
  if (bytes.size() < sizeof(Header) + header.body_bytes) return {};
  Frame frame = read_frame(bytes, header);
  bytes.erase(0, sizeof(Header) + header.body_bytes);
  return frame;
}

}  // namespace fusedbun::health
