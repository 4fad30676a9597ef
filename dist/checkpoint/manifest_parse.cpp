#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <type_traits>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/core/option_fields.h"
#include "fusedbun/dist/checkpoint/manifest.h"
#include "fusedbun/dist/checkpoint/manifest_words.h"
#include "fusedbun/dist/checkpoint/safetensors_header.h"
#include "fusedbun/dist/checkpoint/shard_file.h"
#include "fusedbun/dist/plan/hex.h"
#include "fusedbun/dist/plan/parameter_spec.h"

namespace fusedbun::checkpoint {
namespace {

using Json = nlohmann::json;
using Event = Json::parse_event_t;

constexpr int64_t kWholeMax = std::numeric_limits<int64_t>::max();
/// Deepest list or object: the shape of a part of a file of the list `files`.
constexpr int kDepthMax = 5;
/// Of what is kept as JSON until the end: everything but parameters and files.
constexpr int64_t kKeptValuesMax = 4'000'000;

std::string in_quotes(std::string_view text) {
  return "'" + std::string(text.substr(0, 80)) + "'";
}

/// The fields of one object; each must be asked for, and there may be no others.
class Fields {
 public:
  Fields(const Json& object, std::string subject) : object_(object), subject_(std::move(subject)) {
    if (!object.is_object()) refuse("an object is expected");
  }

  [[noreturn]] void refuse(const std::string& what) const {
    throw DataError(subject_ + ": " + what);
  }
  void name_subject(const std::string& subject) { subject_ = subject; }

  const Json& at(const char* field) {
    const auto found = object_.find(field);
    if (found == object_.end()) refuse("the field '" + std::string(field) + "' is missing");
    known_.push_back(field);
    return *found;
  }
  bool has(const char* field) const { return object_.contains(field); }
  const Json& list(const char* field) {
    const Json& value = at(field);
    if (!value.is_array()) refuse("'" + std::string(field) + "' must be a list");
    return value;
  }
  int64_t whole(const char* field, int64_t min = 0, int64_t max = kWholeMax) {
    return whole_of(at(field), field, min, max);
  }
  int64_t whole_of(const Json& value, const char* field, int64_t min, int64_t max) const {
    // A number of 2^63 or more is unsigned, and its signed value negative.
    const int64_t number = value.is_number_integer() ? value.get<int64_t>() : min - 1;
    const bool wraps = value.is_number_unsigned() && number < 0;
    if (!value.is_number_integer() || wraps || number < min || number > max)
      refuse("'" + std::string(field) + "' must be a whole number from " + std::to_string(min) +
             " to " + std::to_string(max));
    return number;
  }
  double number(const char* field) {
    const Json& value = at(field);
    if (!value.is_number() || !std::isfinite(value.get<double>()))
      refuse("'" + std::string(field) + "' must be a finite number");
    return value.get<double>();
  }
  std::optional<double> number_or_null(const char* field) {
    if (const auto found = object_.find(field); found != object_.end() && found->is_null()) {
      known_.push_back(field);
      return std::nullopt;
    }
    return number(field);
  }
  bool flag(const char* field) {
    const Json& value = at(field);
    if (!value.is_boolean()) refuse("'" + std::string(field) + "' must be true or false");
    return value.get<bool>();
  }
  const std::string& text(const char* field) {
    const Json& value = at(field);
    if (!value.is_string()) refuse("'" + std::string(field) + "' must be a text");
    return value.get_ref<const std::string&>();
  }
  std::string name(const char* field) {
    const std::string& value = text(field);
    if (value.empty() || value.size() > kNameBytesMax || value == "__metadata__")
      refuse("'" + std::string(field) +
             "' must be a name of 1 to 4096 bytes, other than '__metadata__'");
    return value;
  }
  Digest digest(const char* field) {
    const auto digest = read_digest(text(field));
    if (!digest) refuse("'" + std::string(field) + "' must be 32 hexadecimal digits in lower case");
    return *digest;
  }
  std::vector<int64_t> sizes(const char* field) {
    const Json& values = list(field);
    if (values.size() > kRankMax)
      refuse("'" + std::string(field) + "' must have at most 8 numbers");
    std::vector<int64_t> sizes;
    for (const Json& value : values) sizes.push_back(whole_of(value, field, 0, kWholeMax));
    return sizes;
  }
  template <class Enum>
  Enum choice(const char* field) {
    try {
      return parse<Enum>(text(field));
    } catch (const ConfigError& error) {
      refuse("'" + std::string(field) + "': " + error.what());
    }
  }

