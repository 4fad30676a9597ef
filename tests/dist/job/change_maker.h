#pragma once
// Makes changes over a job's control plane, for tests that see LibTorch and so must not see gRPC.
//
// Thread safety: functions without state.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace fusedbun::testing {

struct MadeChange {
  int64_t revision = 0;
  int64_t effective_step = 0;
};

/// `apply_at_step` < 0: the next step. Throws as ControlClient does.
class ChangeMaker {
 public:
  explicit ChangeMaker(const std::filesystem::path& run_dir);
  ~ChangeMaker();
  ChangeMaker(const ChangeMaker&) = delete;  // owns a connection

  MadeChange set(const std::string& group, const std::string& field, double value,
                 int64_t apply_at_step);
  /// False if it was too late for that.
  bool cancel(int64_t revision);
  int64_t current_step();
  void stop();

 private:
  class Client;
  std::unique_ptr<Client> client_;
};

}  // namespace fusedbun::testing
