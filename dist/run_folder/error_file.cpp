#include "fusedbun/dist/run_folder/error_file.h"

#include <ctime>
#include <nlohmann/json.hpp>
#include <string>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/dist/run_folder/utc_time.h"

namespace fusedbun::run_folder {
namespace {

namespace fs = std::filesystem;

constexpr int kKeptMax = 1000;

fs::path earlier(const fs::path& run_dir, int number) {
  return run_dir / ("error-" + std::to_string(number) + ".json");
}

std::string name_of(plan::LostRank::Cause cause) {
  switch (cause) {
    case plan::LostRank::Cause::gone:
      return "gone";
    case plan::LostRank::Cause::silent:
      return "silent";
    case plan::LostRank::Cause::failed:
      return "failed";
    case plan::LostRank::Cause::hung:
      return "hung";
  }
  FUSEDBUN_ASSERT(false, "every cause has a name");
}

std::string text_of(const plan::LostRank& lost) {
  using nlohmann::ordered_json;
  const bool failed = lost.cause == plan::LostRank::Cause::failed;
  const auto known = [](bool is_known, auto value) {
    return is_known ? ordered_json(std::move(value)) : ordered_json();
  };
  const bool is_a_rank = lost.rank != plan::LostRank::kNone;
  const ordered_json json = {
      {"format", "fusedbun.error"},
      {"version", 1},
      {"rank", known(is_a_rank, lost.rank)},
      {"host", known(is_a_rank, lost.host)},
      {"pid", known(is_a_rank, lost.pid)},
      {"phase", known(is_a_rank, plan::name_of(lost.last.phase))},
      {"bucket", known(lost.last.bucket != plan::RankPosition::kNoBucket, lost.last.bucket)},
      {"step", known(is_a_rank, lost.last.job_step)},
      {"cause", name_of(lost.cause)},
      {"exit_code", known(failed, lost.code)},
      {"time", utc_text(std::time(nullptr))},
      {"sentence", plan::sentence_of(lost)},
  };
  return json.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

void write_error_file(const fs::path& run_dir, const plan::LostRank& lost) noexcept {
  try {
    if (run_dir.empty() || fs::exists(run_dir / kErrorName)) return;
    AtomicFile file(run_dir / kErrorName);
    file.write(text_of(lost));
    file.commit_new();
  } catch (const std::exception&) {
    // The sentence goes to standard error and into the exit code as well.
  }
}

void keep_earlier_error_file(const fs::path& run_dir) noexcept {
  std::error_code error;
  if (!fs::exists(run_dir / kErrorName, error)) return;
  int number = 1;
  while (number < kKeptMax && fs::exists(earlier(run_dir, number), error)) ++number;
  fs::rename(run_dir / kErrorName, earlier(run_dir, number), error);
  if (error) fs::remove(run_dir / kErrorName, error);  // it must not be taken for this attempt's
}

void remove_error_files(const fs::path& run_dir) noexcept {
  std::error_code ignored;
  fs::remove(run_dir / kErrorName, ignored);
  for (int number = 1; number <= kKeptMax && fs::remove(earlier(run_dir, number), ignored);)
    ++number;
}

}  // namespace fusedbun::run_folder