  void end() const {
    if (object_.size() == known_.size()) return;
    for (const auto& field : object_.items()) {
      if (std::ranges::find(known_, field.key()) == known_.end())
        refuse("the field " + in_quotes(field.key()) + " is unknown");
    }
  }

 private:
  const Json& object_;
  std::string subject_;
  std::vector<std::string_view> known_;
};

ElementType element_type_of(Fields& fields, const char* field) {
  const std::string& name = fields.text(field);
  for (const ElementType type :
       {ElementType::f32, ElementType::f64, ElementType::bf16, ElementType::f16}) {
    if (plan::name_of(type) == name) return type;
  }
  fields.refuse("'" + std::string(field) + "' must be f32, f64, bf16 or f16");
}

StoredParameter parameter_of(const Json& json, size_t number) {
  Fields fields(json, "parameter " + std::to_string(number));
  StoredParameter parameter;
  parameter.name = fields.name("name");
  fields.name_subject("parameter " + in_quotes(parameter.name));
  parameter.shape = fields.sizes("shape");
  parameter.type = element_type_of(fields, "type");
  parameter.group = static_cast<int>(fields.whole("group", 0, std::numeric_limits<int>::max()));
  parameter.matrix_view = fields.choice<MatrixView>("matrix_view");
  parameter.transposed = fields.flag("transposed");
  fields.end();
  if (parameter.transposed && parameter.shape.size() != 2)
    fields.refuse("only a parameter of two dimensions can be stored transposed");
  try {
    tensor_bytes(Dtype::F64, parameter.shape);
  } catch (const DataError& error) {
    fields.refuse(error.what());
  }
  return parameter;
}

LossScaleState loss_scale_of(const Json& json) {
  Fields fields(json, "loss_scale");
  const double scale = fields.number("scale");
  if (scale <= 0 || scale > std::numeric_limits<float>::max())
    fields.refuse("'scale' must be above 0, and no more than float32 can hold");
  const LossScaleState state{.scale = static_cast<float>(scale),
                             .good_steps = fields.whole("good_steps"),
                             .skipped_in_a_row = fields.whole("skipped_in_a_row")};
  fields.end();
  return state;
}

StoredGroup group_of(const Json& json, size_t number) {
  const std::string subject = "group " + std::to_string(number);
  Fields fields(json, subject);
  StoredGroup group;
  Fields options(fields.at("options"), subject + ": options");
  visit_options(group.options, [&](const char* name, auto& field) {
    using Field = std::decay_t<decltype(field)>;
    // What was saved before there was this option was made as its default makes it.
    if (name == std::string_view("low_precision") && !options.has(name)) return;
    if constexpr (std::is_enum_v<Field>) {
      field = options.choice<Field>(name);
    } else if constexpr (std::is_same_v<Field, double>) {
      field = options.number(name);
    } else {
      field = options.flag(name);
    }
  });
  options.end();
  try {
    validate(group.options);
  } catch (const ConfigError& error) {
    options.refuse(error.what());
  }
  group.lr_pin = fields.number_or_null("lr_pin");
  if (group.lr_pin && *group.lr_pin < 0) fields.refuse("'lr_pin' must not be negative");
  fields.end();
  return group;
}

changes::ChangeEntry change_of(const Json& json, int64_t group_count) {
  Fields fields(json, "a scheduled change");
  changes::ChangeEntry change;
  change.revision = fields.whole("revision", 1);
  fields.name_subject("the scheduled change of revision " + std::to_string(change.revision));
  change.effective_step = fields.whole("effective_step");
  const std::string& name = fields.text("field");
  const auto spec = changes::find_field(name);
  if (!spec || spec->name != name)
    fields.refuse("'field': " + in_quotes(name) + " cannot be changed");
  change.field = spec->field;
  change.group =
      static_cast<int32_t>(fields.whole("group", -1, spec->per_group ? group_count - 1 : -1));
  change.value = fields.number("value");
  if (!changes::allows(*spec, change.value)) fields.refuse("'value' is out of the field's range");
  fields.end();
  return change;
}

/// Reads a part, and makes sure that no number about it can overflow.
StoredPart part_of(const Json& json, size_t number) {
  Fields fields(json, "tensor " + std::to_string(number) + " of a file");
  StoredPart part;
  part.name = fields.name("name");
  fields.name_subject("tensor " + in_quotes(part.name));
  const auto dtype = find_storable(fields.text("dtype"));
  if (!dtype) fields.refuse("'dtype' must be one of " + storable_names());
  part.dtype = *dtype;
  part.shape = fields.sizes("shape");
  part.offsets = fields.sizes("offsets");
  part.digest = fields.digest(kDigestField.data());
  fields.end();
  if (part.offsets.size() != part.shape.size())
    fields.refuse("'shape' and 'offsets' must have as many numbers");
  int64_t end = 0;
  for (size_t i = 0; i < part.shape.size(); ++i) {
    if (__builtin_add_overflow(part.shape[i], part.offsets[i], &end))
      fields.refuse("'shape' and 'offsets' reach beyond what a number can hold");
  }
  try {
    tensor_bytes(part.dtype, part.shape);
  } catch (const DataError& error) {
    fields.refuse(error.what());
  }
  return part;
}

StoredFile file_of(const Json& json, size_t number, std::vector<StoredPart> parts) {
  Fields fields(json, "file " + std::to_string(number));
  StoredFile file;
  file.path = fields.text("path");
  fields.name_subject("file " + in_quotes(file.path));
  if (!is_shard_path(file.path) && !is_companion_path(file.path))
    fields.refuse(
        "its path must be of the form model/shard-00001-model-00001-of-00001.safetensors, or "
        "model/config.json");
  file.bytes = fields.whole("bytes");
  file.header = fields.digest("header");
  // Its parts were taken out one by one.
  if (!fields.list("parts").empty()) fields.refuse("'parts' must be a list of objects");
  fields.end();
  if (is_companion_path(file.path) && !parts.empty()) fields.refuse("it can hold no tensors");
  file.parts = std::move(parts);
  static_cast<void>(header_bytes_of(file));
  return file;
}

Values values_of(const Json& json) {
  if (!json.is_object()) throw DataError("'values' must be an object");
  Values values;
  for (const auto& [name, value] : json.items()) {
    FUSEDBUN_REQUIRE(value.is_string(), DataError, "value " + in_quotes(name) + " must be a text");
    values[name] = value.get<std::string>();
  }
  return values;
}

/// The keys of one object so far. Nearly all objects have few, and there may be millions: those cost no memory of their own.
class KeysSeen {
 public:
  void clear() {
    count_ = 0;
    more_.clear();
  }
  /// False if it is there already.
  bool insert(const std::string& key) {
    for (size_t i = 0; i < count_; ++i) {
      if (few_[i] == key) return false;
    }
    if (count_ == few_.size()) return more_.insert(key).second;
    few_[count_++] = key;
    return true;
  }

