#include "fusedbun/dist/run_folder/text_file.h"

#include <fstream>
#include <iterator>

#include "fusedbun/core/error.h"

namespace fusedbun::run_folder {

std::string read_text_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  FUSEDBUN_REQUIRE(file.good() || file.eof(), DataError, "cannot read " + path.string());
  return text;
}

}  // namespace fusedbun::run_folder
