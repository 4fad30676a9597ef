#include "fusedbun/dist/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <system_error>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/safetensors_header.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/descriptor.h"

namespace fusedbun::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the format is little endian, and so is this reader");
constexpr size_t kPrefixBytes = sizeof(uint64_t);

[[noreturn]] void fail_io(const std::filesystem::path& path, const char* what) {
  throw IoError(std::string("cannot ") + what + " " + path.string() + ": " +
                std::generic_category().message(errno));
}

std::span<const std::byte> map_file(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe must not wait for a writer before fstat can refuse it.
  const run_folder::Descriptor file(
      ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file.is_open()) {
    FUSEDBUN_REQUIRE(errno != ELOOP, DataError,
                     path.string() + " is a symbolic link, which is not followed");
    fail_io(path, "open");
  }
  struct stat facts {};
  if (::fstat(file.value(), &facts) != 0) fail_io(path, "stat");
  FUSEDBUN_REQUIRE(S_ISREG(facts.st_mode), DataError, path.string() + " is not a regular file");
  const auto bytes = static_cast<size_t>(facts.st_size);
  FUSEDBUN_REQUIRE(
      bytes >= kPrefixBytes, DataError,
      path.string() + ": " + std::to_string(bytes) + " bytes are too few for a safetensors file");
  void* memory = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file.value(), 0);
  if (memory == MAP_FAILED) fail_io(path, "map");
  return {static_cast<const std::byte*>(memory), bytes};
}

/// What a file is that begins so and is often taken for safetensors; empty if it is none of them. Read as a length, each of these
/// beginnings is larger than any header.
std::string_view other_format(std::string_view start) {
  if (start.starts_with("{"))
    return "JSON, perhaps the index of a model in several shards: one file is read, so save it "
           "again "
           "with max_shard_size above its size";
  if (start.starts_with("PK\x03\x04") || start.starts_with("\x80\x02"))
    return "a file of torch.save, which could run code when read: write it anew as safetensors";
  if (start.starts_with("GGUF")) return "a GGUF file: convert it to safetensors";
  if (start.starts_with("version https:")) return "a pointer of Git LFS: fetch the file itself";
  return {};
}

/// Bytes of the header's text, checked against the file's length.
size_t header_bytes(std::span<const std::byte> mapping) {
  uint64_t length = 0;
  std::memcpy(&length, mapping.data(), kPrefixBytes);
  if (length > kHeaderBytesMax) {
    const std::string_view format = other_format(
        {reinterpret_cast<const char*>(mapping.data()), std::min<size_t>(mapping.size(), 16)});
    throw DataError(format.empty() ? "the header claims " + std::to_string(length) +
                                         " bytes; at most 100000000 are read"
                                   : "this is " + std::string(format));
  }
  FUSEDBUN_REQUIRE(
      length <= mapping.size() - kPrefixBytes, DataError,
      "the header claims " + std::to_string(length) + " bytes, more than the file has");
  return length;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : path_(path), mapping_(map_file(path)) {
  try {
    const size_t length = header_bytes(mapping_);
    const auto data = mapping_.subspan(kPrefixBytes + length);
    const std::string_view text(reinterpret_cast<const char*>(mapping_.data()) + kPrefixBytes,
                                length);
    Header header = parse_header(text, std::ssize(data));
    metadata_ = std::move(header.metadata);
    tensors_.reserve(header.entries.size());
    for (HeaderEntry& entry : header.entries) {
      tensors_.push_back({std::move(entry.name), entry.dtype, std::move(entry.shape),
                          data.subspan(entry.begin, entry.end - entry.begin)});
    }
  } catch (const DataError& error) {
    ::munmap(const_cast<std::byte*>(mapping_.data()), mapping_.size());
    throw DataError(path_.string() + ": " + error.what());
  } catch (...) {
    ::munmap(const_cast<std::byte*>(mapping_.data()), mapping_.size());
    throw;
  }
}

SafetensorsFile::~SafetensorsFile() {
  ::munmap(const_cast<std::byte*>(mapping_.data()), mapping_.size());
}

const StoredTensor* SafetensorsFile::find(std::string_view name) const {
  const auto found =
      std::find_if(tensors_.begin(), tensors_.end(),
                   [name](const StoredTensor& tensor) { return tensor.name == name; });
  return found == tensors_.end() ? nullptr : &*found;
}

void write_safetensors(const std::filesystem::path& path, std::span<const StoredTensor> tensors,
                       const Metadata& metadata) {
  // Widest elements first keeps every tensor aligned to its element.
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return bits_of(tensors[a].dtype) > bits_of(tensors[b].dtype);
  });
  Header header{{}, metadata};
  int64_t begin = 0;
  for (const size_t i : order) {
    const StoredTensor& tensor = tensors[i];
    FUSEDBUN_ASSERT(std::ssize(tensor.bytes) == tensor_bytes(tensor.dtype, tensor.shape),
                    "the bytes of " + tensor.name + " do not fit its shape");
    header.entries.push_back(
        {tensor.name, tensor.dtype, tensor.shape, begin, begin + std::ssize(tensor.bytes)});
    begin += std::ssize(tensor.bytes);
  }
  const std::string text = format_header(header);
  const uint64_t length = text.size();
  run_folder::AtomicFile file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(std::as_bytes(std::span(text)));
  for (const size_t i : order) file.write(tensors[i].bytes);
  file.commit();
}

}  // namespace fusedbun::checkpoint