 private:
  std::array<std::string, 16> few_;  ///< kept from one object to the next
  size_t count_ = 0;
  std::set<std::string> more_;
};

/// Watches a manifest while it is parsed: bounds depth and counts, refuses a key that is there twice (a tree would keep the
/// last in silence), and takes parameters, parts and files out of the tree as soon as they are whole, so that a million of
/// them need no more memory than their values.
class ManifestReader {
 public:
  /// What nlohmann calls; false: take it out of the tree.
  bool event(int depth, Event event, Json& json) {
    switch (event) {
      case Event::object_start:
      case Event::array_start:
        FUSEDBUN_REQUIRE(depth <= kDepthMax, DataError, "lists and objects are nested too deep");
        if (event == Event::object_start) keys_seen_[depth].clear();
        return true;
      case Event::key:
        return key(depth - 1, json.get_ref<const std::string&>());
      case Event::value:
        FUSEDBUN_REQUIRE(++kept_values_ <= kKeptValuesMax, DataError, "it holds too many values");
        return true;
      case Event::object_end:
        return !taken(depth, json);
      case Event::array_end:
        return true;
    }
    return true;
  }

  Manifest finish(const Json& root);

 private:
  bool key(int depth, const std::string& name) {
    keys_[depth] = name;
    FUSEDBUN_REQUIRE(keys_seen_[depth].insert(name), DataError,
                     "the field " + in_quotes(name) + " is there twice");
    return true;
  }

