#include "fusedbun/dist/checkpoint/shard_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <system_error>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/checkpoint/safetensors_header.h"

namespace fusedbun::checkpoint {
namespace {

constexpr std::array kStorable = {Dtype::U8,  Dtype::I8,  Dtype::I16, Dtype::F16, Dtype::BF16,
                                  Dtype::I32, Dtype::F32, Dtype::F64, Dtype::I64};
/// Digested and then written while it is still in the cache.
constexpr size_t kPieceBytes = size_t{4} << 20;

/// A file that is there only once it is whole and durable; on any other way it is removed.
class NewFile {
 public:
  explicit NewFile(std::filesystem::path path) : path_(std::move(path)) {
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (descriptor_ < 0) fail("create");
  }
  ~NewFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!finished_) ::unlink(path_.c_str());
  }
  NewFile(const NewFile&) = delete;  // owns a descriptor and a name

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written == 0) errno = EIO;
      if (written <= 0) fail("write");
      bytes = bytes.subspan(static_cast<size_t>(written));
    }
  }
  Digest write_digesting(std::span<const std::byte> bytes) {
    RunningDigest digest;
    while (!bytes.empty()) {
      const auto piece = bytes.first(std::min(bytes.size(), kPieceBytes));
      digest.add(piece);
      write(piece);
      bytes = bytes.subspan(piece.size());
    }
    return digest.value();
  }
  void finish() {
    if (::fsync(descriptor_) != 0) fail("fsync");
    if (::close(std::exchange(descriptor_, -1)) != 0) fail("close");
    finished_ = true;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    const int error = errno;
    throw IoError(std::string("cannot ") + what + " " + path_.string() + ": " +
                  std::generic_category().message(error));
  }

  std::filesystem::path path_;
  int descriptor_ = -1;
  bool finished_ = false;
};

void check_part(const PartInMemory& part) {
  const std::string subject = "tensor '" + part.name.substr(0, 80) + "' cannot be saved: ";
  FUSEDBUN_REQUIRE(is_storable(part.dtype), ConfigError,
                   subject + "its elements are of type " + std::string(name_of(part.dtype)) +
                       ", and a checkpoint holds " + storable_names());
  FUSEDBUN_REQUIRE(part.shape.size() <= kRankMax, ConfigError,
                   subject + "it has more than 8 dimensions");
  FUSEDBUN_REQUIRE(!part.name.empty() && part.name.size() <= kNameBytesMax, ConfigError,
                   subject + "a name has 1 to 4096 bytes");
  FUSEDBUN_REQUIRE(part.name != "__metadata__", ConfigError,
                   subject + "the format uses this name itself");
  try {
    static_cast<void>(nlohmann::json(part.name).dump());
  } catch (const nlohmann::json::type_error&) {
    throw ConfigError(subject + "its name holds bytes that are not UTF-8 text");
  }
  FUSEDBUN_ASSERT(part.offsets.size() == part.shape.size(),
                  "the offsets of " + part.name + " have as many dimensions as its shape");
  FUSEDBUN_ASSERT(std::ssize(part.bytes) == tensor_bytes(part.dtype, part.shape),
                  "the bytes of " + part.name + " do not fit its shape");
}

/// What torch reads to find each box's place: of every tensor of the file, or it would refuse the file.
Metadata with_places(Metadata metadata, std::span<const PartInMemory> parts) {
  nlohmann::ordered_json places = nlohmann::ordered_json::object();
  for (const PartInMemory& part : parts) places[part.name] = {{"saved_offsets", part.offsets}};
  for (const auto& [key, text] :
       {std::pair("format", std::string("pt")), std::pair("DCP_VERSION", std::string("1.0")),
        std::pair("DCP_SHARDING_INFO", places.dump())}) {
    const bool is_new = metadata.emplace(key, text).second;
    FUSEDBUN_ASSERT(is_new, std::string("the metadata ") + key + " is the format's own");
  }
  return metadata;
}

/// Takes digits off the start of `text`; -1 if there are none, or too many.
int take_number(std::string_view& text) {
  int number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{}) return -1;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return number;
}

bool take(std::string_view& text, std::string_view start) {
  if (!text.starts_with(start)) return false;
  text.remove_prefix(start.size());
  return true;
}

}  // namespace

std::string shard_path(std::string_view folder, int rank, int index, int count) {
  FUSEDBUN_ASSERT(rank >= 0 && index >= 1 && index <= count, "files are counted from 1");
  char name[80];
  std::snprintf(name, sizeof name, "/shard-%05d-model-%05d-of-%05d.safetensors", rank + 1, index,
                count);
  return std::string(folder) + name;
}

