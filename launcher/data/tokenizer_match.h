#pragma once
// Whether files of tokens are of a model's tokenizer. Their ids alone do not tell: another tokenizer of as many tokens trains, on noise.
//
// Thread safety: functions without state.
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace fusedbun::data {

/// XXH3 with 64 bits, as 16 hexadecimal digits, of the tokenizer.json that `given` is or, as a folder, has; nothing where there is none.
std::optional<std::string> tokenizer_digest(const std::filesystem::path& given);

/// A sentence for each file whose report (NAME.bin.json) names another tokenizer than the one in `model_folder`. Files without a report,
/// and folders without a tokenizer.json, say nothing.
std::vector<std::string> other_tokenizers(const std::vector<std::filesystem::path>& token_files,
                                          const std::filesystem::path& model_folder);

}  // namespace fusedbun::data
