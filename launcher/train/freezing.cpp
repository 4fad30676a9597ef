#include "fusedbun/launcher/train/freezing.h"

#include <fnmatch.h>

#include <algorithm>

#include "fusedbun/core/error.h"
#include "fusedbun/core/options.h"

namespace fusedbun::train {
namespace {

constexpr int kNearestNamed = 3;

std::string nearest_names(const std::string& pattern, std::span<const std::string> names) {
  std::vector<std::string> left(names.begin(), names.end());
  std::string text;
  for (int i = 0; i < kNearestNamed && !left.empty(); ++i) {
    const std::string nearest = nearest_name(pattern, left);
    text += (text.empty() ? "" : ", ") + nearest;
    std::erase(left, nearest);
  }
  return text;
}

}  // namespace

std::vector<bool> match_frozen(std::span<const std::string> patterns,
                               std::span<const std::string> names) {
  std::vector<bool> frozen(names.size(), false);
  for (const std::string& pattern : patterns) {
    bool matches = false;
    for (size_t i = 0; i < names.size(); ++i) {
      if (::fnmatch(pattern.c_str(), names[i].c_str(), 0) != 0) continue;
      matches = frozen[i] = true;
    }
    FUSEDBUN_REQUIRE(matches, ConfigError,
                     "--freeze " + pattern +
                         " matches no parameter of the model; the nearest names are " +
                         nearest_names(pattern, names));
  }
  FUSEDBUN_REQUIRE(std::ranges::find(frozen, false) != frozen.end(), ConfigError,
                   "--freeze takes all parameters of the model, and nothing is left to train");
  return frozen;
}

}  // namespace fusedbun::train
