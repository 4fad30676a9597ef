#include "fusedbun/launcher/monitoring/event_records.h"

#include <array>
#include <bit>
#include <cstring>

namespace fusedbun::monitoring {
namespace {

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  constexpr uint32_t kCastagnoliReversed = 0x82F63B78;
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kCastagnoliReversed : 0);
    table[byte] = crc;
  }
  return table;
}();

/// A CRC of bytes that hold a CRC says little, so TFRecord turns and shifts it.
uint32_t masked_crc(std::string_view bytes) {
  constexpr uint32_t kMaskDelta = 0xA282EAD8;
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + kMaskDelta;
}

template <class Number>
std::string bytes_of(Number number) {
  static_assert(std::endian::native == std::endian::little);
  std::string bytes(sizeof number, '\0');
  std::memcpy(bytes.data(), &number, sizeof number);
  return bytes;
}

std::string frame(std::string_view message) {
  const std::string length = bytes_of(static_cast<uint64_t>(message.size()));
  std::string record = length + bytes_of(masked_crc(length));
  record.append(message).append(bytes_of(masked_crc(message)));
  return record;
}

/// A protobuf message, field by field.
class Message {
 public:
  Message& number(int field, uint64_t value) {
    key(field, 0);
    varint(value);
    return *this;
  }
  Message& real(int field, double value) {
    key(field, 1);
    bytes_ += bytes_of(value);
    return *this;
  }
  Message& real32(int field, float value) {
    key(field, 5);
    bytes_ += bytes_of(value);
    return *this;
  }
  Message& text(int field, std::string_view value) {
    key(field, 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  Message& message(int field, const Message& value) { return text(field, value.bytes_); }
  const std::string& bytes() const { return bytes_; }

 private:
  void key(int field, int wire_type) { varint(static_cast<uint64_t>(field << 3 | wire_type)); }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

// Numbers of fields, by message.
struct EventField {
  static constexpr int kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
};
struct ValueField {
  static constexpr int kTag = 1, kSimpleValue = 2, kTensor = 8, kMetadata = 9;
};
struct MetadataField {
  static constexpr int kPluginData = 1, kDataClass = 4;
};
struct PluginDataField {
  static constexpr int kName = 1, kContent = 2;
};
struct TensorField {
  static constexpr int kType = 1, kShape = 2, kStrings = 8;
};
constexpr int kSummaryValue = 1;
constexpr int kSessionStatus = 1;
constexpr uint64_t kSessionStart = 1;
constexpr uint64_t kTypeString = 7;
constexpr uint64_t kDataClassTensor = 2;
// Of tensorboard.hparams: HParamsPluginData, SessionStartInfo, an entry of its map, google.protobuf.Value.
constexpr int kHparamsStartInfo = 3;
constexpr int kStartInfoHparams = 1, kStartInfoStartTime = 4;
constexpr int kEntryKey = 1, kEntryValue = 2;
constexpr int kValueNumber = 2, kValueString = 3;

Message event(const EventTime& at) {
  Message message;
  message.real(EventField::kWallTime, at.unix_time)
      .number(EventField::kStep, static_cast<uint64_t>(at.step));
  return message;
}

Message plugin(std::string_view name, const Message& content, uint64_t data_class) {
  Message data, metadata;
  data.text(PluginDataField::kName, name).message(PluginDataField::kContent, content);
  metadata.message(MetadataField::kPluginData, data);
  if (data_class != 0) metadata.number(MetadataField::kDataClass, data_class);
  return metadata;
}

std::string record_of_value(const EventTime& at, const Message& value) {
  return frame(
      event(at).message(EventField::kSummary, Message().message(kSummaryValue, value)).bytes());
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = ~uint32_t{0};
  for (const char byte : bytes)
    crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(byte)) & 0xFF];
  return ~crc;
}

std::string version_record(double unix_time) {
  return frame(event({.unix_time = unix_time, .step = 0})
                   .text(EventField::kFileVersion, "brain.Event:2")
                   .bytes());
}

std::string start_record(const EventTime& at) {
  return frame(
      event(at)
          .message(EventField::kSessionLog, Message().number(kSessionStatus, kSessionStart))
          .bytes());
}

std::string scalars_record(const EventTime& at, const std::vector<Scalar>& scalars) {
  Message summary;
  for (const Scalar& scalar : scalars) {
    summary.message(kSummaryValue,
                    Message()
                        .text(ValueField::kTag, scalar.tag)
                        .real32(ValueField::kSimpleValue, static_cast<float>(scalar.value)));
  }
  return frame(event(at).message(EventField::kSummary, summary).bytes());
}

std::string text_record(const EventTime& at, std::string_view tag, std::string_view text) {
  Message tensor, value;
  tensor.number(TensorField::kType, kTypeString)
      .message(TensorField::kShape, {})  // of no dimensions
      .text(TensorField::kStrings, text);
  value.text(ValueField::kTag, tag)
      .message(ValueField::kTensor, tensor)
      .message(ValueField::kMetadata, plugin("text", {}, kDataClassTensor));
  return record_of_value(at, value);
}

std::string hyper_parameters_record(const EventTime& at,
                                    const std::vector<HyperParameter>& parameters) {
  Message start;
  for (const auto& [name, value] : parameters) {
    Message entry, written;
    if (const auto* number = std::get_if<double>(&value)) {
      written.real(kValueNumber, *number);
    } else {
      written.text(kValueString, std::get<std::string>(value));
    }
    entry.text(kEntryKey, name).message(kEntryValue, written);
    start.message(kStartInfoHparams, entry);
  }
  start.real(kStartInfoStartTime, at.unix_time);
  Message content, value;
  content.message(kHparamsStartInfo, start);
  value.text(ValueField::kTag, "_hparams_/session_start_info")
      .message(ValueField::kMetadata, plugin("hparams", content, 0));
  return record_of_value(at, value);
}

}  // namespace fusedbun::monitoring
