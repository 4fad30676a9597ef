#include "fusedbun/launcher/train/torchelastic_error.h"

#include <cstdlib>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

namespace fusedbun::train {

void write_torchelastic_error(const std::string& sentence) noexcept {
  const char* const path = std::getenv("TORCHELASTIC_ERROR_FILE");
  if (path == nullptr || *path == '\0') return;
  try {
    const nlohmann::ordered_json json = {
        {"message",
         {{"message", sentence},
          {"extraInfo",
           {{"py_callstack", ""}, {"timestamp", std::to_string(std::time(nullptr))}}}}}};
    std::ofstream(path) << json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace)
                        << '\n';
  } catch (const std::exception&) {
    // The sentence goes to standard error as well.
  }
}

}  // namespace fusedbun::train