  bool taken(int depth, const Json& json) {
    if (depth == 4 && keys_[0] == "files" && keys_[2] == "parts") {
      FUSEDBUN_REQUIRE(++part_count_ <= kTensorsMax, DataError, "more than 1000000 tensors");
      parts_.push_back(part_of(json, parts_.size()));
    } else if (depth == 2 && keys_[0] == "files") {
      FUSEDBUN_REQUIRE(std::ssize(manifest_.files) < kTensorsMax, DataError,
                       "more than 1000000 files");
      manifest_.files.push_back(file_of(json, manifest_.files.size(), std::exchange(parts_, {})));
    } else if (depth == 2 && keys_[0] == "parameters") {
      FUSEDBUN_REQUIRE(std::ssize(manifest_.parameters) < kTensorsMax, DataError,
                       "more than 1000000 parameters");
      manifest_.parameters.push_back(parameter_of(json, manifest_.parameters.size()));
    } else {
      return false;
    }
    kept_values_ = 0;
    return true;
  }

  Manifest manifest_;
  std::vector<StoredPart> parts_;  ///< of the file that is being read
  int64_t part_count_ = 0;
  int64_t kept_values_ = 0;
  std::string keys_[kDepthMax + 1];  ///< [depth of the object]: the key that is being read
  KeysSeen keys_seen_[kDepthMax + 1];
};

/// Field by field, what lists did not give.
Manifest ManifestReader::finish(const Json& root) {
  Fields fields(root, "the manifest");
  if (fields.text("format") != kManifestFormat)
    fields.refuse("'format' must be '" + std::string(kManifestFormat) + "'");
  fields.whole("version");
  manifest_.job_step = fields.whole("job_step");
  manifest_.skipped_steps = fields.whole("skipped_steps");
  if (fields.has("gradient_norm")) manifest_.gradient_norm = fields.number("gradient_norm");
  if (fields.has("loss_scale")) manifest_.loss_scale = loss_scale_of(fields.at("loss_scale"));
  manifest_.world_size =
      static_cast<int>(fields.whole("world_size", 1, std::numeric_limits<int>::max()));
  manifest_.written = fields.text("written");
  manifest_.version = fields.text("program_version");
  if (!fields.list("parameters").empty()) fields.refuse("'parameters' must be a list of objects");
  for (const Json& group : fields.list("groups"))
    manifest_.groups.push_back(group_of(group, manifest_.groups.size()));
  manifest_.max_grad_norm = fields.number_or_null("max_grad_norm");
  if (manifest_.max_grad_norm && *manifest_.max_grad_norm < 0)
    fields.refuse("'max_grad_norm' must not be negative");
  manifest_.lr_scale = fields.number("lr_scale");
  if (manifest_.lr_scale < 0) fields.refuse("'lr_scale' must not be negative");
  manifest_.active_revision = fields.whole("active_revision");
  manifest_.known_revision = fields.whole("known_revision");
  const std::string& chain_hash = fields.text("chain_hash");
  const auto hash = plan::from_hex(chain_hash);
  if (!hash || chain_hash.size() != 16)
    fields.refuse("'chain_hash' must be 16 hexadecimal digits in lower case");
  manifest_.chain_hash = *hash;
  for (const Json& change : fields.list("scheduled"))
    manifest_.scheduled.push_back(change_of(change, std::ssize(manifest_.groups)));
  manifest_.values = values_of(fields.at("values"));
  if (!fields.list("files").empty()) fields.refuse("'files' must be a list of objects");
  fields.digest(kDigestField.data());
  fields.end();

  std::set<std::string_view> names;
  for (const StoredParameter& parameter : manifest_.parameters) {
    FUSEDBUN_REQUIRE(names.insert(parameter.name).second, DataError,
                     "parameter " + in_quotes(parameter.name) + " is there twice");
    FUSEDBUN_REQUIRE(parameter.group < std::ssize(manifest_.groups), DataError,
                     "parameter " + in_quotes(parameter.name) + " is of group " +
                         std::to_string(parameter.group) + ", and there are " +
                         std::to_string(manifest_.groups.size()));
  }
  std::set<std::string_view> paths;
  for (const StoredFile& file : manifest_.files)
    FUSEDBUN_REQUIRE(paths.insert(file.path).second, DataError,
                     "file " + in_quotes(file.path) + " is there twice");
  return std::move(manifest_);
}

/// The digest that the text ends with, after it has been compared with what is before it.
Digest checked_digest(std::string_view text) {
  const size_t ending_bytes = kBeforeDigest.size() + 32 + kAfterDigest.size();
  FUSEDBUN_REQUIRE(text.size() > ending_bytes && text.starts_with('{'), DataError,
                   "this is no manifest, or only the beginning of one");
  const std::string_view body = text.substr(0, text.size() - ending_bytes);
  const std::string_view ending = text.substr(body.size());
  FUSEDBUN_REQUIRE(
      ending.starts_with(kBeforeDigest) && ending.ends_with(kAfterDigest), DataError,
      "it does not end with its own digest: it was cut, or changed after it was written");
  const std::string_view listed = ending.substr(kBeforeDigest.size(), 32);
  const Digest digest = digest_of(std::as_bytes(std::span(body)));
  FUSEDBUN_REQUIRE(listed == to_hex(digest), DataError,
                   "its bytes are not those that were written: its digest does not fit");
  return digest;
}

/// Another version may have any fields, so it is told before they are judged.
void check_version(std::string_view text) {
  int64_t version = kManifestVersion;
  const std::string start =
      "{\n  \"format\": \"" + std::string(kManifestFormat) + "\",\n  \"version\": ";
  if (text.starts_with(start)) {
    const std::string_view rest = text.substr(start.size(), 20);
    const std::string_view digits = rest.substr(0, rest.find_first_not_of("0123456789"));
    if (digits != std::to_string(kManifestVersion))
      throw DataError("it has version " + std::string(digits) +
                      " of the format, and this program reads version " + std::to_string(version) +
                      ": load it with the program that wrote it, or a newer one");
  } else {
    throw DataError("it does not begin as a manifest does");
  }
}

}  // namespace

int64_t header_bytes_of(const StoredFile& file) {
  if (is_companion_path(file.path)) {
    FUSEDBUN_REQUIRE(file.bytes <= kCompanionBytesMax, DataError,
                     "file " + in_quotes(file.path) + ": its " + std::to_string(file.bytes) +
                         " bytes are more than such a file may have");
    return file.bytes;
  }
  int64_t rest = file.bytes;
  for (const StoredPart& part : file.parts) {
    const int64_t bytes = tensor_bytes(part.dtype, part.shape);
    // Compared before it is taken off: many parts may add up to more than a number can hold.
    FUSEDBUN_REQUIRE(bytes <= rest, DataError,
                     "file " + in_quotes(file.path) + ": its " + std::to_string(file.bytes) +
                         " bytes are too few for its tensors");
    rest -= bytes;
  }
  constexpr int64_t kPrefix = sizeof(uint64_t);
  FUSEDBUN_REQUIRE(rest > kPrefix && rest - kPrefix <= kHeaderBytesMax, DataError,
                   "file " + in_quotes(file.path) + ": its tensors leave " + std::to_string(rest) +
                       " bytes for the header, which cannot be");
  return rest;
}

Manifest parse_manifest(std::string_view text) {
  FUSEDBUN_REQUIRE(std::ssize(text) <= kManifestBytesMax, DataError,
                   "it is longer than any manifest that is read");
  const Digest digest = checked_digest(text);
  check_version(text);
  // The JSON parser takes a NUL byte for the end of its input.
  FUSEDBUN_REQUIRE(text.find('\0') == text.npos, DataError, "it holds a NUL byte");
  ManifestReader reader;
  try {
    Manifest manifest = reader.finish(Json::parse(text, [&](int depth, Event event, Json& json) {
      return reader.event(depth, event, json);
    }));
    manifest.digest = digest;
    return manifest;
  } catch (const Json::exception& error) {
    throw DataError(std::string("it is no JSON in UTF-8: ") + error.what());
  }
}

}  // namespace fusedbun::checkpoint
