#pragma once
// CheckpointRecords: what became of each checkpoint that a job knows of: asked for, being written, durable, failed, gone. Told by
// the training loop and by the thread that writes; asked by clients.
//
//   answer(), accept()  ->  take_request(): the header of that step tells all ranks  ->  started()  ->  durable() or failed()
//
// Pure: times are arguments. Thread safety: none; the service guards it.
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "fusedbun/dist/changes/change_request.h"
#include "fusedbun/dist/control/control_server.h"

namespace fusedbun::control {

struct CheckpointRecord {
  enum class State : uint8_t { creating, active, failed, deleted };
  State state = State::creating;
  CheckpointFacts facts;     ///< bytes, ranks and digest once it is durable
  int64_t create_us = 0;     ///< when it was asked for, else when it was begun
  std::string actor;         ///< who asked for it; empty: the program saved by itself
  std::string reason;        ///< why, as they say
  std::string error;         ///< a sentence
  std::string error_reason;  ///< "WRITE_FAILED"
};

class CheckpointRecords {
 public:
  /// How many that are not ACTIVE are kept.
  static constexpr size_t kPastMax = 1000;
  static constexpr size_t kRememberedRequests = 1024;

  /// Steps whose records have turned, in order.
  using Turned = std::vector<int64_t>;

  struct Request {
    std::string actor;
    std::string request_id;  ///< empty: none
    std::string reason;
    bool operator==(const Request&) const = default;
  };
  /// The step of a checkpoint, or why there will be none.
  using Answer = std::variant<int64_t, changes::Refusal>;
  /// What a request that was made before is answered; INVALID_ARGUMENT REQUEST_ID_REUSED for another one; nothing for a new one.
  std::optional<Answer> repeated(const Request& request) const;
  /// What a new request of a checkpoint of `job_step` will be answered: that step, or an earlier one that is asked for already;
  /// UNAVAILABLE SAVE_UNDER_WAY with the step that is being saved.
  Answer answer(int64_t job_step) const;
  /// Made and answered with `job_step`.
  Turned accept(const Request& request, int64_t job_step, int64_t now_us);
  /// A checkpoint is asked for, and all ranks are told now.
  bool take_request() { return std::exchange(untold_, false); }
  /// One is asked for and has not begun.
  bool is_requested() const { return requested_.has_value(); }

  Turned started(int64_t job_step, int64_t now_us);
  /// The program tried to save after this step, but an earlier save was not done on some rank.
  Turned refused(int64_t job_step);
  Turned durable(const CheckpointFacts& facts, int64_t now_us);
  Turned failed(int64_t job_step, std::string_view error, int64_t now_us);
  Turned deleted(int64_t job_step);
  /// In the run folder when the job began, whole or, with what is wrong, not.
  void found(const CheckpointFacts& facts, std::string_view damage);
  /// `job_step` steps and one more are done: who was to save after fewer and has not begun will not.
  Turned step_ended(int64_t job_step);
  Turned run_ended();

  /// Nothing if there is none of that step.
  const CheckpointRecord* find(int64_t job_step) const;
  /// In order of step, from `first` on.
  std::vector<const CheckpointRecord*> list(int64_t first, size_t count) const;
  /// The newest ACTIVE one.
  const CheckpointRecord* newest() const;
  /// Why the newest that has ended is not there; empty: it is.
  const std::string& last_error() const { return last_error_; }

 private:
  Turned give_up_request(std::string_view reason, std::string error);
  Turned fail(int64_t job_step, std::string_view reason, std::string error);
  void forget_past();

  std::map<int64_t, CheckpointRecord> records_;  ///< by step
  std::optional<int64_t> requested_;             ///< asked for, and not begun
  bool untold_ = false;                          ///< and the ranks do not know
  std::optional<int64_t> under_way_;
  std::map<std::pair<std::string, std::string>, std::pair<Request, int64_t>>
      requests_;  ///< [actor, request_id]
  std::string last_error_;
};

}  // namespace fusedbun::control
