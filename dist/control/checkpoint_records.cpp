#include "fusedbun/dist/control/checkpoint_records.h"

#include <algorithm>

namespace fusedbun::control {
namespace {

using State = CheckpointRecord::State;

std::string of_step(int64_t job_step) {
  return "of step " + std::to_string(job_step);
}

}  // namespace

std::optional<CheckpointRecords::Answer> CheckpointRecords::repeated(const Request& request) const {
  const auto known = requests_.find({request.actor, request.request_id});
  if (request.request_id.empty() || known == requests_.end()) return std::nullopt;
  if (known->second.first == request) return known->second.second;
  return changes::invalid(
      "REQUEST_ID_REUSED",
      "request_id was used for another request of a checkpoint: give each its own");
}

CheckpointRecords::Answer CheckpointRecords::answer(int64_t job_step) const {
  if (under_way_) {
    return changes::Refusal{changes::RefusalKind::unavailable,
                            "SAVE_UNDER_WAY",
                            "the checkpoint " + of_step(*under_way_) +
                                " is being written: ask again when it is durable",
                            {{"step", std::to_string(*under_way_)}}};
  }
  return requested_.value_or(job_step);
}

CheckpointRecords::Turned CheckpointRecords::accept(const Request& request, int64_t job_step,
                                                    int64_t now_us) {
  if (!request.request_id.empty() && requests_.size() < kRememberedRequests)
    requests_.emplace(std::pair(request.actor, request.request_id), std::pair(request, job_step));
  if (requested_) return {};
  requested_ = job_step;
  untold_ = true;
  CheckpointRecord& record = records_[job_step] = {};
  record.facts.job_step = job_step;
  record.create_us = now_us;
  record.actor = request.actor;
  record.reason = request.reason;
  return {job_step};
}

CheckpointRecords::Turned CheckpointRecords::started(int64_t job_step, int64_t now_us) {
  under_way_ = job_step;
  if (requested_ == job_step) {
    requested_.reset();
    untold_ = false;
    return {};  // those who watch have seen it in this state
  }
  CheckpointRecord& record = records_[job_step] = {};
  record.facts.job_step = job_step;
  record.create_us = now_us;
  return {job_step};
}

CheckpointRecords::Turned CheckpointRecords::durable(const CheckpointFacts& facts, int64_t now_us) {
  under_way_.reset();
  last_error_.clear();
  CheckpointRecord& record = records_[facts.job_step];
  if (record.create_us == 0) record.create_us = now_us;
  record.state = State::active;
  record.facts = facts;
  record.error.clear();
  record.error_reason.clear();
  return {facts.job_step};
}

CheckpointRecords::Turned CheckpointRecords::failed(int64_t job_step, std::string_view error,
                                                    int64_t now_us) {
  under_way_.reset();
  CheckpointRecord& record = records_[job_step];
  record.facts.job_step = job_step;
  if (record.create_us == 0) record.create_us = now_us;
  return fail(job_step, "WRITE_FAILED", std::string(error));
}

CheckpointRecords::Turned CheckpointRecords::fail(int64_t job_step, std::string_view reason,
                                                  std::string error) {
  CheckpointRecord& record = records_.at(job_step);
  record.state = State::failed;
  record.error_reason = reason;
  record.error = std::move(error);
  last_error_ = record.error;
  forget_past();  // it may be this record
  return {job_step};
}

CheckpointRecords::Turned CheckpointRecords::deleted(int64_t job_step) {
  const auto found = records_.find(job_step);
  if (found == records_.end()) return {};
  found->second.state = State::deleted;
  forget_past();
  return {job_step};
}

void CheckpointRecords::found(const CheckpointFacts& facts, std::string_view damage) {
  CheckpointRecord& record = records_[facts.job_step];
  record.facts = facts;
  record.create_us = facts.written_us;
  record.state = damage.empty() ? State::active : State::failed;
  record.error = damage;
  if (!damage.empty()) record.error_reason = "DAMAGED";
}

CheckpointRecords::Turned CheckpointRecords::refused(int64_t job_step) {
  if (requested_ != job_step) return {};  // the program's own, which it will try again
  return give_up_request("SAVE_UNDER_WAY",
                         "another one was still being written: ask again when it is durable");
}

CheckpointRecords::Turned CheckpointRecords::step_ended(int64_t job_step) {
  if (!requested_ || job_step < *requested_) return {};
  return give_up_request(
      "NOT_SAVED",
      "the program went on without saving it: it may not look at checkpoint_requested()");
}

CheckpointRecords::Turned CheckpointRecords::give_up_request(std::string_view reason,
                                                             std::string error) {
  const int64_t step = *requested_;
  requested_.reset();
  untold_ = false;
  return fail(step, reason, std::move(error));
}

CheckpointRecords::Turned CheckpointRecords::run_ended() {
  Turned turned;
  for (const auto& [step, record] : records_) {
    if (record.state == State::creating) turned.push_back(step);
  }
  for (const int64_t step : turned) fail(step, "RUN_ENDED", "the run ended before it was durable");
  requested_.reset();
  under_way_.reset();
  return turned;
}

const CheckpointRecord* CheckpointRecords::find(int64_t job_step) const {
  const auto found = records_.find(job_step);
  return found == records_.end() ? nullptr : &found->second;
}

std::vector<const CheckpointRecord*> CheckpointRecords::list(int64_t first, size_t count) const {
  std::vector<const CheckpointRecord*> listed;
  for (auto next = records_.lower_bound(first); next != records_.end() && listed.size() < count;
       ++next) {
    listed.push_back(&next->second);
  }
  return listed;
}

const CheckpointRecord* CheckpointRecords::newest() const {
  const auto found = std::find_if(records_.rbegin(), records_.rend(), [](const auto& entry) {
    return entry.second.state == State::active;
  });
  return found == records_.rend() ? nullptr : &found->second;
}

void CheckpointRecords::forget_past() {
  const auto is_past = [](const auto& entry) {
    return entry.second.state == State::failed || entry.second.state == State::deleted;
  };
  while (static_cast<size_t>(std::ranges::count_if(records_, is_past)) > kPastMax)
    records_.erase(std::ranges::find_if(records_, is_past));
}

}  // namespace fusedbun::control
