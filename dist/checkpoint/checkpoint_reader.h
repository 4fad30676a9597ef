#pragma once
// CheckpointReader: one checkpoint, checked before a byte of it is believed, read in whatever rows are asked for, so that any
// number of ranks may load what any other number has saved.
//
// Invariants: 1. The constructor reads the manifest and the header of every file, and refuses with a DataError that names
// file, tensor and rule: a file that is missing, of another length, no regular file, or with another header than the manifest
// lists; a tensor whose parts differ in type or do not cover it exactly, without gap or overlap. 2. Bytes of tensors are
// checked by verify(), not by read().
//
// Thread safety: const calls from any thread.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/checkpoint/checked_file.h"
#include "fusedbun/dist/checkpoint/manifest.h"
#include "fusedbun/dist/checkpoint/whole_tensors.h"

namespace fusedbun::checkpoint {

/// A box of a tensor: as many dimensions as the tensor has; of a scalar none.
struct BoxToRead {
  std::vector<int64_t> offsets;  ///< of its first element in the whole tensor
  std::vector<int64_t> shape;
};

/// The manifest of the checkpoint `folder` alone; no other file is looked at. Throws as CheckpointReader.
Manifest read_manifest(const std::filesystem::path& folder);

class CheckpointReader {
 public:
  /// `folder` is a step-N. Throws DataError (65) for what is no whole checkpoint, IoError (74) for what cannot be read.
  explicit CheckpointReader(std::filesystem::path folder);
  CheckpointReader(const CheckpointReader&) = delete;  // `stored` points into the manifest

  const std::filesystem::path& folder() const { return folder_; }
  const Manifest& manifest() const { return manifest_; }
  /// All tensors of kModelFolder, kOptimizerFolder or kTensorsFolder.
  const WholeTensors& tensors(std::string_view folder) const;
  /// nullptr if there is none of that name.
  const WholeTensor* find(std::string_view folder, std::string_view name) const;

  /// Reads any box of the tensor into `out`, row-major and of exactly its size (else it is our bug), with pread, from whichever
  /// parts hold it. Where a part's rows are wanted whole, no more bytes are read than wanted; where they are wanted in short
  /// pieces (a box that is cut along a later dimension), their rows are read whole and picked from.
  /// The tensor is one of this reader's. Throws DataError if the file was cut meanwhile, IoError if it cannot be read.
  void read(const WholeTensor& tensor, const BoxToRead& box, std::span<std::byte> out) const;
  void read(const WholeTensor& tensor, std::span<std::byte> out) const;  ///< all of it

  /// What goes with the model's weights, by name: the bytes of config.json, tokenizer.json ... Throws as read().
  std::map<std::string, std::string> companions() const;

  /// Reads the `share`-th of `shares` about equal shares of all bytes and compares them with their digests. Throws DataError
  /// that names file and tensor.
  void verify(int share = 0, int shares = 1) const;

 private:
  std::filesystem::path folder_;
  Manifest manifest_;
  std::vector<CheckedFile> files_;  ///< as Manifest::files
  std::map<std::string, WholeTensors, std::less<>> tensors_;
};

}  // namespace fusedbun::checkpoint
