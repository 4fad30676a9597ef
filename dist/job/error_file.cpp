#include "fusedbun/dist/job/error_file.h"

#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun {
namespace {

namespace fs = std::filesystem;
constexpr const char* kName = "error.json";

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

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", ::gmtime_r(&now, &parts));
  return text;
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
      {"time", utc_now()},
      {"sentence", plan::sentence_of(lost)},
  };
  return json.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

void write_error_file(const fs::path& run_dir, const plan::LostRank& lost) noexcept {
  try {
    if (run_dir.empty() || fs::exists(run_dir / kName)) return;
    const fs::path temporary =
        run_dir / (std::string(kName) + "." + std::to_string(std::random_device{}()));
    {
      std::ofstream file(temporary);
      file << text_of(lost);
      if (!file.flush().good()) return;
    }
    std::error_code taken;  // a link, unlike a rename, leaves what is there
    fs::create_hard_link(temporary, run_dir / kName, taken);
    fs::remove(temporary, taken);
  } catch (const std::exception&) {
    // The sentence goes to standard error and into the exit code as well.
  }
}

void remove_error_file(const fs::path& run_dir) noexcept {
  std::error_code ignored;
  fs::remove(run_dir / kName, ignored);
}

}  // namespace fusedbun
