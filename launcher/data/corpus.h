#pragma once
// Corpus: what a run is trained on and validated with: text, whose tokens are its bytes, or files of tokens (token_file.h), cut or packed
// into sequences of a context (packing.h).
//
// Invariants: 1. The same on every rank that reads the same. 2. Sample g of a run is a function of (seed, g): each epoch sees every sample
// once, in a different shuffle (sample_order.h); where the corpus is a stream, each epoch also cuts it at other places. 3. Training and
// validation share no token, and, where documents allow, no document. 4. No token that is given out is as large as the vocabulary.
// 5. Memory does not grow with files of tokens, but by 8 bytes in 64 sequences of whole documents.
//
// Thread safety: read-only after construction.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/launcher/data/documents.h"
#include "fusedbun/launcher/data/packing.h"
#include "fusedbun/launcher/data/sample_order.h"
#include "fusedbun/launcher/data/text_files.h"
#include "fusedbun/launcher/data/token_file.h"

namespace fusedbun::data {

inline constexpr int64_t kValidationTokensMax = 64 << 10;
inline constexpr int64_t kByteValues = 256;
inline constexpr int64_t kNoTarget = -1;

/// One sequence; each span has the length of the context.
struct Sequence {
  std::span<int64_t> tokens;
  std::span<int64_t>
      targets;  ///< targets[i] follows tokens[i]; kNoTarget: nothing is predicted there
  std::span<int64_t>
      positions;  ///< in the document: 0 where one begins; padding is a document of token 0
};

enum class Packing : uint8_t {
  automatic,  ///< documents where some tokens carry no loss, else stream
  stream,
  documents,
};
/// "stream"; the inverse throws ConfigError.
std::string_view name_of(Packing packing);
std::string_view name_of(LongDocuments policy);
Packing parse_packing(std::string_view name);
LongDocuments parse_long_documents(std::string_view name);

/// Which part of a corpus validates.
enum class Split : uint8_t {
  tail,  ///< the last documents: a tenth of the tokens, at most 64 Ki, but no document is cut if one can help it
  all_training,    ///< other files validate
  all_validation,  ///< these are they
};

struct CorpusOptions {
  int64_t context = 0;
  int64_t vocab = kByteValues;  ///< token ids of the model
  uint64_t seed = 1;
  Split split = Split::tail;
  Packing packing = Packing::automatic;
  LongDocuments long_documents = LongDocuments::refuse;
  /// Attention ends at the borders of documents; else a sequence is one document.
  bool has_borders = true;
  /// The token that parts documents in files that have no index yet.
  std::optional<int64_t> separator = {};
  /// Where an index goes that cannot be written beside its file; empty: nowhere.
  std::filesystem::path spare_folder = {};
  /// Text files of so many bytes are read where they are when they are needed.
  int64_t large_from = 64 << 20;
  TextStore::Notice notice = [](const std::string&) {};  ///< about indexes, and files that are lost
};

/// Throws DataError naming the first source that does not exist. Reads nothing.
void require_present(const std::vector<std::filesystem::path>& sources);

/// Makes the indexes of those sources that are files of tokens and have none: one rank of a host does so before all read.
void prepare_indexes(const std::vector<std::filesystem::path>& sources,
                     const CorpusOptions& options);

class Corpus {
 public:
  /// Throws DataError naming the path that is missing, unreadable, empty or cut, or saying how much text is too little; for text where the
  /// vocabulary is not that of bytes, and for text beside files of tokens.
  Corpus(const std::vector<std::filesystem::path>& sources, CorpusOptions options);
  Corpus(const Corpus&) = delete;  // parts point into it

  bool is_tokens() const { return !files_.empty(); }  ///< else text
  const TextFiles* text() const { return text_ ? &*text_ : nullptr; }
  int64_t files() const { return is_tokens() ? std::ssize(files_) : text_->files(); }
  int64_t tokens() const { return documents_.tokens(); }
  int64_t training_tokens() const { return validation_begin_; }
  int64_t validation_tokens() const { return tokens() - validation_begin_; }
  int64_t documents() const { return documents_.count(); }
  const Documents& all_documents() const { return documents_; }
  int64_t context() const { return options_.context; }
  LongDocuments long_documents() const { return options_.long_documents; }
  /// Equal on ranks that read the same.
  uint64_t digest() const;

  /// Of an epoch.
  int64_t training_samples() const { return order_.samples(); }
  /// Fills `sequence` with sample `index` of the run, which counts through all epochs. Throws DataError, as the next, naming file and place,
  /// for a token that is as large as the vocabulary.
  void training_sample(int64_t index, const Sequence& sequence) const;
  int64_t validation_samples() const { return validation_samples_; }
  /// Their targets do not overlap, are all that there are but the first token, and never change.
  void validation_sample(int64_t index, const Sequence& sequence) const;

  /// Every sample predicts a token at each of its places. Otherwise their number differs between ranks, and a mean of means is none.
  bool predicts_everywhere() const {
    return !packs_documents() && !documents_.has_loss_spans() &&
           (documents_.count() == 1 || !options_.has_borders);
  }
  bool packs_documents() const { return packing_ == Packing::documents; }
  /// Of training; where documents are packed.
  const std::optional<DocumentPacking>& training_packing() const { return training_packing_; }

 private:
  void read_tokens(const std::vector<std::filesystem::path>& sources);
  void read_text(const std::vector<std::filesystem::path>& sources);
  void split(const std::vector<std::filesystem::path>& sources);
  void split_documents(const std::vector<std::filesystem::path>& sources);
  void split_stream(const std::vector<std::filesystem::path>& sources);
  void read(int64_t begin, std::span<int64_t> tokens) const;
  void fill_from_stream(int64_t begin, const Sequence& sequence) const;
  void fill_from_documents(const DocumentPacking& packing, int64_t index,
                           const Sequence& sequence) const;
  /// Places from `filled` on: a document of their own, which predicts nothing.
  void pad(const Sequence& sequence, size_t filled) const;
  /// Targets and positions of the tokens [begin, begin + tokens.size() - 1), whose last is a target alone.
  void fill(int64_t begin, std::span<const int64_t> tokens, const Sequence& sequence) const;

  CorpusOptions options_;
  std::optional<TextFiles> text_;
  std::vector<TokenFile> files_;
  std::vector<int64_t> file_begins_;  ///< the first token of each
  Documents documents_;
  Packing packing_ = Packing::stream;
  int64_t validation_begin_ = 0;
  int64_t validation_samples_ = 0;
  std::optional<DocumentPacking> training_packing_, validation_packing_;
  SampleOrder order_{1, 0};
};

}  // namespace fusedbun::data
