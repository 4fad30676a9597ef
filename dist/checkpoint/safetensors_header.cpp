#include "fusedbun/dist/checkpoint/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::checkpoint {
namespace {

struct DtypeFacts {
  std::string_view name;
  int64_t bits;
};
constexpr DtypeFacts kDtypes[] = {  // in the order of the enum
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64}};

std::optional<Dtype> find_dtype(std::string_view name) {
  for (size_t i = 0; i < std::size(kDtypes); ++i) {
    if (kDtypes[i].name == name) return static_cast<Dtype>(i);
  }
  return std::nullopt;
}

/// Reads the header event by event. A tree would keep the last of two equal keys in silence, and
/// could be made huge. What may come next is a small state machine: the grammar is three levels
/// deep, so nothing deeper is ever accepted.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<HeaderEntry> entries;
  Metadata metadata;

  bool null() override { return refuse("null has no place in a header"); }
  bool boolean(bool) override { return refuse("a boolean has no place in a header"); }
  bool number_float(number_float_t, const string_t& text) override {
    return refuse(text + " is not a whole number of 64 bits");
  }
  bool binary(binary_t&) override { return refuse("binary values have no place in a header"); }
  bool number_integer(number_integer_t value) override {
    return refuse(std::to_string(value) + " is negative");
  }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& value) override;
  bool start_object(std::size_t) override;
  bool key(string_t& name) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override;
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    throw DataError("the header is not valid JSON in UTF-8 near its byte " +
                    std::to_string(position) + " (" + error.what() + ")");
  }

 private:
  enum class At { start, root, metadata, tensor, dtype, shape, shape_items, offsets, offset_items };

  [[noreturn]] bool refuse(const std::string& what) const {
    throw DataError((subject_.empty() ? "the header" : "'" + subject_ + "' in the header") + ": " +
                    what);
  }
  void begin_tensor_field(const std::string& field);
  void end_tensor();

  At at_ = At::start;
  std::string subject_;           ///< key of the tensor or metadata entry being read
  std::set<std::string> names_;   ///< keys of the root seen so far
  std::set<std::string> fields_;  ///< keys of the tensor being read seen so far
  std::vector<int64_t> offsets_;
  bool next_is_metadata_ = false;
};

bool HeaderReader::number_unsigned(number_unsigned_t value) {
  if (at_ != At::shape_items && at_ != At::offset_items) refuse("a number is not expected here");
  if (value > static_cast<number_unsigned_t>(std::numeric_limits<int64_t>::max())) {
    refuse(std::to_string(value) + " is too large");
  }
  std::vector<int64_t>& items = at_ == At::shape_items ? entries.back().shape : offsets_;
  const size_t items_max = at_ == At::shape_items ? kRankMax : 2;
  if (items.size() == items_max)
    refuse("more than " + std::to_string(items_max) + " numbers in a list");
  items.push_back(static_cast<int64_t>(value));
  return true;
}

bool HeaderReader::string(string_t& value) {
  if (at_ == At::metadata) {
    metadata[subject_] = value;
    return true;
  }
  if (at_ != At::dtype) refuse("a string is not expected here");
  const auto dtype = find_dtype(value);
  if (!dtype) refuse("unknown element type '" + value + "'");
  entries.back().dtype = *dtype;
  at_ = At::tensor;
  return true;
}

bool HeaderReader::start_object(std::size_t) {
  if (at_ == At::start) {
    at_ = At::root;
  } else if (at_ == At::root && next_is_metadata_) {
    at_ = At::metadata;
    next_is_metadata_ = false;
  } else if (at_ == At::root) {
    if (std::ssize(entries) == kTensorsMax) refuse("more than 1000000 tensors");
    entries.push_back({.name = subject_, .shape = {}});
    fields_.clear();
    at_ = At::tensor;
  } else {
    refuse("an object is not expected here");
  }
  return true;
}

bool HeaderReader::key(string_t& name) {
  if (at_ == At::root) {
    subject_ = name.substr(0, 80);
    if (name.size() > kNameBytesMax) refuse("a name of more than 4096 bytes");
    if (!names_.insert(name).second) refuse("the name is there twice");
    subject_ = name;
    next_is_metadata_ = name == "__metadata__";
  } else if (at_ == At::metadata) {
    subject_ = name;
    if (metadata.contains(name)) refuse("the metadata name is there twice");
  } else if (at_ == At::tensor) {
    begin_tensor_field(name);
  } else {
    refuse("the key '" + name.substr(0, 80) + "' is not expected here");
  }
  return true;
}

