#pragma once
// A whole file as text.
//
// Thread safety: a function without state.
#include <filesystem>
#include <string>

namespace fusedbun::run_folder {

/// Throws DataError (65) if it cannot be opened or read to its end.
std::string read_text_file(const std::filesystem::path& path);

}  // namespace fusedbun::run_folder
