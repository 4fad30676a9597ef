#include "fusedbun/tests/gpu/gpu_check.h"

#include <iostream>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/gpu.h"

namespace fusedbun::gpu_check {
namespace {

constexpr size_t kSentencesKept = 20;

int report_error(const std::exception& error, int code) {
  std::cerr << error.what() << '\n';
  std::cout << Json{{"held", false}, {"error", error.what()}}.dump(2) << '\n';
  return code;
}

}  // namespace

void Comparisons::add(const std::string& kind, const std::optional<std::string>& wrong) {
  ++compared_[kind];
  if (!wrong) return;
  ++wrong_[kind];
  if (sentences_.size() < kSentencesKept) sentences_.push_back(kind + ": " + *wrong);
}

Json Comparisons::result() const {
  return {{"held", wrong_.empty() && !compared_.empty()},
          {"compared", compared_},
          {"wrong", wrong_},
          {"first_wrong", sentences_}};
}

int run_check(bool rehearse, const std::function<Json()>& check) {
  try {
    FUSEDBUN_REQUIRE(
        rehearse || load_gpu_support() > 0, DeviceError,
        "CUDA sees no GPU on this machine (is a driver installed? nvidia-smi would list it)");
    const Json result = check();
    std::cout << result.dump(2) << '\n';
    return result.at("held").get<bool>() ? 0 : 1;
  } catch (const Error& error) {
    return report_error(error, static_cast<int>(error.code()));
  } catch (const std::exception& error) {
    return report_error(error, static_cast<int>(ExitCode::unclassified));
  }
}

}  // namespace fusedbun::gpu_check
