#pragma once
// What a trainer reads: text, whose tokens are its bytes, or files of tokens (token_file.h). The last tenth is held back for validation.
//
// Invariants: 1. The text is the same on every rank: sources in the order given, folders walked recursively in order of
// path, symbolic links and files that are not text (a NUL byte in their first 8 KiB) left out, each file followed by a
// newline if it lacks one. 2. The tokens of a training sample are a pure function of (seed, job step, index in the
// global batch), whatever the number of ranks. 3. Both parts hold at least one context plus one token. 4. No token that is given out is as
// large as the vocabulary.
//
// Thread safety: read-only after construction.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/launcher/data/text_store.h"

namespace fusedbun::data {

/// Where Debian keeps the texts of common licences: English that every installation has.
inline constexpr std::string_view kDefaultTextFolder = "/usr/share/common-licenses";
inline constexpr int64_t kValidationTokensMax = 64 << 10;
inline constexpr int64_t kByteValues = 256;

/// One training sequence of a job.
struct SampleId {
  uint64_t seed = 0;
  int64_t job_step = 0;
  int64_t index = 0;  ///< in the global batch
};

/// Throws DataError naming the first source that does not exist. Reads no text.
void require_present(const std::vector<std::filesystem::path>& sources);

struct TextOptions {
  int64_t vocab = kByteValues;  ///< token ids of the model
  /// Files of so many bytes are read where they are when they are needed, smaller ones kept in memory.
  int64_t large_from = 64 << 20;
  TextStore::Notice notice = [](const std::string&) {
  };  ///< about a file that is lost while the run goes on
};

class TextData {
 public:
  /// Throws DataError naming the path that is missing, unreadable, empty or cut, or saying how much text is too little; for text where the
  /// vocabulary is not that of bytes, and for text beside files of tokens.
  TextData(const std::vector<std::filesystem::path>& sources, int64_t context,
           TextOptions options = {});

  bool is_tokens() const { return token_bytes_ > 0; }  ///< else text
  size_t bytes() const { return store_.size(); }       ///< training text, then validation text
  size_t tokens() const { return bytes() / width(); }
  size_t training_tokens() const { return training_tokens_; }
  size_t validation_tokens() const { return tokens() - training_tokens_; }
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

  /// Fills `tokens`: context inputs and one more, so that tokens[i + 1] is the target of tokens[i]. Throws DataError, as the next two, naming
  /// file and place, for a token that is as large as the vocabulary.
  void training_sample(const SampleId& id, std::span<int64_t> tokens) const;
  /// Validation sequences do not overlap in their targets and never change; `index` < validation_samples(context).
  int64_t validation_samples(int64_t context) const;
  void validation_sample(int64_t index, std::span<int64_t> tokens) const;

 private:
  void read(const std::filesystem::path& source);
  void append(const std::filesystem::path& file, bool must_be_text);
  void append_tokens(const std::filesystem::path& file);
  size_t width() const { return static_cast<size_t>(std::max<int64_t>(1, token_bytes_)); }
  void leave_out(const std::filesystem::path& path, std::string_view why);
  void read_tokens(size_t begin, std::span<int64_t> tokens) const;

  int64_t large_from_;
  int64_t vocab_;
  int64_t token_bytes_ = 0;  ///< of files of tokens; 0: text
  TextStore store_;
  size_t training_tokens_ = 0;
  int64_t files_ = 0;
  std::map<std::string_view, LeftOut> left_out_;  // keys are literals
};

}  // namespace fusedbun::data
