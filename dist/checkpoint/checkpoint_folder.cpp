#include "fusedbun/dist/checkpoint/checkpoint_folder.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <functional>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/checkpoint_reader.h"
#include "fusedbun/dist/checkpoint/whole_tensors.h"
#include "fusedbun/dist/run_folder/atomic_file.h"

namespace fusedbun::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr const char* kUnderWay = ".tmp";
constexpr const char* kRemoved = ".removed";
constexpr const char* kReplaced = ".replaced";
constexpr const char* kSetAside = ".set-aside";

[[noreturn]] void fail_at(const char* what, const fs::path& path, const std::error_code& error) {
  throw IoError(std::string("cannot ") + what + " " + path.string() + ": " + error.message());
}

std::error_code last_error() {
  return {errno, std::generic_category()};
}

void make_folder(const fs::path& path) {
  if (::mkdir(path.c_str(), 0777) != 0) fail_at("create", path, last_error());
}

/// Makes `path` and what is missing above it, and each name durable in the folder that holds it.
void make_folders(const fs::path& path) {
  std::error_code ignored;
  if (path.empty() || fs::is_directory(path, ignored)) return;
  make_folders(path.parent_path());
  if (::mkdir(path.c_str(), 0777) != 0) {
    const std::error_code error = last_error();
    // "name/" was made as "name".
    if (error == std::errc::file_exists && fs::is_directory(path, ignored)) return;
    fail_at("create", path, error);
  }
  run_folder::sync_folder(path.has_parent_path() ? path.parent_path() : ".");
}

void remove_folder(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail_at("remove", path, error);
}

void rename_folder(const fs::path& from, const fs::path& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0)
    throw IoError("cannot rename " + from.string() + " to " + to.filename().string() + ": " +
                  last_error().message());
}

/// Is anything of this name there? A link that leads nowhere is.
bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() != fs::file_type::not_found;
}

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() == fs::file_type::directory;
}

fs::path with_ending(fs::path path, const char* ending) {
  path += ending;
  return path;
}

/// The N of "step-N" + `ending`; nothing for any other name, or another spelling of the number.
std::optional<int64_t> step_of(std::string_view name, std::string_view ending) {
  if (!name.starts_with(kPrefix) || !name.ends_with(ending) ||
      name.size() <= kPrefix.size() + ending.size())
    return std::nullopt;
  name.remove_prefix(kPrefix.size());
  name.remove_suffix(ending.size());
  return read_step(name);
}

/// Calls `visit` with the name of everything in `folder`. Returns what stopped it.
std::error_code for_each_name(const fs::path& folder,
                              const std::function<void(const std::string&)>& visit) {
  std::vector<std::string> names;  // read first: what is visited may be renamed
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error))
    names.push_back(entry->path().filename().string());
  for (const std::string& name : names) visit(name);
  return error;
}

bool exchange_names(const fs::path& one, const fs::path& other) {
  return ::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_EXCHANGE) == 0;
}

/// Gives `from` the name `to`. If there was one of that name, returns the name that it has now.
std::optional<fs::path> replace_folder(const fs::path& from, const fs::path& to) {
  if (!is_there(to)) {
    rename_folder(from, to);
    return std::nullopt;
  }
  FUSEDBUN_REQUIRE(is_folder(to), IoError,
                   "cannot write " + to.string() + ": it is there and is no folder: move it away");
  if (exchange_names(from, to)) return from;
  if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
    fail_at("exchange names with", to, last_error());
  const fs::path replaced = with_ending(to, kReplaced);
  remove_folder(replaced);
  rename_folder(to, replaced);
  try {
    rename_folder(from, to);
  } catch (...) {
    std::rename(replaced.c_str(), to.c_str());
    throw;
  }
  return replaced;
}

/// Takes replace_folder back, as far as it goes: a name of which nobody knows whether it is durable is not left to be believed.
void undo_last_append(const fs::path& from, const fs::path& to,
                      const std::optional<fs::path>& replaced) {
  if (replaced == from) {
    static_cast<void>(exchange_names(from, to));
    return;
  }
  std::rename(to.c_str(), from.c_str());
  if (replaced) std::rename(replaced->c_str(), to.c_str());
}

/// A rank whose files are not seen here wrote to another disk.
void require_files(const fs::path& folder, const Manifest& manifest) {
  for (const StoredFile& file : manifest.files) {
    std::error_code error;
    const auto bytes = fs::file_size(folder / file.path, error);
    if (error) {
      throw IoError("cannot see " + (folder / file.path).string() +
                    ", which another rank has written: " + error.message() +
                    "; all hosts must share this folder");
    }
    FUSEDBUN_REQUIRE(std::cmp_equal(bytes, file.bytes), IoError,
                     (folder / file.path).string() + " has " + std::to_string(bytes) +
                         " bytes, and its rank has written " + std::to_string(file.bytes));
  }
}

