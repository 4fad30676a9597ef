#include "fusedbun/dist/step/step_consensus.h"

#include <ATen/ops/tensor.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/core/option_fields.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/step/broadcast_changes.h"

namespace fusedbun {
namespace {

/// Stands for a setting that was not changed; no setting is NaN.
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

/// "name\nwhat\n" for each event, and back.
std::string text_of(const StepConsensus::Events& events) {
  std::string text;
  for (const auto& [name, what] : events) text.append(name).append("\n").append(what).append("\n");
  return text;
}

StepConsensus::Events events_of(const std::string& text) {
  StepConsensus::Events events;
  std::istringstream lines(text);
  std::string name, what;
  while (std::getline(lines, name) && std::getline(lines, what)) events[name] = what;
  return events;
}

/// One sentence about the first parameter that was changed differently on two ranks.
std::string difference_of(const std::vector<StepConsensus::Events>& ranks) {
  std::set<std::string> names;
  for (const auto& events : ranks) {
    for (const auto& event : events) names.insert(event.first);
  }
  const auto what = [&](size_t rank, const std::string& name) {
    const auto it = ranks[rank].find(name);
    return it == ranks[rank].end() ? "was not changed" : it->second;
  };
  for (const std::string& name : names) {
    for (size_t rank = 1; rank < ranks.size(); ++rank) {
      const std::string first = what(0, name), other = what(rank, name);
      if (first == other) continue;
      return "parameter '" + name + "' " + other + " on rank " + std::to_string(rank) +
             " where it " + first +
             " on rank 0: change parameters on all ranks alike, or inside "
             "write_parameters(), which runs on rank 0 and gives every rank the result";
    }
  }
  return "the ranks changed their parameters differently: change them on all ranks alike";
}

}  // namespace

// ---- before the first write ---------------------------------------------------------------------

StepConsensus::Outcome StepConsensus::agree(plan::RankFacts facts, const std::string& problem,
                                            const Events& events) {
  facts.refuses = !problem.empty();
  std::vector<int64_t> message = plan::agreement_message(facts);
  control_.all_reduce(comm::Buffer::of(std::span(message)), comm::ReduceOp::bit_or).wait();
  Outcome outcome;
  outcome.agreement = plan::read_agreement(message, facts.used.size(), facts.dirty.size());
  if (!outcome.agreement.is_equal || outcome.agreement.refused) {
    outcome.refusal = refusal_of(facts, problem, events, outcome.out_of_step);
  }
  return outcome;
}

// Every rank is here for the same reason, so each may ask the others for their side of it.
std::string StepConsensus::refusal_of(const plan::RankFacts& facts, const std::string& problem,
                                      const Events& events, bool& out_of_step) {
  const std::vector<plan::EqualFacts> all = comm::all_gather_object(control_, facts.equal);
  const auto& first = all.front();
  out_of_step = std::ranges::any_of(all, [&](const plan::EqualFacts& other) {
    return other.call != first.call || other.job_step != first.job_step;
  });
  if (out_of_step) return *plan::disagreement(all);
  const std::vector<std::string> problems = comm::all_gather_text(control_, problem);
  for (size_t rank = 0; rank < problems.size(); ++rank) {
    if (!problems[rank].empty()) return "rank " + std::to_string(rank) + ": " + problems[rank];
  }
  if (const auto sentence = plan::disagreement(all)) return *sentence;
  std::vector<Events> of_ranks;
  for (const std::string& text : comm::all_gather_text(control_, text_of(events))) {
    of_ranks.push_back(events_of(text));
  }
  return difference_of(of_ranks);
}

double StepConsensus::global_norm(double own_sum_of_squares) {
  control_.all_reduce(comm::Buffer::of(std::span(&own_sum_of_squares, 1)), comm::ReduceOp::sum)
      .wait();
  return std::sqrt(own_sum_of_squares);
}

int64_t StepConsensus::highest(int64_t value) {
  control_.all_reduce(comm::Buffer::of(std::span(&value, 1)), comm::ReduceOp::max).wait();
  return value;
}

// ---- the last step's header ---------------------------------------------------------------------

void StepConsensus::finish_previous() {
  if (!message_.header_under_way()) return;
  const std::vector<plan::StepHeader>& headers = message_.receive_headers();
  if (const auto difference = plan::disagreement(headers)) {
    comm::wait_until_all_have_heard(control_);
    throw DivergedError(*difference);
  }
  accept_changes(headers[0].newest_revision);
  for (const plan::StepHeader& header : headers) {
    if (header.flags & plan::StepHeader::kSaving) asked_for_checkpoint_ = true;
    if (header.flags & plan::StepHeader::kPausing) asked_to_pause_ = true;
    if (header.flags & plan::StepHeader::kStopping) {
      leaving_ = changes::LeaveRequest::stop;
    } else if ((header.flags & plan::StepHeader::kLeaving) &&
               leaving_ == changes::LeaveRequest::none) {
      leaving_ = changes::LeaveRequest::drain;
    }
  }
}

bool StepConsensus::accept_changes(int64_t newest_revision) {
  const int64_t known = changes_.known_revision();
  if (newest_revision <= known) return false;
  changes_.accept(broadcast_changes(control_, port_, known, newest_revision));
  return true;
}

uint64_t StepConsensus::close_step(const StepOutcome& outcome, std::span<const uint64_t> scaled_by,
                                   const std::vector<int64_t>& step_counts) {
  changes::ControlPort::Boundary boundary{.newest_revision = changes_.known_revision()};
  if (port_ != nullptr) boundary = port_->close_step(model_.job_step);
  const auto requested = std::max(boundary.leave, changes::LeaveRequest{leave_requested_.load()});
  plan::StepHeader header;
  header.job_step = model_.job_step;
  header.active_revision = changes_.active_revision();
  header.newest_revision = boundary.newest_revision;
  header.chain_hash = changes_.chain_hash();
  header.state_digest = state_digest(scaled_by, step_counts);
  header.skipped_steps = skipped_steps_;
  header.rank = static_cast<uint32_t>(model_.rank);
  if (requested == changes::LeaveRequest::drain) header.flags |= plan::StepHeader::kLeaving;
  if (requested == changes::LeaveRequest::stop) header.flags |= plan::StepHeader::kStopping;
  if (boundary.checkpoint) header.flags |= plan::StepHeader::kSaving;
  if (boundary.pause) header.flags |= plan::StepHeader::kPausing;
  message_.send_header(header);

  // Not when the header is read: that may be between two steps, for a save.
  checkpoint_requested_ = std::exchange(asked_for_checkpoint_, false);
  // The program saves after this step, so the job is held after the next one.
  is_to_hold_ = !checkpoint_requested_ && std::exchange(asked_to_pause_, false) &&
                leaving_ == changes::LeaveRequest::none;
  make_report(outcome);
  if (port_ != nullptr) port_->step_finished(report_);
  ++model_.job_step;
  enter_next_step();
  return header.state_digest;
}

void StepConsensus::hold() {
  const auto begin = std::chrono::steady_clock::now();
  enum : size_t { kGoesOn, kLeave };
  for (;;) {
    std::array<int64_t, 2> wishes = {0, leave_requested_.load()};
    if (model_.rank == 0) {
      const changes::ControlPort::Boundary boundary =
          port_ != nullptr ? port_->held() : changes::ControlPort::Boundary{};
      wishes[kGoesOn] = boundary.pause ? 0 : 1;
      wishes[kLeave] = std::max(wishes[kLeave], static_cast<int64_t>(boundary.leave));
    }
    control_.all_reduce(comm::Buffer::of(std::span<int64_t>(wishes)), comm::ReduceOp::max).wait();
    leaving_ = static_cast<changes::LeaveRequest>(wishes[kLeave]);
    if (wishes[kGoesOn] != 0 || leaving_ != changes::LeaveRequest::none) break;
    std::this_thread::sleep_for(kHoldTick);
  }
  held_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (port_ != nullptr) port_->hold_ended(leaving_);
}

uint64_t StepConsensus::state_digest(std::span<const uint64_t> scaled_by,
                                     const std::vector<int64_t>& step_counts) const {
  XXH3_state_t hash;
  XXH3_64bits_reset(&hash);
  const auto add = [&](const void* data, size_t bytes) { XXH3_64bits_update(&hash, data, bytes); };
  add(step_counts.data(), step_counts.size() * sizeof(int64_t));
  add(scaled_by.data(), scaled_by.size_bytes());
  const std::vector<double> lr = effective_lr();
  for (size_t g = 0; g < model_.groups.size(); ++g) {
    Options options = model_.group_options(g);
    options.lr = lr[g];
    visit_options(options, [&](const char*, const auto& field) {
      const auto value = static_cast<double>(field);
      add(&value, sizeof(value));
    });
  }
  return XXH3_64bits_digest(&hash);
}

void StepConsensus::make_report(const StepOutcome& outcome) {
  report_.job_step = model_.job_step;
  report_.leave = leaving_;
  report_.active_revision = changes_.active_revision();
  report_.skipped_steps = skipped_steps_;
  report_.outcome_step = outcome.job_step;
  report_.skipped = outcome.skipped;
  report_.gradient_norm = outcome.norm;
  report_.group_options = model_.all_group_options();
  report_.scheduled_lr.clear();
  report_.lr_pinned.clear();
  const std::vector<double> lr = effective_lr();
  for (size_t g = 0; g < model_.groups.size(); ++g) {
    report_.scheduled_lr.push_back(report_.group_options[g].lr);
    report_.lr_pinned.push_back(changes_.lr_pin(static_cast<int>(g)).has_value());
    report_.group_options[g].lr = lr[g];
  }
  report_.lr_scale = changes_.lr_scale();
  report_.max_grad_norm = max_grad_norm();
}

// ---- hyperparameters ----------------------------------------------------------------------------

std::vector<double> StepConsensus::effective_lr() const {
  std::vector<double> lr;
  for (size_t g = 0; g < model_.groups.size(); ++g) {
    lr.push_back(changes_.effective_lr(static_cast<int>(g), model_.group_options(g).lr));
  }
  return lr;
}

void StepConsensus::enter_next_step() {
  std::vector<Options*> options;
  for (size_t g = 0; g < model_.groups.size(); ++g) options.push_back(&model_.group_options(g));
  changes_.enter_step(model_.job_step, options);
}

void StepConsensus::set_control(changes::ControlPort* port) {
  port_ = port;
  has_control_ = true;
  int64_t newest = model_.rank == 0 && port_ != nullptr ? port_->newest_revision() : 0;
  control_.broadcast(comm::Buffer::of(std::span(&newest, 1)), 0).wait();
  if (accept_changes(newest)) enter_next_step();
}

void StepConsensus::add_groups() {
  while (changes_.group_count() < static_cast<int>(model_.groups.size())) changes_.add_group();
}

void StepConsensus::restore(int64_t job_step, int64_t skipped_steps,
                            const changes::ActiveChanges::Saved& changes) {
  changes_.restore(changes);
  model_.job_step = job_step;
  skipped_steps_ = skipped_steps;
}

void StepConsensus::save(torch::serialize::OutputArchive& archive) const {
  archive.write("job_step", c10::IValue(model_.job_step));
  archive.write("skipped_steps", c10::IValue(skipped_steps_));
  const changes::ActiveChanges::Overrides overrides = changes_.overrides();
  std::vector<double> values{overrides.lr_scale, overrides.max_grad_norm.value_or(kNone)};
  for (const auto& pin : overrides.lr_pin) values.push_back(pin.value_or(kNone));
  archive.write("overrides", at::tensor(values, at::kDouble), /*is_buffer=*/true);
}

void StepConsensus::load(torch::serialize::InputArchive& archive) {
  c10::IValue job_step, skipped;
  archive.read("job_step", job_step);
  archive.read("skipped_steps", skipped);
  at::Tensor values;
  archive.read("overrides", values, /*is_buffer=*/true);
  FUSEDBUN_REQUIRE(values.numel() == 2 + static_cast<int64_t>(model_.groups.size()), DataError,
                   "rank " + std::to_string(model_.rank) + ": the saved state has " +
                       std::to_string(values.numel() - 2) + " parameter groups, the optimizer " +
                       std::to_string(model_.groups.size()));
  const auto optional = [&](int64_t i) {
    const double value = values.const_data_ptr<double>()[i];
    return std::isnan(value) ? std::nullopt : std::optional(value);
  };
  const bool clips = !options_.step_in_backward || options_.clip_by_previous_norm;
  FUSEDBUN_REQUIRE(clips || !(optional(1).value_or(0) > 0), DataError,
                   "rank " + std::to_string(model_.rank) +
                       ": the saved state clips gradients, which step_in_backward does with "
                       "clip_by_previous_norm alone");
  changes::ActiveChanges::Overrides overrides;
  overrides.lr_scale = *optional(0);
  overrides.max_grad_norm = optional(1);
  for (int64_t i = 2; i < values.numel(); ++i) overrides.lr_pin.push_back(optional(i));
  changes_.restore(overrides);
  model_.job_step = job_step.toInt();
  skipped_steps_ = skipped.toInt();
}

}  // namespace fusedbun