void HeaderReader::begin_tensor_field(const std::string& field) {
  if (!fields_.insert(field).second)
    refuse("the field '" + field.substr(0, 80) + "' is there twice");
  if (field == "dtype") {
    at_ = At::dtype;
  } else if (field == "shape") {
    at_ = At::shape;
  } else if (field == "data_offsets") {
    at_ = At::offsets;
    offsets_.clear();
  } else {
    refuse("unknown field '" + field.substr(0, 80) + "'");
  }
}

bool HeaderReader::end_object() {
  if (at_ == At::tensor) end_tensor();
  at_ = at_ == At::root ? At::start : At::root;
  return true;
}

void HeaderReader::end_tensor() {
  if (fields_.size() != 3) refuse("dtype, shape and data_offsets must all be there");
  entries.back().begin = offsets_[0];
  entries.back().end = offsets_[1];
}

bool HeaderReader::start_array(std::size_t) {
  if (at_ == At::shape) {
    at_ = At::shape_items;
  } else if (at_ == At::offsets) {
    at_ = At::offset_items;
  } else {
    refuse("a list is not expected here");
  }
  return true;
}

bool HeaderReader::end_array() {
  if (at_ == At::offset_items && offsets_.size() != 2) refuse("data_offsets must be two numbers");
  at_ = At::tensor;
  return true;
}

/// The entries, in order, must cover the data exactly.
void check_places(const std::vector<HeaderEntry>& entries, int64_t data_bytes) {
  int64_t next = 0;
  for (const HeaderEntry& entry : entries) {
    const std::string subject = "'" + entry.name + "' in the header: ";
    FUSEDBUN_REQUIRE(entry.begin <= entry.end, DataError,
                     subject + "its data ends before it begins");
    FUSEDBUN_REQUIRE(entry.begin == next, DataError,
                     subject + "its data begins at byte " + std::to_string(entry.begin) +
                         ", not at " + std::to_string(next) +
                         " where the one before ends (a gap or an overlap)");
    int64_t bytes = 0;
    try {
      bytes = tensor_bytes(entry.dtype, entry.shape);
    } catch (const DataError& error) {
      throw DataError(subject + error.what());
    }
    FUSEDBUN_REQUIRE(bytes == entry.end - entry.begin, DataError,
                     subject + "type and shape need " + std::to_string(bytes) +
                         " bytes, data_offsets give " + std::to_string(entry.end - entry.begin));
    next = entry.end;
  }
  FUSEDBUN_REQUIRE(next == data_bytes, DataError,
                   "the tensors need " + std::to_string(next) + " bytes, the file has " +
                       std::to_string(data_bytes) + " after the header");
}

}  // namespace

std::string_view name_of(Dtype dtype) {
  return kDtypes[static_cast<size_t>(dtype)].name;
}
int64_t bits_of(Dtype dtype) {
  return kDtypes[static_cast<size_t>(dtype)].bits;
}

int64_t tensor_bytes(Dtype dtype, std::span<const int64_t> shape) {
  int64_t bits = bits_of(dtype);
  for (const int64_t dimension : shape) {
    FUSEDBUN_REQUIRE(!__builtin_mul_overflow(bits, dimension, &bits), DataError,
                     "the product of its shape overflows");
  }
  FUSEDBUN_REQUIRE(bits % 8 == 0, DataError, "its elements do not fill whole bytes");
  return bits / 8;
}

Header parse_header(std::string_view text, int64_t data_bytes) {
  FUSEDBUN_REQUIRE(!text.empty() && text.front() == '{', DataError,
                   "the header does not start with '{'");
  // The JSON parser takes a NUL byte for the end of its input.
  FUSEDBUN_REQUIRE(text.find('\0') == text.npos, DataError, "the header holds a NUL byte");
  HeaderReader reader;
  nlohmann::json::sax_parse(text.begin(), text.end(), &reader);
  Header header{std::move(reader.entries), std::move(reader.metadata)};
  // Tensors without bytes share their begin with the next one; ends put them first.
  std::stable_sort(header.entries.begin(), header.entries.end(),
                   [](const HeaderEntry& a, const HeaderEntry& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  check_places(header.entries, data_bytes);
  return header;
}

std::string format_header(const Header& header) {
  nlohmann::ordered_json root = nlohmann::ordered_json::object();
  if (!header.metadata.empty()) root["__metadata__"] = header.metadata;
  for (const HeaderEntry& entry : header.entries) {
    root[entry.name] = {{"dtype", name_of(entry.dtype)},
                        {"shape", entry.shape},
                        {"data_offsets", {entry.begin, entry.end}}};
  }
  std::string text = root.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

}  // namespace fusedbun::checkpoint
