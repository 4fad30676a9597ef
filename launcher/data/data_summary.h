#pragma once
// What `fusedbun data show` says of a file: of tokens, or of text and JSON lines; as text and as JSON.
//
// Thread safety: functions without state.
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fusedbun/launcher/data/document_index.h"
#include "fusedbun/launcher/data/left_out.h"

namespace fusedbun::data {

/// Of documents, in tokens.
struct Lengths {
  int64_t documents = 0, shortest = 0, median = 0, longest = 0;
  int64_t longer_than_context = 0;
};
/// `begins` as in DocumentIndex, at least one document; a median between two lengths is the lower one. Throws DataError, naming `path`, if
/// they do not rise.
Lengths lengths_of(std::span<const uint64_t> begins, int64_t context,
                   const std::filesystem::path& path);

/// A part of a document, and whether its tokens carry loss.
struct Excerpt {
  std::string text;
  bool carries_loss = true;
};

struct TokensSeen {
  std::string layout;
  int64_t token_bytes = 2;
  int64_t tokens = 0;
  int64_t loss_tokens = 0;
  std::optional<Lengths> lengths = {};  ///< nothing where documents cannot be told apart
  std::string tokenizer = {};  ///< by which the report says it was made; empty: there is no report
  std::vector<LeftOut> left_out = {};
  std::vector<Excerpt> first_document = {};  ///< its beginning; empty without a tokenizer
};

struct TextSeen {
  std::map<std::string, int64_t>
      kinds;  ///< "text", "prompt and completion", "messages": how many documents
  int64_t bytes = 0;
  std::vector<LeftOut> left_out;
};

struct FileSeen {
  std::string path;
  std::optional<TokensSeen> tokens;  ///< else text
  TextSeen text;
};

/// `context` 0: not asked about.
std::string text_of(const FileSeen& seen, int64_t context);
std::string json_of(const std::vector<FileSeen>& list, int64_t context);

/// How many tokens the spans have; without spans all `tokens` carry loss.
int64_t loss_tokens_of(std::span<const TokenSpan> spans, int64_t tokens);

}  // namespace fusedbun::data
