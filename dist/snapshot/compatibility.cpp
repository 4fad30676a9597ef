#include "fusedbun/dist/snapshot/compatibility.h"

#include <algorithm>
#include <map>
#include <set>

namespace fusedbun::snapshot {
namespace {

/// Differences that a sentence names; more would hide the first.
constexpr size_t kListedMax = 4;

std::string text_of(std::span<const int64_t> shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

/// Why a saved parameter cannot be taken as this one; empty: it can.
std::string difference(const checkpoint::StoredParameter& saved, const plan::ParameterSpec& here) {
  const std::string name = "parameter '" + here.name + "' ";
  if (saved.shape != here.shape)
    return name + "has the shape " + text_of(saved.shape) + " in it and " + text_of(here.shape) +
           " here";
  if (saved.type != here.type) {
    return name + "is " + std::string(plan::name_of(saved.type)) + " in it and " +
           std::string(plan::name_of(here.type)) + " here";
  }
  if (saved.matrix_view != here.matrix_view && here.shape.size() > 2) {
    return name + "is seen as " + std::string(name_of(saved.matrix_view)) + " in it and " +
           std::string(name_of(here.matrix_view)) + " here (matrix_view)";
  }
  return {};
}

}  // namespace

Compatibility compare(const checkpoint::Manifest& saved,
                      std::span<const plan::ParameterSpec> parameters,
                      std::span<const Options> groups) {
  Compatibility result;
  std::map<std::string_view, const checkpoint::StoredParameter*> by_name;
  for (const auto& parameter : saved.parameters) by_name[parameter.name] = &parameter;
  if (saved.groups.size() != groups.size()) {
    result.differences.push_back("it has " + std::to_string(saved.groups.size()) +
                                 " parameter groups, the optimizer " +
                                 std::to_string(groups.size()));
    result.groups_fit = false;
  }
  std::vector<bool> group_fits(groups.size(), false);
  for (size_t g = 0; g < std::min(groups.size(), saved.groups.size()); ++g) {
    const std::string different = structural_difference(saved.groups[g].options, groups[g]);
    group_fits[g] = different.empty();
    if (different.empty()) continue;
    result.differences.push_back("group " + std::to_string(g) +
                                 " was saved with other options: " + different);
    result.groups_fit = false;
  }
  for (const plan::ParameterSpec& here : parameters) {
    const auto found = by_name.find(here.name);
    bool fits = false;
    if (found == by_name.end()) {
      result.differences.push_back("parameter '" + here.name + "' is not in it");
    } else {
      const std::string different = difference(*found->second, here);
      if (!different.empty()) result.differences.push_back(different);
      const bool moved = different.empty() && found->second->group != here.group;
      if (moved) {
        result.differences.push_back("parameter '" + here.name + "' is in group " +
                                     std::to_string(found->second->group) + " in it and in " +
                                     std::to_string(here.group) + " here");
      }
      fits = different.empty() && !moved && static_cast<size_t>(here.group) < groups.size() &&
             group_fits[static_cast<size_t>(here.group)];
      by_name.erase(found);
    }
    result.fits.push_back(fits);
  }
  for (const auto& parameter : saved.parameters) {
    if (by_name.contains(parameter.name)) {
      result.differences.push_back("its parameter '" + parameter.name +
                                   "' is none of the optimizer's");
    }
  }
  return result;
}

std::string listed(std::span<const std::string> differences) {
  std::string text;
  for (size_t i = 0; i < std::min(differences.size(), kListedMax); ++i) {
    text += (i > 0 ? "; " : "") + differences[i];
  }
  if (differences.size() > kListedMax) {
    text += "; and " + std::to_string(differences.size() - kListedMax) + " more differences";
  }
  return text;
}

}  // namespace fusedbun::snapshot
