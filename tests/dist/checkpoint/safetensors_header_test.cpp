// Every rule of the header, one case each, with the words of the refusal.
#include "fusedbun/dist/checkpoint/safetensors_header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::checkpoint {
namespace {

struct Refusal {
  std::string name;
  std::string header;
  int64_t data_bytes;
  std::string why;  ///< part of the message
};
void PrintTo(const Refusal& refusal, std::ostream* out) {
  *out << refusal.name;
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}
std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "{" + tensor("a", dtype, shape, offsets) + "}";
}
const std::string kScalar = tensor("a", "U8", "[]", "[0,1]");

std::vector<Refusal> refusals() {
  return {
      {"empty", "", 0, "does not start with '{'"},
      {"leading_space", " {}", 0, "does not start with '{'"},
      {"no_object", "[]", 0, "does not start with '{'"},
      {"byte_order_mark", "\xEF\xBB\xBF{}", 0, "does not start with '{'"},
      {"cut_off", "{\"a\":", 0, "not valid JSON"},
      {"trailing", "{}x", 0, "not valid JSON"},
      {"trailing_nul", std::string("{}\0", 3), 0, "NUL byte"},
      {"not_utf8", "{\"\xFF\":{}}", 0, "not valid JSON in UTF-8"},
      {"overlong_utf8", "{\"\xC0\x80\":{}}", 0, "not valid JSON in UTF-8"},
      {"two_objects", "{}{}", 0, "not valid JSON"},
      {"name_twice", "{" + kScalar + "," + kScalar + "}", 1,
       "'a' in the header: the name is there twice"},
      {"metadata_twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice"},
      {"metadata_key_twice", R"({"__metadata__":{"k":"1","k":"2"}})", 0, "twice"},
      {"metadata_number", R"({"__metadata__":{"k":1}})", 0,
       "'k' in the header: a number is not expected"},
      {"metadata_nested", R"({"__metadata__":{"k":{}}})", 0, "an object is not expected"},
      {"metadata_list", R"({"__metadata__":[]})", 0, "a list is not expected"},
      {"metadata_null", R"({"__metadata__":null})", 0, "null"},
      {"tensor_string", R"({"a":"U8"})", 0, "a string is not expected"},
      {"tensor_boolean", R"({"a":true})", 0, "boolean"},
      {"field_twice", R"({"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}})", 1,
       "'dtype' is there twice"},
      {"field_unknown", R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"x":1}})", 1,
       "unknown field 'x'"},
      {"field_missing", R"({"a":{"dtype":"U8","shape":[]}})", 0, "must all be there"},
      {"dtype_unknown", one("Q8", "[1]", "[0,1]"), 1, "unknown element type 'Q8'"},
      {"dtype_lower_case", one("f32", "[1]", "[0,4]"), 4, "unknown element type 'f32'"},
      {"dtype_number", R"({"a":{"dtype":1,"shape":[],"data_offsets":[0,1]}})", 1,
       "a number is not expected"},
      {"shape_negative", one("U8", "[-1]", "[0,1]"), 1, "-1 is negative"},
      {"shape_fraction", one("U8", "[1.0]", "[0,1]"), 1, "1.0 is not a whole number"},
      {"shape_huge", one("U8", "[18446744073709551615]", "[0,1]"), 1, "is too large"},
      {"shape_beyond_64_bits", one("U8", "[99999999999999999999]", "[0,1]"), 1,
       "is not a whole number of 64 bits"},
      {"shape_nested", one("U8", "[[1]]", "[0,1]"), 1, "a list is not expected"},
      {"shape_product", one("U8", "[4294967296,4294967296]", "[0,1]"), 1, "overflows"},
      {"shape_bits", one("F64", "[1152921504606846976]", "[0,1]"), 1, "overflows"},
      {"rank_9", one("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, "more than 8 numbers"},
      {"half_bytes", one("F4", "[3]", "[0,2]"), 2, "do not fill whole bytes"},
      {"offsets_one", one("U8", "[1]", "[0]"), 1, "must be two numbers"},
      {"offsets_three", one("U8", "[1]", "[0,1,2]"), 1, "more than 2 numbers"},
      {"offsets_swapped", one("U8", "[1]", "[1,0]"), 1, "ends before it begins"},
      {"offsets_short", one("F32", "[2]", "[0,4]"), 4, "need 8 bytes, data_offsets give 4"},
      {"offsets_long", one("F32", "[2]", "[0,12]"), 12, "need 8 bytes, data_offsets give 12"},
      {"first_not_zero", one("U8", "[1]", "[1,2]"), 2, "begins at byte 1, not at 0"},
      {"gap", "{" + kScalar + "," + tensor("b", "U8", "[]", "[2,3]") + "}", 3,
       "'b' in the header: its data begins"},
      {"overlap",
       "{" + tensor("a", "U8", "[2]", "[0,2]") + "," + tensor("b", "U8", "[2]", "[1,3]") + "}", 3,
       "'b' in the header: its data begins"},
      {"same_place", "{" + kScalar + "," + tensor("b", "U8", "[]", "[0,1]") + "}", 1,
       "gap or an overlap"},
      {"beyond_file", one("U8", "[4]", "[0,4]"), 3, "need 4 bytes, the file has 3"},
      {"before_end_of_file", one("U8", "[4]", "[0,4]"), 5, "need 4 bytes, the file has 5"},
      {"data_without_tensors", "{}", 1, "need 0 bytes, the file has 1"},
      {"long_name", "{" + tensor(std::string(4097, 'n'), "U8", "[]", "[0,1]") + "}", 1,
       "more than 4096 bytes"},
      {"deep", "{\"a\":" + std::string(100'000, '[') + "}", 0, "a list is not expected"},
  };
}

class HeaderRefusal : public testing::TestWithParam<Refusal> {};

TEST_P(HeaderRefusal, SaysWhichRule) {
  try {
    parse_header(GetParam().header, GetParam().data_bytes);
    FAIL() << "accepted";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(GetParam().why));
  }
}
INSTANTIATE_TEST_SUITE_P(Rules, HeaderRefusal, testing::ValuesIn(refusals()),
                         [](const auto& info) { return info.param.name; });

TEST(Header, RefusesMoreThanAMillionTensors) {
  std::string text = "{";
  for (int64_t i = 0; i <= kTensorsMax; ++i) {
    text += (i ? "," : "") + tensor(std::to_string(i), "U8", "[0]", "[0,0]");
  }
  EXPECT_THAT([&] { parse_header(text + "}", 0); },
              testing::ThrowsMessage<DataError>(testing::HasSubstr("more than 1000000 tensors")));
}

TEST(Header, AcceptsWhatTheFormatAllows) {
  EXPECT_TRUE(parse_header("{}   ", 0).entries.empty());
  EXPECT_EQ(parse_header(one("F4", "[4]", "[0,2]"), 2).entries[0].end, 2);
  EXPECT_EQ(parse_header(one("U8", "[1,1,1,1,1,1,1,1]", "[0,1]"), 1).entries[0].shape.size(), 8u);
  const Header header = parse_header(
      "{\"__metadata__\":{\"format\":\"pt\"}," + tensor("z", "F32", "[2]", "[0,8]") + "," +
          tensor("empty", "F32", "[0,7]", "[0,0]") + "," + tensor("s", "U8", "[]", "[8,9]") + "}",
      9);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  ASSERT_EQ(header.entries.size(), 3u);
  EXPECT_EQ(header.entries[0].name, "empty");
  EXPECT_EQ(header.entries[1].name, "z");
  EXPECT_EQ(header.entries[2].name, "s");
}

TEST(Header, WhatIsWrittenIsReadBack) {
  Header header;
  header.metadata = {{"quote\"", "line\nbreak"}, {"\xC3\xBC", ""}};
  header.entries = {{"h.0.weight", Dtype::F64, {2, 3}, 0, 48}, {"\"\\", Dtype::BF16, {}, 48, 50}};
  const std::string text = format_header(header);
  EXPECT_EQ(text.size() % 8, 0u);
  const Header again = parse_header(text, 50);
  EXPECT_EQ(again.metadata, header.metadata);
  ASSERT_EQ(again.entries.size(), 2u);
  EXPECT_EQ(again.entries[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(again.entries[1].name, "\"\\");
  EXPECT_EQ(again.entries[1].dtype, Dtype::BF16);
}

}  // namespace
}  // namespace fusedbun::checkpoint
