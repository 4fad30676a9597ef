#include "fusedbun/dist/step/engine.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cmath>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/step/change_feed.h"
#include "fusedbun/dist/step/step_trace.h"

namespace fusedbun {

// ---- gradients ---------------------------------------------------------------------------------

void StepEngine::on_gradient(int parameter, const at::Tensor& tensor) {
  const std::lock_guard lock(gradient_mutex_);
  if (no_sync_depth_ > 0) return;
  const int bucket = plan_.bucket_of[parameter];
  if (bucket < 0) return;
  FUSEDBUN_REQUIRE(!schedule_.has_left(bucket), ConfigError,
                   "parameter '" + parameters_[parameter].name +
                       "' got another gradient after its bucket had left: run all backward passes "
                       "but the last before a step under no_sync()");
  add_gradient(parameter, tensor.grad());
  if (sharded_.release == GradientRelease::in_hook) tensor.mutable_grad().reset();
}

void StepEngine::add_gradient(int parameter, const at::Tensor& gradient) {
  at::NoGradGuard no_grad;
  FUSEDBUN_REQUIRE(gradient.layout() == at::kStrided, ConfigError,
                   "parameter '" + parameters_[parameter].name +
                       "' has a sparse gradient: Fusedbun takes dense ones");
  const int bucket = plan_.bucket_of[parameter];
  const auto begin = comm::Clock::now();
  finite_ &= buckets_[bucket]->add_gradient(parameter, gradient, device_nonfinite_);
  if (sharded_.trace != nullptr) {
    sharded_.trace->add({.name = "take gradient",
                         .bucket = bucket,
                         .job_step = job_step_,
                         .begin = begin,
                         .end = comm::Clock::now()});
  }
  taken_versions_[parameter] = gradient._version();
  launch(schedule_.ready(parameter));
}

void StepEngine::launch(const std::vector<int>& buckets) {
  for (const int bucket : buckets) {
    for (const int parameter : plan_.buckets[bucket].parameters) {
      if (!schedule_.is_ready(parameter)) buckets_[bucket]->add_zero_gradient(parameter);
    }
    // The last step's message is read at the same place of the stream of collectives on every rank.
    if (sharded_.step_in_backward && bucket == 0) settle_previous();
    reductions_[bucket] = {buckets_[bucket]->start_grad_sync(round()), comm::Clock::now()};
    if (sharded_.step_in_backward) update_behind(bucket);
  }
}

void StepEngine::collect_remaining() {
  // Gradients that no hook brought: set by hand, or accumulated under no_sync alone.
  for (size_t p = 0; p < parameters_.size(); ++p) {
    const int parameter = static_cast<int>(p);
    const at::Tensor& gradient = parameters_[p].tensor.grad();
    if (plan_.bucket_of[p] < 0 || !gradient.defined()) continue;
    if (schedule_.is_ready(parameter)) {
      require_untouched(parameter);
    } else {
      add_gradient(parameter, gradient);
    }
  }
  launch(schedule_.flush());
}

// A gradient leaves during backward, so what is done to it later reaches some ranks or none.
void StepEngine::require_untouched(int parameter) const {
  FUSEDBUN_REQUIRE(
      parameters_[parameter].tensor.grad()._version() == taken_versions_[parameter], ConfigError,
      "the gradient of parameter '" + parameters_[parameter].name +
          "' was written after backward() had given it to the other ranks: clip with "
          "max_grad_norm, scale with gradient_divisor or the loss, and run all backward passes "
          "but the last under no_sync()");
}

void StepEngine::leave_no_sync() {
  --no_sync_depth_;
  ++accumulated_passes_;
}

// ---- one step ----------------------------------------------------------------------------------

void StepEngine::step() {
  FUSEDBUN_REQUIRE(no_sync_depth_ == 0, ConfigError,
                   "step() was called under no_sync(): leave the guard's scope before");
  try {
    perform_step();
  } catch (...) {
    abandon();
    throw;
  }
}

void StepEngine::abandon() noexcept {
  for (const auto& bucket : buckets_) bucket->abandon();
}

void StepEngine::perform_step() {
  at::NoGradGuard no_grad;
  if (!sharded_.step_in_backward) settle_previous();
  collect_remaining();
  const plan::Agreement agreement = sharded_.step_in_backward ? all_used() : agree();
  const bool skip =
      agreement.nonfinite && std::ranges::any_of(group_options(), [](const Options& o) {
        return o.nonfinite == Nonfinite::skip;
      });
  if (skip) {
    ++skipped_steps_;
    for (size_t b = 0; b < buckets_.size(); ++b) {
      wait(reductions_[b], plan::Phase::reduce_scatter, static_cast<int>(b));
      release_gradients(static_cast<int>(b));
    }
  } else {
    if (!sharded_.step_in_backward) begin_update(agreement);
    while (updated_buckets_ < static_cast<int>(buckets_.size())) {
      update_bucket(updated_buckets_, agreement.used);
    }
    finish_update(agreement.used);
  }
  close_step(agreement);
  release_gradients();
  schedule_.begin_step(plan_);
}

void StepEngine::settle_previous() {
  enter(plan::Phase::step_message);
  settle_header();
  absorb_pending_columns();
}

void StepEngine::settle_header() {
  if (!message_.header_under_way()) return;
  const std::vector<plan::StepHeader>& headers = message_.settle_header();
  if (const auto difference = plan::disagreement(headers)) throw DivergedError(*difference);
  accept_changes(headers[0].newest_revision);
  for (const plan::StepHeader& header : headers) {
    if (header.flags & plan::StepHeader::kStopping) {
      leaving_ = plan::LeaveRequest::stop;
    } else if ((header.flags & plan::StepHeader::kLeaving) &&
               leaving_ == plan::LeaveRequest::none) {
      leaving_ = plan::LeaveRequest::drain;
    }
  }
}

bool StepEngine::accept_changes(int64_t newest_revision) {
  const int64_t known = changes_.known_revision();
  if (newest_revision <= known) return false;
  changes_.accept(receive_changes(*channels_.host, port_, known, newest_revision));
  return true;
}

plan::Agreement StepEngine::agree() {
  enter(plan::Phase::agreement);
  const std::optional<double> changed = changes_.max_grad_norm();
  const double max_grad_norm = changed.value_or(sharded_.max_grad_norm);
  std::vector<bool> used(parameters_.size());
  for (size_t p = 0; p < used.size(); ++p) used[p] = schedule_.is_ready(static_cast<int>(p));
  // On a GPU this reads one number from the device, and the host waits for it.
  const bool nonfinite = !finite_ || (!device_.is_cpu() && device_nonfinite_.item<float>() > 0);
  const double squares = max_grad_norm > 0 ? own_sum_of_squares() : 0;
  std::vector<double> message = plan::agreement_message(nonfinite, squares, used);
  channels_.host->all_reduce(comm::Buffer::of(std::span(message)), comm::ReduceOp::sum).wait();
  return plan::read_agreement(message, max_grad_norm);
}

double StepEngine::own_sum_of_squares() {
  const double divisor = gradient_divisor();
  double sum = 0;
  for (size_t b = 0; b < buckets_.size(); ++b) {
    wait(reductions_[b], plan::Phase::reduce_scatter, static_cast<int>(b));
    const double norm = buckets_[b]->reduce_and_norm() / divisor;
    sum += norm * norm;
  }
  return sum;
}

double StepEngine::gradient_divisor() const {
  return sharded_.gradient_divisor.value_or(static_cast<double>(channels_.data->size()) *
                                            (accumulated_passes_ + 1));
}

plan::Agreement StepEngine::all_used() const {
  return {.used = std::vector<bool>(parameters_.size(), true)};
}

void StepEngine::update_behind(int left) {
  // Zeros would stand for a gradient that another rank may have; only an agreement could tell.
  for (const int parameter : plan_.buckets[left].parameters) {
    FUSEDBUN_REQUIRE(schedule_.is_ready(parameter), ConfigError,
                     "step_in_backward needs a gradient for every parameter in every step, and '" +
                         parameters_[parameter].name + "' had none on rank " +
                         std::to_string(rank_) + ": freeze it, or turn step_in_backward off");
  }
  const plan::Agreement agreement = all_used();
  if (left == 0) return begin_update(agreement);
  update_bucket(left - 1, agreement.used);
  enter(plan::Phase::forward_backward);
}

void StepEngine::begin_update(const plan::Agreement& agreement) {
  for (ParameterMatrix& matrix : matrices_) matrix.refresh();
  message_.clear_columns();
  count_used(agreement);
  updated_buckets_ = 0;
}

void StepEngine::update_bucket(int bucket, const std::vector<bool>& used) {
  wait(reductions_[bucket], plan::Phase::reduce_scatter, bucket);
  enter(plan::Phase::update, bucket);
  begin_bucket(bucket, used);
  if (!needs_columns_first(bucket)) start_param_sync(bucket, used);
  updated_buckets_ = bucket + 1;
}

void StepEngine::finish_update(const std::vector<bool>& used) {
  message_.send_columns();
  const int bucket_count = static_cast<int>(buckets_.size());
  bool columns_are_here = false;
  for (int b = 0; b < bucket_count; ++b) {
    if (!needs_columns_first(b)) continue;
    if (!columns_are_here) {
      enter(plan::Phase::step_message);
      absorb_pending_columns();
      columns_are_here = true;
    }
    enter(plan::Phase::update, b);
    finish_bucket(b, used);
    start_param_sync(b, used);
  }
  message_.send_squares();
  squares_under_way_ = true;
  for (int b = 0; b < bucket_count; ++b) {
    wait(gathers_[b], plan::Phase::all_gather, b);
    buckets_[b]->finish_param_sync(matrices_, used);
  }
  for (ParameterMatrix& matrix : matrices_) matrix.write_back();
}

void StepEngine::start_param_sync(int bucket, const std::vector<bool>& used) {
  gathers_[bucket] = {buckets_[bucket]->start_param_sync(matrices_, used, round()),
                      comm::Clock::now()};
  release_gradients(bucket);
}

void StepEngine::release_gradients(int bucket) {
  for (OwnedSegment& owned : owned_[bucket]) {
    owned.step.gradient.reset();
    owned.step.more_gradients.clear();
  }
  buckets_[bucket]->release_gradients();
}

void StepEngine::count_used(const plan::Agreement& agreement) {
  std::vector<Options> options = group_options();
  for (size_t g = 0; g < options.size(); ++g) {
    options[g].lr = changes_.effective_lr(static_cast<int>(g), options[g].lr);
    validate(options[g]);
  }
  const double divisor = gradient_divisor();
  stepped_ = agreement.used;
  for (size_t p = 0; p < parameters_.size(); ++p) {
    if (!agreement.used[p]) continue;
    ++t_[p];
    const double elements = static_cast<double>(plan_.parameters[p].elements());
    scalars_[p] = step_scalars(options[parameters_[p].group], t_[p],
                               std::sqrt(sum_of_squares_[p] / elements));
    scalars_[p].gradient_divisor = divisor;
    scalars_[p].gradient_scale = agreement.gradient_scale;
  }
}

bool StepEngine::needs_columns_first(int bucket) const {
  return std::ranges::any_of(plan_.buckets[bucket].parameters, [&](int p) {
    return options_of(p).denominator == Denominator::global && awaits_others(p);
  });
}

bool StepEngine::awaits_others(int parameter) const {
  return columns_.sum_offset[parameter] >= 0 || columns_.max_offset[parameter] >= 0;
}

void StepEngine::begin_bucket(int bucket, const std::vector<bool>& used) {
  for (OwnedSegment& owned : owned_[bucket]) {
    const int parameter = owned.where.parameter;
    if (!used[parameter]) continue;
    const Options& options = options_of(parameter);
    begin_segment(owned, bucket);
    if (awaits_others(parameter)) {
      owned.awaits_columns = true;
      note_squares(owned);
      continue;
    }
    if (owned.partials.defined()) {
      absorb_columns(owned.partials, owned.where.range, owned.step.scalars, owned.state, options);
    }
    finish_step(owned.step, owned.state, options);
    note_squares(owned);
  }
}

void StepEngine::note_squares(const OwnedSegment& owned) {
  const int64_t offset = columns_.square_offset[owned.where.parameter];
  if (offset >= 0) message_.square(offset).fill_(owned.sum_of_squares);
}

void StepEngine::begin_segment(OwnedSegment& owned, int bucket) {
  const int parameter = owned.where.parameter;
  const RowRange& range = owned.where.range;
  const Options& options = options_of(parameter);
  const int64_t entries = column_entries(range, options);
  if (entries > 0) owned.partials = partials_of(owned, entries);

  owned.step = {};
  owned.step.parameter = matrices_[parameter].rows(range);
  owned.step.more_gradients = buckets_[bucket]->reduced_gradients(owned.where);
  owned.step.gradient = owned.step.more_gradients.front();
  owned.step.more_gradients.erase(owned.step.more_gradients.begin());
  if (const at::Tensor& diagonal = hessian_diagonals_[parameter]; diagonal.defined()) {
    owned.step.hessian_diagonal = diagonal.narrow(0, range.row_begin, range.rows());
  }
  owned.step.range = range;
  owned.step.scalars = scalars_[parameter];
  owned.step.column_partials = owned.partials;
  if (columns_.square_offset[parameter] >= 0) {
    owned.step.parameter_sum_of_squares = &owned.sum_of_squares;
  }
  begin_step(owned.step, owned.state, options);
  if (const int64_t offset = columns_.max_offset[parameter]; offset >= 0) {
    message_.put_maxima(offset, owned.partials);
  }
}

at::Tensor StepEngine::partials_of(const OwnedSegment& owned, int64_t entries) {
  const int parameter = owned.where.parameter;
  if (const int64_t offset = columns_.sum_offset[parameter]; offset >= 0) {
    return message_.sums(offset, entries);
  }
  if (owned.partials.defined()) {
    at::Tensor reused = owned.partials;
    return reused.zero_();
  }
  const at::ScalarType type = columns_are_maxima(options_of(parameter))
                                  ? arithmetic_type(parameters_[parameter].tensor.scalar_type())
                                  : at::kDouble;
  return at::zeros({entries}, at::TensorOptions(device_).dtype(type));
}

void StepEngine::absorb_pending_columns() {
  message_.settle_columns();
  for (auto& bucket : owned_) {
    for (OwnedSegment& owned : bucket) {
      if (!owned.awaits_columns) continue;
      const int p = owned.where.parameter;
      const at::Tensor totals =
          columns_.max_offset[p] >= 0
              ? message_.maxima(columns_.max_offset[p], owned.partials.numel(),
                                owned.partials.scalar_type())
              : owned.partials;
      absorb_columns(totals, owned.where.range, owned.step.scalars, owned.state, options_of(p));
      owned.awaits_columns = false;
    }
  }
  if (!squares_under_way_) return;
  message_.settle_squares();
  squares_under_way_ = false;
  for (size_t p = 0; p < parameters_.size(); ++p) {
    const int64_t offset = columns_.square_offset[p];
    if (offset >= 0 && stepped_[p]) sum_of_squares_[p] = message_.square(offset).item<double>();
  }
}

void StepEngine::finish_bucket(int bucket, const std::vector<bool>& used) {
  for (OwnedSegment& owned : owned_[bucket]) {
    const int parameter = owned.where.parameter;
    if (used[parameter] && awaits_others(parameter)) {
      finish_step(owned.step, owned.state, options_of(parameter));
      note_squares(owned);
    }
  }
}

void StepEngine::enter(plan::Phase phase, int bucket) {
  board_.put({.job_step = job_step_, .phase = phase, .bucket = bucket});
  if (sharded_.trace != nullptr) sharded_.trace->enter(board_.position());
}

void StepEngine::wait(Travel& travel, plan::Phase phase, int bucket) {
  if (!travel.work.pending()) return;
  enter(phase, bucket);
  if (sharded_.trace == nullptr || !device_.is_cpu()) return wait(travel.work);
  sharded_.trace->add({.track = StepTrace::Track::wire,
                       .name = plan::name_of(phase),
                       .bucket = bucket,
                       .job_step = job_step_,
                       .begin = travel.sent_at,
                       .end = travel.work.wait()});
}

void StepEngine::wait(comm::Work& work) {
  if (!work.pending()) return;
  if (device_.is_cpu()) {
    work.wait();
    return;
  }
  const c10::impl::VirtualGuardImpl guard(device_.type());
  work.wait_on(comm::Stream(guard.getStream(guard.getDevice()).native_handle()));
}

// ---- between two steps -------------------------------------------------------------------------

void StepEngine::close_step(const plan::Agreement& agreement) {
  plan::ControlPort::Boundary boundary{.newest_revision = changes_.known_revision()};
  if (port_ != nullptr) boundary = port_->close_step(job_step_);
  const auto requested = std::max(boundary.leave, plan::LeaveRequest{leave_requested_.load()});
  plan::StepHeader header;
  header.job_step = job_step_;
  header.active_revision = changes_.active_revision();
  header.newest_revision = boundary.newest_revision;
  header.chain_hash = changes_.chain_hash();
  header.state_digest = state_digest();
  board_.set_state_digest(header.state_digest);
  header.skipped_steps = skipped_steps_;
  header.rank = static_cast<uint32_t>(rank_);
  if (requested == plan::LeaveRequest::drain) header.flags |= plan::StepHeader::kLeaving;
  if (requested == plan::LeaveRequest::stop) header.flags |= plan::StepHeader::kStopping;
  message_.send_header(header);

  make_report(agreement);
  if (port_ != nullptr) port_->step_finished(report_);
  ++job_step_;
  enter_next_step();
  enter(plan::Phase::forward_backward);
}

void StepEngine::make_report(const plan::Agreement& agreement) {
  report_.job_step = job_step_;
  report_.leave = leaving_;
  report_.active_revision = changes_.active_revision();
  report_.skipped_steps = skipped_steps_;
  report_.gradient_norm = agreement.gradient_norm;
  report_.group_options = group_options();
  report_.scheduled_lr.clear();
  report_.lr_pinned.clear();
  for (size_t g = 0; g < groups_.size(); ++g) {
    const int group = static_cast<int>(g);
    const double scheduled = report_.group_options[g].lr;
    report_.scheduled_lr.push_back(scheduled);
    report_.lr_pinned.push_back(changes_.lr_pin(group).has_value());
    report_.group_options[g].lr = changes_.effective_lr(group, scheduled);
  }
  report_.lr_scale = changes_.lr_scale();
  report_.max_grad_norm = changes_.max_grad_norm().value_or(sharded_.max_grad_norm);
}

uint64_t StepEngine::state_digest() const {
  XXH3_state_t hash;
  XXH3_64bits_reset(&hash);
  const auto add = [&](const void* data, size_t bytes) { XXH3_64bits_update(&hash, data, bytes); };
  add(t_.data(), t_.size() * sizeof(int64_t));
  for (size_t g = 0; g < groups_.size(); ++g) {
    const Options options = static_cast<const FusedbunOptions&>(groups_[g].options()).values();
    const double used[] = {changes_.effective_lr(static_cast<int>(g), options.lr),
                           options.eps,
                           options.beta_decay,
                           options.Lambda,
                           options.momentum_beta,
                           static_cast<double>(options.centralize),
                           static_cast<double>(options.use_rms)};
    add(used, sizeof(used));
  }
  return XXH3_64bits_digest(&hash);
}

void StepEngine::enter_next_step() {
  std::vector<Options*> options;
  for (auto& group : groups_) {
    options.push_back(&static_cast<FusedbunOptions&>(group.options()).values());
  }
  changes_.enter_step(job_step_, options);
}

void StepEngine::release_gradients() {
  for (RegisteredParameter& parameter : parameters_) {
    if (sharded_.release != GradientRelease::never) parameter.tensor.mutable_grad().reset();
  }
  for (at::Tensor& diagonal : hessian_diagonals_) diagonal.reset();
  finite_ = true;
  device_nonfinite_.zero_();
  accumulated_passes_ = 0;
}

void StepEngine::finish() {
  at::NoGradGuard no_grad;
  for (Travel& travel : reductions_) wait(travel.work);
  for (Travel& travel : gathers_) wait(travel.work);
  settle_previous();
  enter(plan::Phase::idle);
}

void StepEngine::set_control(plan::ControlPort* port) {
  port_ = port;
  int64_t newest = rank_ == 0 && port_ != nullptr ? port_->newest_revision() : 0;
  channels_.host->broadcast(comm::Buffer::of(std::span(&newest, 1)), 0).wait();
  if (accept_changes(newest)) enter_next_step();
}

void StepEngine::set_hessian_diagonal(const at::Tensor& parameter, at::Tensor diagonal) {
  const auto it = std::ranges::find_if(
      parameters_, [&](const RegisteredParameter& p) { return p.tensor.is_same(parameter); });
  FUSEDBUN_REQUIRE(
      it != parameters_.end(), ConfigError,
      "set_hessian_diagonal was given a tensor that is no parameter of this optimizer");
  FUSEDBUN_REQUIRE(diagonal.sizes() == parameter.sizes(), ConfigError,
                   "the Hessian diagonal of '" + it->name + "' has another shape than it");
  const size_t p = static_cast<size_t>(it - parameters_.begin());
  const plan::ParameterSpec& spec = plan_.parameters[p];
  hessian_diagonals_[p] = diagonal.detach()
                              .to(arithmetic_type(parameter.scalar_type()))
                              .contiguous()
                              .view({spec.rows(), spec.columns()});
}

void StepEngine::request_leave(plan::LeaveRequest request) noexcept {
  leave_requested_.store(static_cast<uint8_t>(request));
}

std::vector<ShardedFusedbun::OwnedRows> StepEngine::owned_rows() {
  at::NoGradGuard no_grad;
  absorb_pending_columns();
  std::vector<ShardedFusedbun::OwnedRows> rows;
  for (const auto& bucket : owned_) {
    for (const OwnedSegment& owned : bucket) {
      const int p = owned.where.parameter;
      rows.push_back({parameters_[p].name, owned.where.range, &owned.state, t_[p]});
    }
  }
  return rows;
}

}  // namespace fusedbun
