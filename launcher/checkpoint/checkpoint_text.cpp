#include "fusedbun/launcher/checkpoint/checkpoint_text.h"

#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

#include "fusedbun/launcher/cli/table.h"

namespace fusedbun::launcher {
namespace {

using checkpoint::Manifest;
using nlohmann::ordered_json;

int64_t elements_of(const Manifest& manifest) {
  int64_t elements = 0;
  for (const auto& parameter : manifest.parameters) {
    elements += std::accumulate(parameter.shape.begin(), parameter.shape.end(), int64_t{1},
                                std::multiplies<>());
  }
  return elements;
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

ordered_json summary(const CheckpointSeen& seen) {
  ordered_json json{{"job_step", seen.job_step}, {"folder", seen.folder.string()}};
  json["latest"] = seen.is_latest;
  if (!seen.problem.empty()) {
    json["problem"] = seen.problem;
    return json;
  }
  json["written"] = seen.manifest.written;
  json["world_size"] = seen.manifest.world_size;
  json["bytes"] = bytes_of(seen.manifest);
  json["parameters"] = elements_of(seen.manifest);
  return json;
}

std::string text_of(const ordered_json& json) {
  return json.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

int64_t bytes_of(const Manifest& manifest) {
  int64_t bytes = 0;
  for (const auto& file : manifest.files) bytes += file.bytes;
  return bytes;
}

std::string text_of_bytes(int64_t bytes) {
  const char* const units[] = {"bytes", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1000 && unit + 1 < std::size(units)) {
    value /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

std::string text_of(const std::vector<CheckpointSeen>& list) {
  if (list.empty()) return "there are no checkpoints\n";
  std::vector<std::vector<std::string>> rows = {{"STEP", "WRITTEN", "RANKS", "SIZE", "STATE"}};
  for (const CheckpointSeen& seen : list) {
    if (!seen.problem.empty()) {
      rows.push_back({std::to_string(seen.job_step), "-", "-", "-", seen.problem});
      continue;
    }
    rows.push_back({std::to_string(seen.job_step), seen.manifest.written,
                    std::to_string(seen.manifest.world_size),
                    text_of_bytes(bytes_of(seen.manifest)), seen.is_latest ? "latest" : ""});
  }
  std::string text;
  for (const std::string& line : aligned(rows)) text += line + "\n";
  return text;
}

std::string json_of(const std::vector<CheckpointSeen>& list) {
  ordered_json checkpoints = ordered_json::array();
  for (const CheckpointSeen& seen : list) checkpoints.push_back(summary(seen));
  return text_of(ordered_json{{"checkpoints", checkpoints}});
}

std::string text_of(const CheckpointSeen& seen) {
  const Manifest& manifest = seen.manifest;
  std::vector<std::vector<std::string>> rows = {
      {"checkpoint", seen.folder.string()},
      {"steps done", std::to_string(manifest.job_step) +
                         (manifest.skipped_steps > 0
                              ? ", " + std::to_string(manifest.skipped_steps) + " of them skipped"
                              : "")},
      {"written", manifest.written + " by fusedbun " + manifest.version},
      {"ranks", std::to_string(manifest.world_size) + "; any number can load it"},
      {"size", text_of_bytes(bytes_of(manifest)) + " in " + std::to_string(manifest.files.size()) +
                   " files"},
      {"parameters", std::to_string(manifest.parameters.size()) + " tensors, " +
                         std::to_string(elements_of(manifest)) + " elements"}};
  for (size_t g = 0; g < manifest.groups.size(); ++g) {
    const auto& group = manifest.groups[g];
    rows.push_back({"group " + std::to_string(g),
                    describe(group.options) +
                        (group.lr_pin ? ", lr pinned at " + number(*group.lr_pin) : "")});
  }
  if (manifest.lr_scale != 1) rows.push_back({"lr scale", number(manifest.lr_scale)});
  if (manifest.max_grad_norm) rows.push_back({"max_grad_norm", number(*manifest.max_grad_norm)});
  rows.push_back({"changes", "revision " + std::to_string(manifest.active_revision) + " in use, " +
                                 std::to_string(manifest.scheduled.size()) + " scheduled"});
  for (const auto& [name, value] : manifest.values) rows.push_back({name, value});
  std::string text;
  for (const std::string& line : aligned(rows)) text += line + "\n";
  return text;
}

std::string json_of(const CheckpointSeen& seen) {
  ordered_json json = summary(seen);
  if (!seen.problem.empty()) return text_of(json);
  json["skipped_steps"] = seen.manifest.skipped_steps;
  json["version"] = seen.manifest.version;
  json["active_revision"] = seen.manifest.active_revision;
  json["known_revision"] = seen.manifest.known_revision;
  json["lr_scale"] = seen.manifest.lr_scale;
  ordered_json groups = ordered_json::array();
  for (const auto& group : seen.manifest.groups) {
    ordered_json entry{{"options", describe(group.options)}};
    entry["lr_pin"] = group.lr_pin ? ordered_json(*group.lr_pin) : ordered_json(nullptr);
    groups.push_back(entry);
  }
  json["groups"] = groups;
  json["values"] = seen.manifest.values;
  ordered_json files = ordered_json::array();
  for (const auto& file : seen.manifest.files) {
    files.push_back({{"path", file.path}, {"bytes", file.bytes}});
  }
  json["files"] = files;
  return text_of(json);
}

}  // namespace fusedbun::launcher
