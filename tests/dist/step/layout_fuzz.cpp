// The layout fuzz: random models, shardings and training programs, run on several ranks and compared with the dumb second
// implementation in one process.
#include <ATen/Parallel.h>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <csignal>
#include <fstream>
#include <iostream>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/dist/step/layout_fuzz_run.h"

namespace fusedbun::testing {
namespace {

constexpr const char* kHelp =
    R"(layout_fuzz: random models, shardings and training programs on several ranks, against one process.

  --cases N         how many (2000)
  --seed S          of the first case; case k has seed S + k (1)
  --transport T     auto, collective, point_to_point or shared_memory (auto: all are drawn)
  --gloo P          percent of the cases that run over Gloo, the others over local ranks (5)
  --minutes M       starts no case after so long (no limit)
  --jobs N          cases at the same time (2)
  --at-least N      how often everything that can be drawn must have been (50 per 2000 cases)
  --json FILE       writes cases, seed, seconds and counts
  --show            prints the case with the seed S, and runs it
  --help

Exit status: 0: all cases came out right, and often enough; 1: one did not, and is printed, made smaller; 2: usage.
)";

constexpr size_t kMaxJobs = 64;

struct Arguments {
  int64_t cases = 2000;
  uint64_t seed = 1;
  plan::GradientTransport transport = plan::GradientTransport::automatic;
  int64_t gloo_percent = 5;
  int64_t jobs = 2;
  std::optional<int64_t> minutes;
  std::optional<int64_t> at_least;
  std::string json;
  bool show = false, help = false;
};

int64_t number(const std::string& name, const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  FUSEDBUN_REQUIRE(error == std::errc{} && end == text.data() + text.size() && value >= 0,
                   ConfigError, name + " " + text + ": it is a number, at least 0");
  return value;
}

Arguments parse(int count, char** words) {
  Arguments arguments;
  for (int i = 1; i < count; ++i) {
    const std::string name = words[i];
    if (name == "--help" || name == "-h") {
      arguments.help = true;
      continue;
    }
    if (name == "--show") {
      arguments.show = true;
      continue;
    }
    FUSEDBUN_REQUIRE(i + 1 < count, ConfigError, name + " needs a value, or is unknown: --help");
    const std::string value = words[++i];
    if (name == "--cases") {
      arguments.cases = number(name, value);
    } else if (name == "--seed") {
      arguments.seed = static_cast<uint64_t>(number(name, value));
    } else if (name == "--transport") {
      arguments.transport = plan::parse_transport(value);
    } else if (name == "--gloo") {
      arguments.gloo_percent = number(name, value);
    } else if (name == "--jobs") {
      arguments.jobs = std::clamp<int64_t>(number(name, value), 1, kMaxJobs);
    } else if (name == "--minutes") {
      arguments.minutes = number(name, value);
    } else if (name == "--at-least") {
      arguments.at_least = number(name, value);
    } else if (name == "--json") {
      arguments.json = value;
    } else {
      throw ConfigError(name + " is unknown: --help");
    }
  }
  return arguments;
}

FuzzCase case_of(const Arguments& arguments, uint64_t seed) {
  const bool is_gloo = static_cast<int64_t>(seed % 100) < arguments.gloo_percent;
  return draw_case(seed, is_gloo ? FuzzWorld::gloo : FuzzWorld::local, arguments.transport);
}

void print_failure(const FuzzCase& failing, const Failure& failure) {
  std::cout << "seed " << failing.seed << ": " << failure.kind << ": " << failure.sentence << "\n"
            << to_cpp(failing) << std::flush;
  // A case that hangs takes half a minute each time.
  const bool is_slow = failure.kind == "timeout" || failure.kind == "peer lost";
  const FuzzCase smaller = shrink(failing, run_case, is_slow ? 20 : 600);
  std::cout << "\nThe smallest that still fails (" << run_case(smaller).sentence << "):\n"
            << to_cpp(smaller) << "EXPECT_EQ(run_case(c).sentence, \"\");\n"
            << std::flush;
}

// The seeds of the cases that run now, for a process that is about to abort.
std::array<std::atomic<uint64_t>, kMaxJobs> running_seeds{};

extern "C" void tell_running_seeds(int signal) {
  for (const auto& running : running_seeds) {
    uint64_t seed = running;
    if (seed == 0) continue;
    char text[64] = "aborted while the case of this seed ran: ";
    char* end = text + sizeof("aborted while the case of this seed ran: ") - 1;
    end = std::to_chars(end, text + sizeof(text) - 1, seed).ptr;
    *end++ = '\n';
    if (write(STDERR_FILENO, text, static_cast<size_t>(end - text)) < 0) break;
  }
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

/// Runs all cases, several at a time; stops at the first that fails.
class Fuzz {
 public:
  explicit Fuzz(const Arguments& arguments) : arguments_(arguments) {}

  bool run() {
    std::vector<std::thread> workers;
    for (int64_t job = 0; job < arguments_.jobs; ++job) {
      workers.emplace_back([this, job] { work(static_cast<size_t>(job)); });
    }
    for (std::thread& worker : workers) worker.join();
    if (!failure_) return true;
    print_failure(failing_, failure_);
    return false;
  }

  const std::map<std::string, int64_t>& counts() const { return counts_; }
  int64_t cases() const { return cases_; }
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  bool is_late() const {
    return arguments_.minutes && seconds() > 60 * static_cast<double>(*arguments_.minutes);
  }

  void work(size_t job) {
    for (int64_t k = next_++; k < arguments_.cases && !is_late(); k = next_++) {
      const FuzzCase drawn = case_of(arguments_, arguments_.seed + static_cast<uint64_t>(k));
      running_seeds[job] = drawn.seed;
      const Failure failure = run_case(drawn);
      running_seeds[job] = 0;
      const std::lock_guard lock(mutex_);
      count_features(drawn, counts_);
      ++cases_;
      if (!failure) continue;
      next_ = arguments_.cases;
      if (failure_) return;
      failing_ = drawn;
      failure_ = failure;
    }
  }

  const Arguments& arguments_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;  ///< guards what follows
  std::map<std::string, int64_t> counts_;
  int64_t cases_ = 0;
  FuzzCase failing_;
  Failure failure_;
};

/// Prints every count; false if one is too small.
bool print_counts(const std::map<std::string, int64_t>& counts, int64_t wanted) {
  bool enough = true;
  for (const auto& [name, count] : counts) std::cout << "  " << name << ": " << count << "\n";
  for (const std::string& name : wanted_features()) {
    const auto found = counts.find(name);
    const int64_t count = found == counts.end() ? 0 : found->second;
    if (count >= wanted) continue;
    std::cout << name << " was drawn " << count << " times, and must be at least " << wanted
              << " times\n";
    enough = false;
  }
  return enough;
}

void write_json(const Arguments& arguments, const Fuzz& fuzz) {
  std::ofstream file(arguments.json);
  file << "{\n  \"cases\": " << fuzz.cases() << ",\n  \"seed\": " << arguments.seed
       << ",\n  \"seconds\": " << static_cast<int64_t>(fuzz.seconds()) << ",\n  \"counts\": {";
  const char* between = "\n";
  for (const auto& [name, count] : fuzz.counts()) {
    file << between << "    \"" << name << "\": " << count;
    between = ",\n";
  }
  file << "\n  }\n}\n";
  file.close();
  FUSEDBUN_REQUIRE(!file.fail(), ConfigError, "--json: " + arguments.json + " cannot be written");
}

int run(const Arguments& arguments) {
  if (arguments.help) {
    std::cout << kHelp;
    return 0;
  }
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS}) std::signal(signal, tell_running_seeds);
  // The ranks are threads already.
  at::set_num_threads(1);
  if (arguments.show) {
    const FuzzCase shown = case_of(arguments, arguments.seed);
    std::cout << to_cpp(shown) << std::flush;
    const Failure failure = run_case(shown);
    std::cout << (failure ? failure.kind + ": " + failure.sentence : "right") << "\n";
    return failure ? 1 : 0;
  }
  std::cout << "seeds " << arguments.seed << " to "
            << arguments.seed + static_cast<uint64_t>(arguments.cases) - 1 << "\n"
            << std::flush;
  Fuzz fuzz(arguments);
  if (!fuzz.run()) return 1;
  const bool enough = print_counts(fuzz.counts(), arguments.at_least.value_or(fuzz.cases() / 40));
  std::cout << fuzz.cases() << " cases came out right in " << static_cast<int64_t>(fuzz.seconds())
            << " s\n";
  if (!arguments.json.empty()) write_json(arguments, fuzz);
  return enough ? 0 : 1;
}

}  // namespace
}  // namespace fusedbun::testing

int main(int count, char** words) {
  try {
    return fusedbun::testing::run(fusedbun::testing::parse(count, words));
  } catch (const fusedbun::ConfigError& error) {
    std::cerr << "layout_fuzz: " << error.what() << "\n";
    return 2;
  }
}
