// The manifest: every field comes back, and every rule that a text can break is refused by its own words.
#include "fusedbun/dist/checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "fusedbun/core/error.h"
#include "fusedbun/core/option_fields.h"
#include "fusedbun/dist/checkpoint/shard_file.h"
#include "fusedbun/tests/dist/checkpoint/example_checkpoint.h"

namespace fusedbun::checkpoint {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

/// One file with one tensor of 2 x 3 float32, the second half of a 4 x 3 one.
Manifest with_a_file() {
  Manifest manifest = example_manifest(2);
  manifest.job_step = 1000;
  manifest.files = {{"model/shard-00002-model-00001-of-00001.safetensors",
                     224,
                     {0x0123456789abcdefU, 0x23U},
                     {{"bias", Dtype::F32, {2, 3}, {2, 0}, {0xaU, 0xfedcba9876543210U}}}}};
  return manifest;
}

TEST(Digest, IsXxh3With128Bits) {
  // From the reference implementation (xxhsum -H2).
  EXPECT_EQ(to_hex(digest_of({})), "99aa06d3014798d86001c324468d497f");
  const std::string text(1000, 'x');
  RunningDigest running;
  for (size_t begin = 0; begin < text.size(); begin += 7)
    running.add(
        std::as_bytes(std::span(text)).subspan(begin, std::min<size_t>(7, text.size() - begin)));
  EXPECT_EQ(running.value(), digest_of(std::as_bytes(std::span(text))));
  EXPECT_EQ(read_digest("99aa06d3014798d86001c324468d497f"), digest_of({}));
  EXPECT_EQ(read_digest("99AA06d3014798d86001c324468d497f"), std::nullopt);
  EXPECT_EQ(read_digest("99aa06d3014798d86001c324468d497"), std::nullopt);
}

TEST(Manifest, EveryFieldComesBack) {
  Manifest manifest = with_a_file();
  manifest.parameters.push_back({"head", {7, 6}, ElementType::f16, 0, MatrixView::leading, true});
  manifest.parameters.push_back({"scale", {}, ElementType::f64, 0, MatrixView::leading, false});
  const Manifest again = parse_manifest(format_manifest(manifest));
  EXPECT_EQ(again.job_step, 1000);
  EXPECT_EQ(again.skipped_steps, 3);
  EXPECT_EQ(again.world_size, 2);
  EXPECT_EQ(again.written, "2026-11-27T08:00:00Z");
  EXPECT_EQ(again.version, "0.1.0");
  ASSERT_EQ(again.parameters.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(again.parameters[i].name, manifest.parameters[i].name);
    EXPECT_EQ(again.parameters[i].shape, manifest.parameters[i].shape);
    EXPECT_EQ(again.parameters[i].type, manifest.parameters[i].type);
    EXPECT_EQ(again.parameters[i].group, manifest.parameters[i].group);
    EXPECT_EQ(again.parameters[i].matrix_view, manifest.parameters[i].matrix_view);
    EXPECT_EQ(again.parameters[i].transposed, manifest.parameters[i].transposed);
  }
  ASSERT_EQ(again.groups.size(), 2u);
  EXPECT_EQ(describe(again.groups[0].options), describe(manifest.groups[0].options));
  EXPECT_EQ(describe(again.groups[1].options), describe(manifest.groups[1].options));
  EXPECT_EQ(again.groups[0].lr_pin, std::nullopt);
  EXPECT_EQ(again.groups[1].lr_pin, 0.25);
  EXPECT_EQ(again.max_grad_norm, 1.5);
  EXPECT_EQ(again.lr_scale, 0.5);
  EXPECT_EQ(again.active_revision, 4);
  EXPECT_EQ(again.known_revision, 6);
  EXPECT_EQ(again.chain_hash, 0xfedcba9876543210U);
  ASSERT_EQ(again.scheduled.size(), 2u);
  EXPECT_EQ(again.scheduled[0].revision, 5);
  EXPECT_EQ(again.scheduled[0].effective_step, 1200);
  EXPECT_EQ(again.scheduled[0].field, changes::Field::weight_decay);
  EXPECT_EQ(again.scheduled[0].group, 1);
  EXPECT_EQ(again.scheduled[0].value, 0.01);
  EXPECT_EQ(again.scheduled[1].group, -1);
  EXPECT_EQ(again.values, manifest.values);
  ASSERT_EQ(again.files.size(), 1u);
  EXPECT_EQ(again.files[0].path, manifest.files[0].path);
  EXPECT_EQ(again.files[0].bytes, 224);
  EXPECT_EQ(again.files[0].header, manifest.files[0].header);
  ASSERT_EQ(again.files[0].parts.size(), 1u);
  const StoredPart& part = again.files[0].parts[0];
  EXPECT_EQ(part.name, "bias");
  EXPECT_EQ(part.dtype, Dtype::F32);
  EXPECT_EQ(part.shape, (Sizes{2, 3}));
  EXPECT_EQ(part.offsets, (Sizes{2, 0}));
  EXPECT_EQ(part.digest, (Digest{0xaU, 0xfedcba9876543210U}));
  EXPECT_EQ(header_bytes_of(again.files[0]), 200);
  EXPECT_EQ(format_manifest(again), format_manifest(manifest));
}

TEST(Manifest, AbsentThingsComeBackAbsent) {
  Manifest manifest;
  manifest.groups = {{preset("recommended", 0), std::nullopt}};
  const Manifest again = parse_manifest(format_manifest(manifest));
  EXPECT_EQ(again.max_grad_norm, std::nullopt);
  EXPECT_EQ(again.lr_scale, 1);
  EXPECT_EQ(again.chain_hash, 0u);
  EXPECT_TRUE(again.parameters.empty() && again.scheduled.empty() && again.values.empty() &&
              again.files.empty());
}

TEST(Manifest, OneFromBeforeThereWasLowPrecisionHasMasters) {
  Manifest manifest;
  manifest.groups = {{preset("recommended", 0.1), std::nullopt}};
  std::string text = format_manifest(manifest);
  const std::string field = R"("low_precision":"master",)";
  const size_t at = text.find(field);
  ASSERT_NE(at, std::string::npos) << text;
  text.erase(at, field.size());
  EXPECT_EQ(parse_manifest(signed_again(text)).groups[0].options.low_precision,
            LowPrecision::master);
}

TEST(Manifest, ANormThatIsKnownComesBack) {
  Manifest manifest;
  EXPECT_EQ(format_manifest(manifest).find("gradient_norm"), std::string::npos);
  for (const double norm : {0.0, 1.0 / 3, 1e300}) {
    manifest.gradient_norm = norm;
    EXPECT_EQ(parse_manifest(format_manifest(manifest)).gradient_norm, norm);
  }
  manifest.gradient_norm = std::numeric_limits<double>::infinity();
  EXPECT_EQ(parse_manifest(format_manifest(manifest)).gradient_norm, 0);
}

TEST(Manifest, ALossScaleComesBackWhereItIsDynamic) {
  Manifest manifest;
  EXPECT_EQ(format_manifest(manifest).find("loss_scale"), std::string::npos);
  EXPECT_EQ(parse_manifest(format_manifest(manifest)).loss_scale, std::nullopt);
  for (const float scale : {1.0F, 65536.0F, 1.0F / 3, 3.0e38F}) {
    manifest.loss_scale = {.scale = scale, .good_steps = 7, .skipped_in_a_row = 2};
    EXPECT_EQ(parse_manifest(format_manifest(manifest)).loss_scale, manifest.loss_scale);
  }
}

TEST(Manifest, ALossScaleThatCannotBeOneIsRefused) {
  Manifest manifest;
  manifest.loss_scale = {.scale = 4, .good_steps = 7};
  const std::string text = format_manifest(manifest), scale = R"("scale":4.0)";
  for (const char* bad : {R"("scale":0.0)", R"("scale":-4.0)", R"("scale":1e39)"}) {
    std::string changed = text;
    const size_t at = changed.find(scale);
    ASSERT_NE(at, std::string::npos) << text;
    changed.replace(at, scale.size(), bad);
    EXPECT_THAT([&] { parse_manifest(signed_again(changed)); },
                ThrowsMessage<DataError>(HasSubstr("'scale' must be above 0")));
  }
}

TEST(Manifest, EveryOptionComesBackFromAnotherValue) {
  // Set field by field to what is not its default.
  Options options = preset("recommended", 0.1);
  options.accumulator = Accumulator::sm3;
  options.denominator = Denominator::global;
  options.decay = Decay::power;
  options.momentum = Momentum::heavy_ball;
  options.momentum_at = MomentumAt::gradient;
  options.mask = Mask::off;
  options.mask_scope = MaskScope::matrices;
  options.hessian_source = HessianSource::raw;
  options.momentum_dtype = MomentumDtype::bf16;
  options.nonfinite = Nonfinite::propagate;
  options.matrix_view = MatrixView::last_two;
  options.low_precision = LowPrecision::stochastic;
  options.centralize = !options.centralize;
  options.use_rms = true;
  options.eps = 1.0 / 3;
  options.beta_cap = 0.999;
  Manifest manifest;
  manifest.groups = {{options, std::nullopt}};
  Options again = parse_manifest(format_manifest(manifest)).groups[0].options;
  int fields = 0;
  visit_options(options, [&](const char* name, const auto& wanted) {
    visit_options(again, [&](const char* other, const auto& found) {
      if constexpr (std::is_same_v<decltype(wanted), decltype(found)>) {
        if (std::string_view(name) != other) return;
        EXPECT_EQ(found, wanted) << name;
        ++fields;
      }
    });
  });
  EXPECT_EQ(fields, 24);
}

TEST(Manifest, NumbersComeBackToTheBit) {
  for (const double value :
       {0.1, 1.0 / 3, 1e-8, 5e-324, 2.2250738585072014e-308, 1e300, 0.0, 9007199254740993.0,
        1.7976931348623157e308, 3.0, 1e22, 123456789.123456789}) {
    Manifest manifest;
    manifest.lr_scale = value;
    manifest.max_grad_norm = value;
    const Manifest again = parse_manifest(format_manifest(manifest));
    EXPECT_EQ(std::bit_cast<uint64_t>(again.lr_scale), std::bit_cast<uint64_t>(value));
    EXPECT_EQ(std::bit_cast<uint64_t>(*again.max_grad_norm), std::bit_cast<uint64_t>(value));
  }
  std::mt19937_64 random(test_seed(20261127));
  for (int i = 0; i < 2000; ++i) {
    const auto value = std::bit_cast<double>(random() >> 1);  // not negative
    if (!std::isfinite(value)) continue;
    Manifest manifest;
    manifest.lr_scale = value;
    EXPECT_EQ(std::bit_cast<uint64_t>(parse_manifest(format_manifest(manifest)).lr_scale),
              std::bit_cast<uint64_t>(value));
  }
}

TEST(Manifest, IsReadByPeople) {
  const std::string text = format_manifest(with_a_file());
  EXPECT_THAT(text,
              testing::StartsWith("{\n  \"format\": \"fusedbun.checkpoint\",\n  \"version\": 1,\n"
                                  "  \"job_step\": 1000,\n"));
  EXPECT_THAT(
      text,
      HasSubstr("\n    {\"name\":\"wte.weight\",\"shape\":[6,7],\"type\":\"bf16\",\"group\":0,"
                "\"matrix_view\":\"leading\",\"transposed\":false},\n"));
  EXPECT_THAT(text, HasSubstr("\n  \"chain_hash\": \"fedcba9876543210\",\n"));
  EXPECT_THAT(text, HasSubstr("\n    \"epoch\": \"3\",\n"));
  EXPECT_THAT(
      text,
      HasSubstr("\n      {\"name\":\"bias\",\"dtype\":\"F32\",\"shape\":[2,3],\"offsets\":[2,0],"
                "\"xxh3_128\":\"000000000000000afedcba9876543210\"}\n    ]}\n"));
}

TEST(Manifest, EndsWithTheDigestThatFormatMdSays) {
  const std::string text = format_manifest(with_a_file());
  const std::string body = text.substr(0, text.size() - 53);
  EXPECT_EQ(text.substr(text.size() - 36, 32), to_hex(digest_of(std::as_bytes(std::span(body)))));
  EXPECT_THAT(body, testing::EndsWith("\n  ]"));
}

TEST(Manifest, WhatJsonCannotHoldIsRefusedWhenSaved) {
  Manifest manifest = example_manifest(1);
  manifest.groups[1].options.lr = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT([&] { format_manifest(manifest); },
              ThrowsMessage<ConfigError>(HasSubstr("group 1: lr = nan")));
  manifest = example_manifest(1);
  manifest.values["state"] = "\xFF";
  EXPECT_THAT(
      [&] { format_manifest(manifest); },
      ThrowsMessage<ConfigError>(HasSubstr("the value 'state' of the program cannot be saved")));
}

struct Refusal {
  std::string name;
  std::string from, to;  ///< the first `from` of the text becomes `to`
  std::string why;
};
void PrintTo(const Refusal& refusal, std::ostream* out) {
  *out << refusal.name;
}

std::vector<Refusal> refusals() {
  const std::string path = "model/shard-00002-model-00001-of-00001.safetensors";
  const std::string part =
      "{\"name\":\"bias\",\"dtype\":\"F32\",\"shape\":[2,3],\"offsets\":[2,0],"
      "\"xxh3_128\":\"000000000000000afedcba9876543210\"}";
  const std::string shape = "\"dtype\":\"F32\",\"shape\":[2,3],\"offsets\":[2,0]";
  const auto bad_path = [&](const std::string& name, const std::string& other) {
    return Refusal{"path_" + name, path, other, "its path must be of the form"};
  };
  return {
      {"other_format", "fusedbun.checkpoint", "fusedbun.run", "does not begin as a manifest does"},
      {"version_0", "\"version\": 1", "\"version\": 0",
       "has version 0 of the format, and this program reads version 1"},
      {"version_2", "\"version\": 1", "\"version\": 2",
       "has version 2 of the format, and this program reads version 1"},
      {"version_12", "\"version\": 1", "\"version\": 12", "has version 12 of the format"},
      {"version_text", "\"version\": 1", "\"version\": \"1\"", "version"},
      {"not_json", "\"job_step\": 1000", "\"job_step\" 1000", "no JSON in UTF-8"},
      {"not_utf8", "\"epoch\"", "\"\xC0\x80\"", "no JSON in UTF-8"},
      {"nul", "\"epoch\"", std::string("\"\0\"", 3), "NUL byte"},
      {"after_the_end", "\"world_size\": 2,", "\"world_size\": 2},", "no JSON in UTF-8"},
      {"deep", "\"values\": {", "\"values\": {\"deep\": " + std::string(200'000, '['),
       "nested too deep"},
      {"field_missing", "  \"world_size\": 2,\n", "", "the field 'world_size' is missing"},
      {"field_twice", "\"world_size\": 2,", "\"world_size\": 2, \"world_size\": 2,",
       "'world_size' is there twice"},
      {"field_unknown", "\"world_size\": 2,", "\"world_size\": 2, \"x\": [1],",
       "the field 'x' is unknown"},
      {"parameter_field_twice", "\"group\":0", "\"group\":0,\"group\":0", "'group' is there twice"},
      {"parameter_field_unknown", "\"group\":0", "\"group\":0,\"x\":0",
       "parameter 'wte.weight': the field 'x' is unknown"},
      {"parameter_field_missing", "\"group\":0,", "",
       "parameter 'wte.weight': the field 'group' is missing"},
      {"part_field_twice", "\"offsets\":[2,0]", "\"offsets\":[2,0],\"offsets\":[2,0]",
       "'offsets' is there twice"},
      {"part_field_unknown", "\"offsets\":[2,0]", "\"offsets\":[2,0],\"x\":0",
       "tensor 'bias': the field 'x' is unknown"},
      {"file_field_unknown", "\"bytes\":224", "\"bytes\":224,\"x\":0", "the field 'x' is unknown"},
      {"value_twice", "\"epoch\": \"3\"", "\"epoch\": \"3\", \"epoch\": \"3\"",
       "'epoch' is there twice"},
      {"value_number", "\"epoch\": \"3\"", "\"epoch\": 3", "value 'epoch' must be a text"},
      {"values_list", "\"values\": {", "\"values\": [], \"v\": {", "'values' must be an object"},
      {"step_negative", "\"job_step\": 1000", "\"job_step\": -1",
       "'job_step' must be a whole number from 0"},
      {"step_fraction", "\"job_step\": 1000", "\"job_step\": 1000.0",
       "'job_step' must be a whole number"},
      {"step_huge", "\"job_step\": 1000", "\"job_step\": 9223372036854775808",
       "'job_step' must be a whole number"},
      {"step_beyond_64_bits", "\"job_step\": 1000", "\"job_step\": 99999999999999999999",
       "'job_step' must be a whole number"},
      {"step_text", "\"job_step\": 1000", "\"job_step\": \"1000\"",
       "'job_step' must be a whole number"},
      {"world_of_none", "\"world_size\": 2", "\"world_size\": 0",
       "'world_size' must be a whole number from 1"},
      {"written_number", "\"written\": \"2026-11-27T08:00:00Z\"", "\"written\": 2026",
       "'written' must be a text"},
      {"parameters_object", "\"parameters\": [", "\"parameters\": {}, \"p\": [",
       "'parameters' must be a list"},
      {"parameters_numbers", "\"parameters\": [", "\"parameters\": [1,",
       "'parameters' must be a list of objects"},
      {"parameter_twice", "\"name\":\"bias\",\"shape\"", "\"name\":\"wte.weight\",\"shape\"",
       "parameter 'wte.weight' is there twice"},
      {"parameter_of_no_group", "\"group\":1", "\"group\":2", "of group 2, and there are 2"},
      {"parameter_type", "\"type\":\"bf16\"", "\"type\":\"f8\"",
       "'type' must be f32, f64, bf16 or f16"},
      {"parameter_view", "\"matrix_view\":\"leading\",\"tr", "\"matrix_view\":\"x\",\"tr",
       "parameter 'wte.weight': 'matrix_view'"},
      {"parameter_flag", "\"transposed\":false", "\"transposed\":0",
       "'transposed' must be true or false"},
      {"vector_transposed", "\"last_two\",\"transposed\":false", "\"last_two\",\"transposed\":true",
       "only a parameter of two dimensions"},
      {"parameter_shape_overflows", "\"shape\":[6,7]", "\"shape\":[4294967296,4294967296]",
       "overflows"},
      {"parameter_name_empty", "\"name\":\"wte.weight\"", "\"name\":\"\"",
       "must be a name of 1 to 4096 bytes"},
      {"parameter_name_long", "\"name\":\"wte.weight\"",
       "\"name\":\"" + std::string(4097, 'n') + "\"", "must be a name of 1 to 4096 bytes"},
      {"option_twice", "\"centralize_single_column\":false",
       "\"centralize_single_column\":false,\"lr\":1", "'lr' is there twice"},
      {"last_option_twice", "\"centralize_single_column\":false",
       "\"centralize_single_column\":false,\"centralize_single_column\":false",
       "'centralize_single_column' is there twice"},
      {"option_missing", "\"lr\":0.1,", "", "group 0: options: the field 'lr' is missing"},
      {"option_unknown", "\"lr\":0.1,", "\"lr\":0.1,\"x\":1,",
       "group 0: options: the field 'x' is unknown"},
      {"option_out_of_range", "\"lr\":0.1,", "\"lr\":-0.1,", "group 0: options: lr"},
      {"option_null", "\"lr\":0.1,", "\"lr\":null,", "'lr' must be a finite number"},
      {"option_infinite", "\"lr\":0.1,", "\"lr\":1e999,", "number overflow"},
      {"option_text", "\"mask\":\"zero\"", "\"mask\":\"some\"", "options: 'mask': mask = 'some'"},
      {"option_number_for_flag", "\"prepare_hessian\":false", "\"prepare_hessian\":0",
       "'prepare_hessian' must be true or false"},
      {"pin_negative", "\"lr_pin\":0.25", "\"lr_pin\":-0.25", "'lr_pin' must not be negative"},
      {"norm_negative", "\"max_grad_norm\": 1.5", "\"max_grad_norm\": -1.5",
       "'max_grad_norm' must not be negative"},
      {"scale_null", "\"lr_scale\": 0.5", "\"lr_scale\": null",
       "'lr_scale' must be a finite number"},
      {"scale_negative", "\"lr_scale\": 0.5", "\"lr_scale\": -0.5",
       "'lr_scale' must not be negative"},
      {"hash_short", "fedcba9876543210\",", "edcba9876543210\",",
       "'chain_hash' must be 16 hexadecimal digits"},
      {"hash_number", "\"fedcba9876543210\",", "1,", "'chain_hash' must be a text"},
      {"hash_upper_case", "fedcba9876543210\",", "Fedcba9876543210\",",
       "'chain_hash' must be 16 hexadecimal digits"},
      {"change_of_nothing", "\"field\":\"weight_decay\"", "\"field\":\"cancel\"",
       "'cancel' cannot be changed"},
      {"change_by_other_name", "\"field\":\"weight_decay\"", "\"field\":\"Lambda\"",
       "'Lambda' cannot be changed"},
      {"change_of_no_group", "\"group\":1,\"value\"", "\"group\":2,\"value\"",
       "'group' must be a whole number from -1 to 1"},
      {"change_of_a_group_for_the_job", "\"group\":-1,\"value\"", "\"group\":0,\"value\"",
       "'group' must be a whole number from -1 to -1"},
      {"change_out_of_range", "\"value\":0.01", "\"value\":-0.01",
       "'value' is out of the field's range"},
      {"change_revision", "\"revision\":5", "\"revision\":0",
       "'revision' must be a whole number from 1"},
      {"files_object", "\"files\": [", "\"files\": {}, \"f\": [", "'files' must be a list"},
      {"files_numbers", "\"files\": [", "\"files\": [1,", "'files' must be a list of objects"},
      {"parts_numbers", "\"parts\":[", "\"parts\":[1,", "'parts' must be a list of objects"},
      {"parts_object", "\"parts\":[", "\"parts\":{},\"p\":[", "'parts' must be a list"},
      bad_path("up", "model/../shard-00002-model-00001-of-00001.safetensors"),
      bad_path("out", "../" + path),
      bad_path("absolute", "/" + path),
      bad_path("elsewhere", "secrets/shard-00002-model-00001-of-00001.safetensors"),
      bad_path("folder", "model"),
      bad_path("folder_alone", "model/"),
      bad_path("no_folder", "shard-00002-model-00001-of-00001.safetensors"),
      bad_path("deeper", "model/x/shard-00002-model-00001-of-00001.safetensors"),
      bad_path("other_name", "optimizer/passwd"),
      bad_path("companion_elsewhere", "model/../passwd"),
      {"companion_with_tensors", path, "model/config.json", "it can hold no tensors"},
      bad_path("rank_0", "model/shard-00000-model-00001-of-00001.safetensors"),
      bad_path("file_0", "model/shard-00001-model-00000-of-00001.safetensors"),
      bad_path("file_2_of_1", "model/shard-00001-model-00002-of-00001.safetensors"),
      bad_path("other_digits", "model/shard-2-model-00001-of-00001.safetensors"),
      bad_path("negative", "model/shard--0002-model-00001-of-00001.safetensors"),
      bad_path("huge", "model/shard-99999999999-model-00001-of-00001.safetensors"),
      bad_path("nothing", ""),
      bad_path("more", path + "x"),
      {"bytes_negative", "\"bytes\":224", "\"bytes\":-224", "'bytes' must be a whole number"},
      {"bytes_too_few", "\"bytes\":224", "\"bytes\":23", "bytes are too few for its tensors"},
      {"bytes_without_header", "\"bytes\":224", "\"bytes\":32", "leave 8 bytes for the header"},
      {"bytes_of_giant_header", "\"bytes\":224", "\"bytes\":100000033",
       "leave 100000009 bytes for the header"},
      {"header_digest", "\"header\":\"0123456789abcdef", "\"header\":\"012345678 abcdef",
       "'header' must be 32 hexadecimal digits"},
      {"dtype_unknown", "\"dtype\":\"F32\"", "\"dtype\":\"Q8\"",
       "tensor 'bias': 'dtype' must be one of"},
      {"dtype_that_torch_misreads", "\"dtype\":\"F32\"", "\"dtype\":\"BOOL\"",
       "tensor 'bias': 'dtype' must be one of"},
      {"shape_negative", shape, "\"dtype\":\"F32\",\"shape\":[-2,3],\"offsets\":[2,0]",
       "'shape' must be a whole number from 0"},
      {"shape_overflows", shape,
       "\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"offsets\":[2,0]", "overflows"},
      {"shape_overflows_in_bits", shape,
       "\"dtype\":\"F32\",\"shape\":[1152921504606846976],\"offsets\":[0]", "overflows"},
      {"rank_9", shape, "\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"offsets\":[2,0]",
       "'shape' must have at most 8 numbers"},
      {"offsets_of_other_rank", shape, "\"dtype\":\"F32\",\"shape\":[2,3],\"offsets\":[2]",
       "as many numbers"},
      {"offset_negative", shape, "\"dtype\":\"F32\",\"shape\":[2,3],\"offsets\":[2,-1]",
       "'offsets' must be a whole number"},
      {"offset_overflows", shape,
       "\"dtype\":\"F32\",\"shape\":[2,3],\"offsets\":[9223372036854775807,0]",
       "beyond what a number can hold"},
      {"part_digest", "\"xxh3_128\":\"000000000000000a", "\"xxh3_128\":\"00000000000000a",
       "'xxh3_128' must be 32 hexadecimal digits"},
      {"part_name_metadata", "\"name\":\"bias\",\"dtype\"", "\"name\":\"__metadata__\",\"dtype\"",
       "other than '__metadata__'"},
      {"part_name_long", "\"name\":\"bias\",\"dtype\"",
       "\"name\":\"" + std::string(4097, 'n') + "\",\"dtype\"",
       "must be a name of 1 to 4096 bytes"},
      {"digest_twice", ",\n  \"files\"", ",\n  \"xxh3_128\": \"\",\n  \"files\"",
       "'xxh3_128' is there twice"},
  };
}

class ManifestRefusal : public testing::TestWithParam<Refusal> {};

TEST_P(ManifestRefusal, SaysWhichRule) {
  std::string text = format_manifest(with_a_file());
  const size_t at = text.find(GetParam().from);
  ASSERT_NE(at, text.npos);
  text.replace(at, GetParam().from.size(), GetParam().to);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT([&] { parse_manifest(signed_again(text)); },
              ThrowsMessage<DataError>(HasSubstr(GetParam().why)));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
  EXPECT_THAT([&] { parse_manifest(text); }, ThrowsMessage<DataError>(HasSubstr("digest")))
      << "changed without a new digest";
}
INSTANTIATE_TEST_SUITE_P(Rules, ManifestRefusal, testing::ValuesIn(refusals()),
                         [](const auto& info) { return info.param.name; });

TEST(Manifest, RefusesAFileThatIsThereTwice) {
  Manifest manifest = with_a_file();
  manifest.files.push_back(manifest.files[0]);
  EXPECT_THAT([&] { parse_manifest(format_manifest(manifest)); },
              ThrowsMessage<DataError>(HasSubstr("is there twice")));
}

TEST(Manifest, RefusesPartsWhoseSizesAddUpBeyondANumber) {
  Manifest manifest = with_a_file();
  StoredPart& part = manifest.files[0].parts[0];
  part = {"a", Dtype::U8, {int64_t{1} << 59}, {0}, {}};
  manifest.files[0].parts.resize(64, part);  // 2^65 bytes
  manifest.files[0].bytes = 1000;
  EXPECT_THAT([&] { parse_manifest(format_manifest(manifest)); },
              ThrowsMessage<DataError>(HasSubstr("too few for its tensors")));
  manifest.files[0].bytes = std::numeric_limits<int64_t>::max();
  EXPECT_THAT([&] { parse_manifest(format_manifest(manifest)); },
              ThrowsMessage<DataError>(HasSubstr("too few for its tensors")));
}

TEST(Manifest, RefusesMoreThanAMillionTensors) {
  const std::string part =
      "{\"name\":\"a\",\"dtype\":\"U8\",\"shape\":[],\"offsets\":[],"
      "\"xxh3_128\":\"00000000000000000000000000000000\"}";
  std::string text = format_manifest(with_a_file());
  const size_t begin = text.find("{\"name\":\"bias\",\"dtype\"");
  std::string parts = part;
  for (int i = 0; i < 1'000'000; ++i) parts += ",\n" + part;
  text.replace(begin, text.find("\n    ]}", begin) - begin, parts);
  EXPECT_THAT([&] { parse_manifest(signed_again(text)); },
              ThrowsMessage<DataError>(HasSubstr("more than 1000000 tensors")));
}

TEST(Manifest, RefusesListsThatWouldFillTheMemory) {
  std::string text = format_manifest(with_a_file());
  std::string numbers;
  for (int i = 0; i < 4'000'001; ++i) numbers += "1,";
  text.replace(text.find("\"world_size\""), 0, "\"x\": [" + numbers + "1], ");
  EXPECT_THAT([&] { parse_manifest(signed_again(text)); },
              ThrowsMessage<DataError>(HasSubstr("too many values")));
}

TEST(Manifest, EveryTruncationAndEveryBitIsFound) {
  const std::string whole = format_manifest(with_a_file());
  for (size_t bytes = 0; bytes < whole.size(); ++bytes)
    EXPECT_THROW(parse_manifest(std::string_view(whole).substr(0, bytes)), DataError) << bytes;
  EXPECT_THROW(parse_manifest(whole + "\n"), DataError);
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    EXPECT_THROW(parse_manifest(damaged), DataError) << bit;
  }
}

TEST(ShardPath, IsThatOfTorch) {
  EXPECT_EQ(shard_path(kModelFolder, 1, 1, 1),
            "model/shard-00002-model-00001-of-00001.safetensors");
  EXPECT_EQ(shard_path(kOptimizerFolder, 99'999, 2, 3),
            "optimizer/shard-100000-model-00002-of-00003.safetensors");
  EXPECT_TRUE(is_shard_path("optimizer/shard-100000-model-00002-of-00003.safetensors"));
}

}  // namespace
}  // namespace fusedbun::checkpoint