/// Ends a replacement that was given up between two renames: one of the two has the name, the other goes.
void finish_replacing(const fs::path& published) noexcept {
  const fs::path replaced = with_ending(published, kReplaced);
  std::error_code ignored;
  if (is_there(published)) {
    fs::remove_all(replaced, ignored);
  } else if (is_there(replaced)) {
    fs::rename(replaced, published, ignored);
  }
}

bool has_manifest(const fs::path& folder) {
  try {
    read_manifest(folder);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

std::optional<int64_t> read_step(std::string_view text) {
  int64_t step = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), step);
  if (error != std::errc{} || step < 0 || std::to_string(step) != text) return std::nullopt;
  return step;
}

CheckpointFolder::CheckpointFolder(fs::path root) : root_(std::move(root)) {}

fs::path CheckpointFolder::path_of(int64_t job_step) const {
  return root_ / (std::string(kPrefix) + std::to_string(job_step));
}

fs::path CheckpointFolder::path_under_way(int64_t job_step) const {
  return with_ending(path_of(job_step), kUnderWay);
}

void CheckpointFolder::begin(int64_t job_step) const {
  make_folders(root_);
  const fs::path folder = path_under_way(job_step);
  remove_folder(folder);
  make_folder(folder);
  for (const char* name : {kModelFolder, kOptimizerFolder, kTensorsFolder})
    make_folder(folder / name);
}

void CheckpointFolder::sync_folders(int64_t job_step) const {
  for (const char* name : {kModelFolder, kOptimizerFolder, kTensorsFolder})
    run_folder::sync_folder(path_under_way(job_step) / name);
}

Digest CheckpointFolder::publish(const Manifest& manifest) const {
  const std::string text = format_manifest(manifest);
  // Read as a reader will: what could not be loaded is not published.
  const Manifest as_read = parse_manifest(text);
  put_together(as_read);
  const fs::path under_way = path_under_way(manifest.job_step);
  const fs::path published = path_of(manifest.job_step);
  require_files(under_way, manifest);
  run_folder::AtomicFile file(under_way / kManifestName);
  file.write(text);
  file.commit();
  const std::optional<fs::path> replaced = replace_folder(under_way, published);
  try {
    run_folder::sync_folder(root_);
  } catch (...) {
    undo_last_append(under_way, published, replaced);
    throw;
  }
  run_folder::AtomicFile latest(root_ / kLatestName);
  latest.write(published.filename().string() + "\n");
  latest.commit();
  if (replaced) {
    std::error_code left_for_the_next_start;
    fs::remove_all(*replaced, left_for_the_next_start);
  }
  return as_read.digest;
}

void CheckpointFolder::discard(int64_t job_step) const noexcept {
  std::error_code left_for_the_next_start;
  fs::remove_all(path_under_way(job_step), left_for_the_next_start);
  finish_replacing(path_of(job_step));
}

std::vector<int64_t> CheckpointFolder::steps() const {
  std::vector<int64_t> steps;
  const std::error_code error = for_each_name(root_, [&](const std::string& name) {
    const auto step = step_of(name, "");
    if (step && is_folder(root_ / name)) steps.push_back(*step);
  });
  if (error && error != std::errc::no_such_file_or_directory) fail_at("read", root_, error);
  std::ranges::sort(steps, std::greater{});
  return steps;
}

std::vector<int64_t> CheckpointFolder::remove_oldest(int keep) const {
  FUSEDBUN_ASSERT(keep >= 1, "the last checkpoint is kept");
  std::vector<int64_t> whole = steps();
  std::erase_if(whole, [&](int64_t step) { return !has_manifest(path_of(step)); });
  if (std::ssize(whole) <= keep) return {};
  const std::vector<int64_t> surplus(whole.begin() + keep, whole.end());
  for (const int64_t step : surplus) {
    const fs::path removed = with_ending(path_of(step), kRemoved);
    remove_folder(removed);
    rename_folder(path_of(step), removed);
  }
  // Only when their names are gone for good do their files go: half a checkpoint is never named step-N.
  run_folder::sync_folder(root_);
  for (const int64_t step : surplus) remove_folder(with_ending(path_of(step), kRemoved));
  return surplus;
}

std::vector<int64_t> CheckpointFolder::set_aside_after(int64_t job_step) const {
  std::vector<int64_t> later = steps();
  std::erase_if(later, [&](int64_t step) { return step <= job_step; });
  for (const int64_t step : later) {
    const fs::path aside = with_ending(path_of(step), kSetAside);
    remove_folder(aside);
    rename_folder(path_of(step), aside);
  }
  if (!later.empty()) run_folder::sync_folder(root_);
  return later;
}

void CheckpointFolder::remove_leftovers() const noexcept {
  run_folder::remove_leftovers(root_);
  static_cast<void>(for_each_name(root_, [&](const std::string& name) {
    std::error_code ignored;
    if (const auto step = step_of(name, kReplaced)) finish_replacing(path_of(*step));
    if (step_of(name, kUnderWay) || step_of(name, kRemoved)) fs::remove_all(root_ / name, ignored);
  }));
}

}  // namespace fusedbun::checkpoint
