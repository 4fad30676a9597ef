#include "fusedbun/launcher/model/dropout_rates.h"

#include <charconv>
#include <utility>

namespace fusedbun::model {

std::string describe(const DropoutRates& rates) {
  std::string text;
  for (const auto& [name, rate] :
       {std::pair("embeddings", rates.embeddings), std::pair("attention", rates.attention),
        std::pair("residuals", rates.residuals)}) {
    if (rate == 0) continue;
    char digits[32];
    const char* const end = std::to_chars(digits, digits + sizeof digits, rate).ptr;
    text += (text.empty() ? "" : ", ") + std::string(name) + " " +
            std::string(digits, static_cast<size_t>(end - digits));
  }
  return text.empty() ? "none" : text;
}

}  // namespace fusedbun::model
