#pragma once
// Text as a trainer reads it: bytes. Any files; their last tenth is held back for validation.
//
// Invariants: 1. The text is the same on every rank: sources in the order given, folders walked recursively in order of
// path, symbolic links and files that are not text (a NUL byte in their first 8 KiB) left out, each file followed by a
// newline if it lacks one. 2. The tokens of a training sample are a pure function of (seed, job step, index in the
// global batch), whatever the number of ranks. 3. Both parts hold at least one context plus one byte.
//
// Thread safety: read-only after construction.
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/launcher/train/text_store.h"

namespace fusedbun::train {

/// Where Debian keeps the texts of common licences: English that every installation has.
inline constexpr std::string_view kDefaultTextFolder = "/usr/share/common-licenses";
inline constexpr int64_t kValidationBytesMax = 64 << 10;

/// One training sequence of a job.
struct SampleId {
  uint64_t seed = 0;
  int64_t job_step = 0;
  int64_t index = 0;  ///< in the global batch
};

/// Throws DataError naming the first source that does not exist. Reads no text.
void require_present(const std::vector<std::filesystem::path>& sources);

struct TextOptions {
  /// Files of so many bytes are read where they are when they are needed, smaller ones kept in memory.
  int64_t large_from = 64 << 20;
  TextStore::Notice notice = [](const std::string&) {
  };  ///< about a file that is lost while the run goes on
};

class TextData {
 public:
  /// Throws DataError naming the path that is missing, unreadable or empty, or saying how much text is too little.
  TextData(const std::vector<std::filesystem::path>& sources, int64_t context,
           TextOptions options = {});

  size_t bytes() const { return store_.size(); }  ///< training text, then validation text
  size_t training_bytes() const { return training_bytes_; }
  size_t validation_bytes() const { return bytes() - training_bytes_; }
  std::string part(size_t begin, size_t count) const;  ///< of bytes()
  int64_t files() const { return files_; }
  /// What lies in the folders and is not read, by kind: "symbolic links", "binary files", "compressed by gzip".
  struct LeftOut {
    int64_t count = 0;
    std::filesystem::path first;  ///< in order of path
  };
  const std::map<std::string_view, LeftOut>& left_out() const { return left_out_; }
  /// XXH3 of the text: equal on ranks that read the same.
  uint64_t digest() const { return store_.digest(); }

  /// Fills `tokens`: context inputs and one more, so that tokens[i + 1] is the target of tokens[i].
  void training_sample(const SampleId& id, std::span<int64_t> tokens) const;
  /// Validation sequences do not overlap in their targets and never change; `index` < validation_samples(context).
  int64_t validation_samples(int64_t context) const;
  void validation_sample(int64_t index, std::span<int64_t> tokens) const;

 private:
  void read(const std::filesystem::path& source);
  void append(const std::filesystem::path& file, bool must_be_text);
  void leave_out(const std::filesystem::path& path, std::string_view why);
  void read_tokens(size_t begin, std::span<int64_t> tokens) const;

  int64_t large_from_;
  TextStore store_;
  size_t training_bytes_ = 0;
  int64_t files_ = 0;
  std::map<std::string_view, LeftOut> left_out_;  // keys are literals
};

}  // namespace fusedbun::train
