#include "fusedbun/dist/checkpoint/checkpoint_reader.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "fusedbun/core/descriptor_limit.h"
#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/checkpoint/safetensors_header.h"
#include "fusedbun/dist/checkpoint/shard_file.h"

namespace fusedbun::checkpoint {
namespace {

/// Of rows that are picked from, and of bytes that are only digested: as many at a time.
constexpr int64_t kReadBytes = int64_t{4} << 20;

[[noreturn]] void refuse_damaged(const std::filesystem::path& path, const std::string& what) {
  throw DataError(path.string() + ": " + what +
                  ": the checkpoint is damaged, so copy it again or load an earlier one");
}

std::string read_start(const CheckedFile& file, int64_t bytes) {
  std::string text(static_cast<size_t>(bytes), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

Manifest read_manifest_in(const run_folder::Descriptor& opened,
                          const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kManifestName;
  const CheckedFile file(opened.value(), kManifestName, path);
  FUSEDBUN_REQUIRE(file.bytes() <= kManifestBytesMax, DataError,
                   path.string() + ": its " + std::to_string(file.bytes()) +
                       " bytes are more than any manifest that is read");
  try {
    return parse_manifest(read_start(file, file.bytes()));
  } catch (const DataError& error) {
    throw DataError(path.string() + ": " + error.what());
  }
}

/// All bytes of a companion, or a shard's header, compared with what the manifest lists.
std::string checked_start(const CheckedFile& file, const StoredFile& stored) {
  if (file.bytes() != stored.bytes)
    refuse_damaged(file.path(), "it has " + std::to_string(file.bytes()) +
                                    " bytes, and the manifest lists " +
                                    std::to_string(stored.bytes));
  std::string start = read_start(file, header_bytes_of(stored));
  if (digest_of(std::as_bytes(std::span(start))) != stored.header)
    refuse_damaged(file.path(), std::string(is_companion_path(stored.path) ? "it" : "its header") +
                                    " is not the one that was written: its digest does not fit");
  return start;
}

/// Compares what the file says of itself with what the manifest says of it.
void check_header(const CheckedFile& file, const StoredFile& stored) {
  const std::string start = checked_start(file, stored);
  if (is_companion_path(stored.path)) return;
  const int64_t header_bytes = std::ssize(start);
  uint64_t length = 0;
  std::memcpy(&length, start.data(), sizeof length);
  if (length != start.size() - sizeof length)
    refuse_damaged(file.path(), "its header is of another length than the manifest lists");
  Header header;
  try {
    header =
        parse_header(std::string_view(start).substr(sizeof length), stored.bytes - header_bytes);
  } catch (const DataError& error) {
    throw DataError(file.path().string() + ": " + error.what());
  }
  if (header.entries.size() != stored.parts.size())
    refuse_damaged(file.path(), "it holds " + std::to_string(header.entries.size()) +
                                    " tensors, and the manifest lists " +
                                    std::to_string(stored.parts.size()));
  for (size_t i = 0; i < stored.parts.size(); ++i) {
    const StoredPart& part = stored.parts[i];
    const HeaderEntry& entry = header.entries[i];
    if (entry.name != part.name || entry.dtype != part.dtype || entry.shape != part.shape)
      refuse_damaged(file.path(), "tensor '" + part.name.substr(0, 80) +
                                      "' is not where, or what, the manifest lists");
  }
}

/// Brings what a box wants of one part to its place in the box. All strides count bytes.
class PartCopy {
 public:
  PartCopy(const CheckedFile& file, const WholeTensor::Part& part, const BoxToRead& box,
           int64_t element_bytes)
      : file_(file), shape_(part.stored->shape) {
    BoxToRead wanted = box;
    std::vector<int64_t> offsets = part.stored->offsets;
    if (shape_.empty()) {  // a scalar is read as a vector of one
      shape_ = wanted.shape = {1};
      offsets = wanted.offsets = {0};
    }
    const size_t rank = shape_.size();
    strides_.assign(rank, element_bytes);
    box_strides_.assign(rank, element_bytes);
    for (size_t i = rank - 1; i > 0; --i) {
      strides_[i - 1] = strides_[i] * shape_[i];
      box_strides_[i - 1] = box_strides_[i] * wanted.shape[i];
    }
    contiguous_from_ = rank;
    for (size_t i = rank; i-- > 0;) {
      low_.insert(low_.begin(), std::max(wanted.offsets[i], offsets[i]) - offsets[i]);
      high_.insert(high_.begin(),
                   std::min(wanted.offsets[i] + wanted.shape[i] - offsets[i], shape_[i]));
      if (contiguous_from_ == i + 1 && low_[0] == 0 && high_[0] == shape_[i] &&
          wanted.shape[i] == shape_[i])
        contiguous_from_ = i;
    }
    is_empty_ = !std::ranges::equal(low_, high_, std::ranges::less{});
    begin_ = part.begin;
    for (size_t i = 0; i < rank; ++i)
      box_begin_ += (offsets[i] + low_[i] - wanted.offsets[i]) * box_strides_[i];
  }

  void run(std::byte* box) {
    if (!is_empty_) read(0, begin_, box + box_begin_);
  }

 private:
  int64_t wanted_bytes(size_t dimension) const {
    return (high_[dimension] - low_[dimension]) * strides_[dimension];
  }
  /// Are the wanted elements of one index of `dimension` one run, in the part and in the box?
  bool is_run(size_t dimension) const { return contiguous_from_ <= dimension + 1; }

  /// `at` is where in the file the indices of `dimension` begin.
  void read(size_t dimension, int64_t at, std::byte* out) {
    const int64_t row_bytes = strides_[dimension];
    if (is_run(dimension)) {
      file_.read(at + low_[dimension] * row_bytes,
                 {out, static_cast<size_t>(wanted_bytes(dimension))});
      return;
    }
    if (row_bytes > kReadBytes) {
      for (int64_t i = low_[dimension]; i < high_[dimension]; ++i, out += box_strides_[dimension])
        read(dimension + 1, at + i * row_bytes, out);
      return;
    }
    const int64_t rows_max = kReadBytes / row_bytes;
    if (!rows_) rows_ = std::make_unique_for_overwrite<std::byte[]>(kReadBytes);
    for (int64_t i = low_[dimension]; i < high_[dimension];) {
      const int64_t rows = std::min(rows_max, high_[dimension] - i);
      file_.read(at + i * row_bytes, {rows_.get(), static_cast<size_t>(rows * row_bytes)});
      for (int64_t row = 0; row < rows; ++row, out += box_strides_[dimension])
        pick(dimension + 1, rows_.get() + row * row_bytes, out);
      i += rows;
    }
  }

  void pick(size_t dimension, const std::byte* from, std::byte* out) const {
    from += low_[dimension] * strides_[dimension];
    if (is_run(dimension)) {
      std::memcpy(out, from, static_cast<size_t>(wanted_bytes(dimension)));
      return;
    }
    for (int64_t i = low_[dimension]; i < high_[dimension]; ++i) {
      pick(dimension + 1, from, out);
      from += strides_[dimension];
      out += box_strides_[dimension];
    }
  }

  const CheckedFile& file_;
  std::vector<int64_t> shape_;       ///< of the part
  std::vector<int64_t> low_, high_;  ///< what is wanted, in the part's own indices
  std::vector<int64_t> strides_, box_strides_;
  size_t contiguous_from_ =
      0;  ///< from this dimension on, part and box are wanted whole and lie alike
  int64_t begin_ = 0, box_begin_ = 0;
  bool is_empty_ = false;
  std::unique_ptr<std::byte[]> rows_;
};

}  // namespace

Manifest read_manifest(const std::filesystem::path& folder) {
  return read_manifest_in(open_folder(AT_FDCWD, folder, folder), folder);
}

CheckpointReader::CheckpointReader(std::filesystem::path folder) : folder_(std::move(folder)) {
  const run_folder::Descriptor opened = open_folder(AT_FDCWD, folder_, folder_);
  manifest_ = read_manifest_in(opened, folder_);
  try {
    tensors_ = put_together(manifest_);
  } catch (const DataError& error) {
    throw DataError((folder_ / kManifestName).string() + ": " + error.what());
  }
  require_descriptors("loading " + folder_.string(), std::ssize(manifest_.files) + 4, "its files");
  files_.reserve(manifest_.files.size());
  std::map<std::string, run_folder::Descriptor> folders;
  for (const StoredFile& stored : manifest_.files) {
    const std::filesystem::path path = stored.path;
    run_folder::Descriptor& in = folders[path.parent_path()];
    if (!in.is_open())
      in = open_folder(opened.value(), path.parent_path(), folder_ / path.parent_path());
    files_.emplace_back(in.value(), path.filename(), folder_ / path);
    check_header(files_.back(), stored);
  }
}

const WholeTensors& CheckpointReader::tensors(std::string_view folder) const {
  const auto found = tensors_.find(folder);
  FUSEDBUN_ASSERT(found != tensors_.end(), "a checkpoint has no folder " + std::string(folder));
  return found->second;
}

const WholeTensor* CheckpointReader::find(std::string_view folder, std::string_view name) const {
  const WholeTensors& all = tensors(folder);
  const auto found = all.find(name);
  return found == all.end() ? nullptr : &found->second;
}

void CheckpointReader::read(const WholeTensor& tensor, const BoxToRead& box,
                            std::span<std::byte> out) const {
  const size_t rank = tensor.shape.size();
  FUSEDBUN_ASSERT(box.offsets.size() == rank && box.shape.size() == rank,
                  "a box has as many dimensions as its tensor");
  for (size_t i = 0; i < rank; ++i) {
    FUSEDBUN_ASSERT(box.offsets[i] >= 0 && box.shape[i] >= 0 &&
                        box.shape[i] <= tensor.shape[i] - box.offsets[i],
                    "a box lies in its tensor");
  }
  FUSEDBUN_ASSERT(std::ssize(out) == tensor_bytes(tensor.dtype, box.shape),
                  "the memory fits the box that is read");
  if (out.empty()) return;
  for (const WholeTensor::Part& part : tensor.parts)
    PartCopy(files_[part.file], part, box, bits_of(tensor.dtype) / 8).run(out.data());
}

std::map<std::string, std::string> CheckpointReader::companions() const {
  std::map<std::string, std::string> found;
  for (size_t i = 0; i < files_.size(); ++i) {
    const StoredFile& stored = manifest_.files[i];
    if (!is_companion_path(stored.path)) continue;
    found.emplace(companion_name(stored.path), checked_start(files_[i], stored));
  }
  return found;
}

void CheckpointReader::read(const WholeTensor& tensor, std::span<std::byte> out) const {
  read(tensor, {std::vector<int64_t>(tensor.shape.size(), 0), tensor.shape}, out);
}

void CheckpointReader::verify(int share, int shares) const {
  FUSEDBUN_ASSERT(share >= 0 && share < shares, "shares are counted from 0");
  // As floating point, since sizes are only a file's claims here, and their sum could overflow.
  double bytes_total = 0;
  for (const StoredFile& file : manifest_.files)
    bytes_total += static_cast<double>(file.bytes - header_bytes_of(file));
  const auto piece = std::make_unique_for_overwrite<std::byte[]>(kReadBytes);
  double before =
      0;  // bytes of the parts before: each part belongs to the share in which it begins
  for (size_t i = 0; i < files_.size(); ++i) {
    const StoredFile& stored = manifest_.files[i];
    int64_t begin = header_bytes_of(stored);
    for (const StoredPart& part : stored.parts) {
      const int64_t bytes = tensor_bytes(part.dtype, part.shape);
      const double place = before / std::max(1., bytes_total);
      const int owner = std::min(shares - 1, static_cast<int>(place * shares));
      const int64_t end = begin + bytes;
      before += static_cast<double>(bytes);
      if (owner != share) {
        begin = end;
        continue;
      }
      RunningDigest digest;
      while (begin < end) {
        const std::span now(piece.get(), static_cast<size_t>(std::min(kReadBytes, end - begin)));
        files_[i].read(begin, now);
        digest.add(now);
        begin += std::ssize(now);
      }
      if (digest.value() != part.digest)
        refuse_damaged(files_[i].path(),
                       "the bytes of tensor '" + part.name.substr(0, 80) +
                           "' are not those that were written: their digest does not fit");
    }
  }
}

}  // namespace fusedbun::checkpoint
