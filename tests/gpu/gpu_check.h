#pragma once
// What the programs of this folder share: they find the GPU, count comparisons, and print their result as JSON.
//
// Thread safety: one thread.
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace fusedbun::gpu_check {

using Json = nlohmann::ordered_json;

/// Counts comparisons; keeps the first sentences about wrong ones.
class Comparisons {
 public:
  /// `wrong`: what is wrong, or nullopt.
  void add(const std::string& kind, const std::optional<std::string>& wrong);
  /// {"held": none was wrong and at least one was made, "compared": {kind: count}, "wrong": {kind: count},
  /// "first_wrong": [sentence]}.
  Json result() const;

 private:
  std::map<std::string, int> compared_, wrong_;
  std::vector<std::string> sentences_;
};

/// The main() of a check. Loads LibTorch's CUDA half and runs `check`; with `rehearse` the check runs on the CPU alone,
/// which tries the check and not the GPU. Prints what it returns. Exit code 0 if "held" in it is true, 1 if not, 71
/// without a usable GPU, with one sentence on stderr and {"held": false, "error"} on stdout.
int run_check(bool rehearse, const std::function<Json()>& check);

}  // namespace fusedbun::gpu_check