bool is_shard_path(std::string_view path) {
  const std::string_view folder = path.substr(0, path.find('/'));
  if (folder != kModelFolder && folder != kOptimizerFolder && folder != kTensorsFolder)
    return false;
  std::string_view rest = path.substr(folder.size());
  if (!take(rest, "/shard-")) return false;
  const int number = take_number(rest);
  if (!take(rest, "-model-")) return false;
  const int index = take_number(rest);
  if (!take(rest, "-of-")) return false;
  const int count = take_number(rest);
  // Written again, it must be the same: no other spelling of a number, and nothing behind.
  return number >= 1 && index >= 1 && index <= count &&
         path == shard_path(folder, number - 1, index, count);
}

std::string companion_path(std::string_view name) {
  return std::string(kModelFolder) + "/" + std::string(name);
}

std::string_view companion_name(std::string_view path) {
  return path.substr(path.find('/') + 1);
}

bool is_companion_path(std::string_view path) {
  constexpr size_t kNameMax = 128;
  const std::string_view name = companion_name(path);
  const auto is_known = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  };
  return path == companion_path(name) && !name.empty() && name.size() <= kNameMax &&
         name[0] != '.' && name[0] != '-' && !name.starts_with("shard-") &&
         std::ranges::all_of(name, is_known);
}

void require_companion(std::string_view name, int64_t bytes) {
  FUSEDBUN_REQUIRE(is_companion_path(companion_path(name)), ConfigError,
                   "'" + std::string(name.substr(0, 80)) +
                       "' is no name that a file beside a model's weights can have");
  FUSEDBUN_REQUIRE(
      bytes <= kCompanionBytesMax, ConfigError,
      std::string(name) + " has " + std::to_string(bytes) + " bytes: too many for a checkpoint");
}

bool is_storable(Dtype dtype) {
  return std::ranges::find(kStorable, dtype) != kStorable.end();
}

std::optional<Dtype> find_storable(std::string_view name) {
  const auto found =
      std::ranges::find_if(kStorable, [name](Dtype dtype) { return name_of(dtype) == name; });
  return found == kStorable.end() ? std::nullopt : std::optional(*found);
}

std::string storable_names() {
  std::string names;
  for (const Dtype dtype : kStorable)
    names += (names.empty() ? "" : ", ") + std::string(name_of(dtype));
  return names;
}

StoredFile write_shard_file(const std::filesystem::path& checkpoint, const std::string& path,
                            std::span<const PartInMemory> parts, const Metadata& metadata) {
  FUSEDBUN_ASSERT(is_shard_path(path), path + " is made by shard_path");
  std::set<std::string_view> names;
  for (const PartInMemory& part : parts) {
    check_part(part);
    FUSEDBUN_ASSERT(names.insert(part.name).second, part.name + " is there twice in " + path);
  }
  // Widest elements first keeps every tensor aligned to its element.
  std::vector<size_t> order(parts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::ranges::greater{},
                           [&](size_t i) { return bits_of(parts[i].dtype); });
  Header header{{}, with_places(metadata, parts)};
  int64_t end = 0;
  for (const size_t i : order) {
    const int64_t begin = std::exchange(end, end + std::ssize(parts[i].bytes));
    header.entries.push_back({parts[i].name, parts[i].dtype, parts[i].shape, begin, end});
  }
  const std::string text = format_header(header);
  FUSEDBUN_REQUIRE(std::ssize(text) <= kHeaderBytesMax && std::ssize(parts) <= kTensorsMax,
                   ConfigError,
                   "the " + std::to_string(parts.size()) + " tensors of " + path +
                       " are too many for one file: save fewer, or on more ranks");
  const uint64_t length = text.size();
  std::string start(reinterpret_cast<const char*>(&length), sizeof length);
  start += text;

  StoredFile stored{path, std::ssize(start) + end, {}, {}};
  NewFile file(checkpoint / path);
  stored.header = file.write_digesting(std::as_bytes(std::span(start)));
  for (const size_t i : order) {
    const PartInMemory& part = parts[i];
    stored.parts.push_back(
        {part.name, part.dtype, part.shape, part.offsets, file.write_digesting(part.bytes)});
  }
  file.finish();
  return stored;
}

StoredFile write_companion(const std::filesystem::path& checkpoint, std::string_view name,
                           std::string_view bytes) {
  require_companion(name, std::ssize(bytes));
  StoredFile stored{companion_path(name), std::ssize(bytes), {}, {}};
  NewFile file(checkpoint / stored.path);
  stored.header = file.write_digesting(std::as_bytes(std::span(bytes)));
  file.finish();
  return stored;
}

}  // namespace fusedbun::checkpoint
