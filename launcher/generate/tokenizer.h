#pragma once
// Tokenizer: between the text of one generation and its tokens, as the tokenizer.json beside the model has it. A Python process reads that
// (python_program.h); a model of 256 token ids without one has bytes for tokens.
//
// Thread safety: none.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/launcher/data/python_program.h"

namespace fusedbun::generate {

class Tokenizer {
 public:
  /// Of the model of `vocab` token ids in `folder`. Throws DataError if there is no tokenizer and the model's tokens are no bytes.
  Tokenizer(const std::filesystem::path& folder, int64_t vocab);

  /// Comes first, once. `is_chat`: the prompt is what a user says, and the tokens ask for the answer, by the tokenizer's chat template.
  /// Throws ConfigError for a prompt that is no UTF-8, and where bytes should be a chat; DataError if the files cannot be used.
  std::vector<int64_t> encode(const std::string& prompt, bool is_chat);
  /// The text that is complete with this next token: a character that several make comes with its last.
  std::string decode(int64_t token);
  /// Whatever is left.
  std::string finish();

 private:
  std::string answer_to(std::string_view message);

  std::filesystem::path file_;
  std::optional<data::PythonProgram> python_;  ///< none: bytes
};

}  // namespace fusedbun::generate
