#pragma once
// Tokenization: from text and JSON lines to a file of tokens, its index of documents and a report about both. Python encodes
// (tokenizer.py), in a child process; documents come from there in batches and are written as they come, so that neither process
// holds the corpus.
//
// Invariants: 1. All three files are there, or none: one that fails or is ended by a signal leaves nothing. 2. What is not taken is
// counted in the report, by kind, with the first place.
//
// Thread safety: tokenize() takes over the handlers of signals: one at a time.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/launcher/data/left_out.h"
#include "fusedbun/launcher/data/token_file.h"

namespace fusedbun::data {

struct TokenizeOptions {
  std::vector<std::string> inputs;  ///< files, folders, pipes; "-": standard input
  std::string tokenizer;            ///< a folder, a tokenizer.json, or "bytes"
  std::filesystem::path out;
  std::string loss = "completion";  ///< or "all"
  std::string format = "auto";      ///< by name; or "text", "jsonl"
  std::string separator = {};       ///< parts documents in text; empty: a file is one
  bool no_eos = false;
  bool overwrite = false;
};

struct TokenizeCounts {
  int64_t documents = 0, tokens = 0, loss_tokens = 0;
  int64_t bytes = 0;  ///< of text that was read
};

struct TokenizeReport {
  TokenizeCounts counts;
  std::vector<LeftOut> left_out;
};

/// Writes `out`, its index and `out`.json. `progress` hears of each batch. Throws ConfigError where `out` is there already or the tokenizer
/// cannot be used, DataError for what is wrong in the data, naming file and line, and where no document is left; IoError.
TokenizeReport tokenize(const TokenizeOptions& options,
                        const std::function<void(const TokenizeCounts&)>& progress);

/// Of the report: the tokenizer's digest (tokenizer_match.h).
inline constexpr const char* kTokenizerDigestField = "tokenizer_xxh3";
/// Where the report about a file of tokens lies.
std::filesystem::path report_beside(const std::filesystem::path& token_file);

/// A batch of documents as tokenizer.py sends it: 64 bits that say how many bytes of text were read by then; of each document 32 bits
/// each: the number of tokens, that of spans, the tokens, begin and end of the spans. Returns those bytes of text.
int64_t for_each_document(
    std::string_view batch,
    const std::function<void(std::span<const uint32_t> tokens,
                             std::span<const TokenWriter::LossSpan> loss)>& take);

}  // namespace fusedbun::data
