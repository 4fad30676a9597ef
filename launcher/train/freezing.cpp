#include "fusedbun/launcher/train/freezing.h"

#include <fnmatch.h>

#include <algorithm>
#include <functional>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

constexpr size_t kNearestNamed = 3;

/// Those that begin as the pattern does, for as long as possible.
std::string nearest_names(const std::string& pattern, std::span<const std::string> names) {
  const auto common = [&](const std::string& name) {
    return std::ranges::mismatch(pattern, name).in1 - pattern.begin();
  };
  std::vector<std::string> nearest(names.begin(), names.end());
  std::ranges::stable_sort(nearest, std::greater(), common);
  nearest.resize(std::min(kNearestNamed, nearest.size()));
  std::string text;
  for (const std::string& name : nearest) text += (text.empty() ? "" : ", ") + name;
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
