#include "fusedbun/dist/step/shard_update.h"

#include <ATen/ATen.h>
#include <torch/serialize/archive.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun {
namespace {

/// Two sums of the same numbers in different orders are this close, relative.
constexpr double kSummationError = 1e-12;

}  // namespace

void ShardUpdate::extend() {
  if (device_ != nullptr) {  // its tables and messages are made anew
    sum_of_squares_ = sums_of_squares();
    device_squares_.reset();
    device_basis_.clear();
  }
  const std::vector<Options> options = model_.all_group_options();
  columns_ = plan::column_layout(model_.plan, options);
  message_.resize(columns_);
  for (int p = static_cast<int>(t_.size()); p < model_.parameter_count(); ++p) {
    // Parameters are equal on all ranks now, so each adds up the whole of them; later the owners' sums travel.
    const bool scaled = model_.options_of(p).scale_by_parameter_rms;
    sum_of_squares_.push_back(scaled ? measured_squares(p, model_.matrices[p].matrix()) : 0);
    t_.push_back(0);
  }
  scalars_.resize(t_.size());
  used_.resize(t_.size());
  hessian_diagonals_.resize(t_.size());
  steps_on_device_ = device_ != nullptr;
  for (int p = 0; p < model_.parameter_count() && steps_on_device_; ++p) {
    steps_on_device_ =
        has_device_step(model_.options_of(p), model_.registered[p].tensor.scalar_type());
  }
  const size_t first_bucket = segments_.size();
  for (const auto& [parameter, range] :
       plan::owned_ranges(model_.plan, model_.rank, static_cast<int>(first_bucket))) {
    const at::Tensor rows = model_.matrices[parameter].rows(range);
    owned_.push_back({.parameter = parameter,
                      .range = range,
                      .state = make_segment_state(rows, range, model_.options_of(parameter)),
                      .column_partials = {}});
  }
  for (size_t b = first_bucket; b < model_.plan.buckets.size(); ++b) {
    std::vector<OwnedSegment>& segments = segments_.emplace_back();
    for (const plan::Segment& segment : model_.plan.buckets[b].segments[model_.rank]) {
      const auto it = std::ranges::find(owned_, segment.parameter, &OwnedState::parameter);
      segments.push_back({.where = segment,
                          .rows = static_cast<size_t>(it - owned_.begin()),
                          .state = state_of_rows(it->state, it->range, segment.range),
                          .step = {}});
    }
  }
}

// ---- one step ----------------------------------------------------------------------------------

void ShardUpdate::begin(const std::vector<bool>& used, const GradientScaling& scaling,
                        const std::vector<double>& lr) {
  for (ParameterMatrix& matrix : model_.matrices) matrix.refresh();
  used_ = used;
  if (steps_on_device_) return begin_on_device(scaling, lr);
  clear_partials();
  prepare_scalars(scaling, lr);
}

void ShardUpdate::clear_partials() {
  message_.clear_columns();
  for (OwnedState& owned : owned_) {
    if (used_[owned.parameter]) owned.column_partials = make_partials(owned);
  }
}

// All zero. Where other ranks hold rows of the same matrix, sums lie in the message to them.
at::Tensor ShardUpdate::make_partials(const OwnedState& owned) const {
  const int parameter = owned.parameter;
  const Options& options = model_.options_of(parameter);
  const int64_t entries = column_entries(owned.range, options);
  if (entries == 0) return {};
  if (const int64_t offset = columns_.sum_offset[parameter]; offset >= 0) {
    return message_.sums(offset, entries);
  }
  if (owned.column_partials.defined()) {
    at::Tensor reused = owned.column_partials;
    return reused.zero_();
  }
  const at::ScalarType type =
      columns_are_maxima(options)
          ? arithmetic_type(model_.registered[parameter].tensor.scalar_type())
          : at::kDouble;
  return at::zeros({entries}, at::TensorOptions(model_.device).dtype(type));
}

void ShardUpdate::prepare_scalars(const GradientScaling& scaling, const std::vector<double>& lr) {
  const std::vector<Options> options = options_with(lr);
  for (size_t p = 0; p < t_.size(); ++p) {
    if (!used_[p]) continue;
    ++t_[p];
    const double elements = static_cast<double>(model_.plan.parameters[p].elements());
    scalars_[p] = step_scalars(options[model_.registered[p].group], t_[p],
                               std::sqrt(sum_of_squares_[p] / elements));
    scalars_[p].gradient_divisor = scaling.divisor;
    scalars_[p].gradient_scale = scaling.clip;
  }
}

void ShardUpdate::update_bucket(int bucket) {
  // From here on this rank, and messages from others, write these parameters.
  for (const int parameter : model_.plan.buckets[bucket].parameters) {
    if (used_[parameter]) model_.matrices[parameter].bump_version();
  }
  if (steps_on_device_) return update_bucket_on_device(bucket);
  for (OwnedSegment& segment : segments_[bucket]) {
    const int parameter = segment.where.parameter;
    if (!used_[parameter]) continue;
    begin_segment(segment, bucket);
    if (awaits_others(parameter)) {
      owned_[segment.rows].awaits_columns = true;
      continue;
    }
    fusedbun::absorb_columns(segment.step.column_partials, segment.where.range,
                             segment.step.scalars, segment.state, model_.options_of(parameter));
    finish_segment(segment);
  }
}

bool ShardUpdate::awaits_others(int parameter) const {
  return columns_.sum_offset[parameter] >= 0 || columns_.max_offset[parameter] >= 0;
}

bool ShardUpdate::needs_columns_first(int bucket) const {
  return std::ranges::any_of(model_.plan.buckets[bucket].parameters, [&](int p) {
    // A GPU finishes all of these matrices together, also those that are whole on one rank.
    return model_.options_of(p).denominator == Denominator::global &&
           (awaits_others(p) || (steps_on_device_ && !model_.plan.parameters[p].is_vector()));
  });
}

void ShardUpdate::prepare_finish() {
  if (steps_on_device_) device_->prepare();
}

void ShardUpdate::begin_segment(OwnedSegment& segment, int bucket) {
  const int parameter = segment.where.parameter;
  const RowRange& range = segment.where.range;
  const OwnedState& owned = owned_[segment.rows];
  segment.step = {};
  segment.step.parameter =
      model_.buckets[bucket]->rows_to_step(segment.where, model_.matrices[parameter].rows(range));
  segment.step.gradients = model_.buckets[bucket]->reduced_gradients(segment.where);
  if (const at::Tensor& diagonal = hessian_diagonals_[parameter]; diagonal.defined()) {
    segment.step.hessian_diagonal = diagonal.narrow(0, range.row_begin, range.rows());
  }
  segment.step.range = range;
  segment.step.parameter_index = parameter;
  segment.step.scalars = scalars_[parameter];
  segment.step.column_partials = column_entries_of_rows(owned.column_partials, owned.range, range);
  if (is_scaled_by_rms(parameter)) segment.step.parameter_sum_of_squares = &segment.sum_of_squares;
  begin_step(segment.step, segment.state, model_.options_of(parameter));
  // The partials hold the maxima of all parts so far, so the last part's are those of all rows.
  if (const int64_t offset = columns_.max_offset[parameter]; offset >= 0) {
    message_.put_maxima(offset, owned.column_partials);
  }
}

void ShardUpdate::finish_segment(OwnedSegment& segment) {
  const int parameter = segment.where.parameter;
  finish_step(segment.step, segment.state, model_.options_of(parameter));
}

void ShardUpdate::finish_bucket(int bucket) {
  if (steps_on_device_) return device_->finish_bucket(bucket);
  for (OwnedSegment& segment : segments_[bucket]) {
    const int parameter = segment.where.parameter;
    if (used_[parameter] && awaits_others(parameter)) finish_segment(segment);
  }
}

void ShardUpdate::send_squares() {
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) {
    for (const OwnedSegment& segment : segments_[bucket]) {
      const int parameter = segment.where.parameter;
      if (!used_[parameter] || !is_scaled_by_rms(parameter) || steps_on_device_) continue;
      // What the update counted is not what the rows have where it was rounded.
      const double squares =
          model_.buckets[bucket]->rounds_updates()
              ? sum_of_squares(model_.matrices[parameter].rows(segment.where.range),
                               segment.where.range, model_.options_of(parameter))
              : segment.sum_of_squares;
      message_.square(columns_.square_offset[parameter]).add_(squares);
    }
  }
  message_.send_squares();
  squares_in_flight_ = true;
}

void ShardUpdate::release_gradients(int bucket) {
  for (OwnedSegment& segment : segments_[bucket]) {
    segment.step.gradients.clear();
    segment.step.parameter.reset();  // perhaps a copy of the rows
  }
  model_.buckets[bucket]->release_gradients();
}

void ShardUpdate::end() {
  for (ParameterMatrix& matrix : model_.matrices) {
    if (steps_on_device_ && matrix.is_staged()) {
      DeviceApi& api = device_api_of(model_.device);
      api.run(api.current_stream(), [&matrix](CudaStream) { matrix.write_back(); });
      matrix.bump_version();
    } else {
      matrix.write_back();
    }
    matrix.remember();
  }
}

void ShardUpdate::drop_hessian_diagonals() {
  for (at::Tensor& diagonal : hessian_diagonals_) diagonal.reset();
}

void ShardUpdate::absorb_columns() {
  message_.wait_columns();
  if (steps_on_device_) {
    const bool with_squares = std::exchange(squares_in_flight_, false);
    message_.settle_squares();
    return device_->absorb(with_squares);
  }
  for (OwnedState& owned : owned_) {
    if (!owned.awaits_columns) continue;
    const int64_t maxima = columns_.max_offset[owned.parameter];
    const at::Tensor& partials = owned.column_partials;
    fusedbun::absorb_columns(
        maxima >= 0 ? message_.maxima(maxima, partials.numel(), partials.scalar_type()) : partials,
        owned.range, scalars_[owned.parameter], owned.state, model_.options_of(owned.parameter));
    owned.awaits_columns = false;
  }
  if (!squares_in_flight_) return;
  message_.settle_squares();
  squares_in_flight_ = false;
  for (size_t p = 0; p < t_.size(); ++p) {
    const int64_t offset = columns_.square_offset[p];
    if (offset >= 0 && used_[p]) sum_of_squares_[p] = message_.square(offset).item<double>();
  }
}

// ---- on a GPU ----------------------------------------------------------------------------------

std::vector<Options> ShardUpdate::options_with(const std::vector<double>& lr) const {
  std::vector<Options> options = model_.all_group_options();
  for (size_t g = 0; g < options.size(); ++g) {
    options[g].lr = lr[g];
    validate(options[g]);
  }
  return options;
}

void ShardUpdate::begin_on_device(const GradientScaling& scaling, const std::vector<double>& lr) {
  if (std::vector<uint64_t> basis = device_basis(); basis != device_basis_) {
    device_->set_parts(device_parts());
    device_basis_ = std::move(basis);
  }
  message_.clear_columns();
  for (size_t p = 0; p < t_.size(); ++p) {
    if (used_[p]) ++t_[p];
  }
  device_->begin(used_, t_, options_with(lr),
                 {.divisor = scaling.divisor,
                  .max_norm = scaling.max_norm,
                  .norm_divisor = scaling.norm_divisor,
                  .loss_scale = scaling.loss_scale});
}

void ShardUpdate::update_bucket_on_device(int bucket) {
  std::vector<device::Gradient> gradients;
  for (const OwnedSegment& segment : segments_[bucket])
    gradients.push_back(model_.buckets[bucket]->gradient_on_device(segment.where));
  device_->update_bucket(bucket, gradients);
}

std::vector<DeviceUpdate::Heard> ShardUpdate::hear(bool all) {
  if (!steps_on_device_) return {};
  std::vector<DeviceUpdate::Heard> heard = device_->hear(all);
  for (const DeviceUpdate::Heard& step : heard) {
    if (step.outcome.skip == 0) continue;
    for (size_t p = 0; p < step.used.size(); ++p) {
      if (step.used[p]) --t_[p];
    }
  }
  return heard;
}

std::vector<uint64_t> ShardUpdate::device_basis() const {
  std::vector<uint64_t> basis;
  for (const ParameterMatrix& matrix : model_.matrices)
    basis.push_back(reinterpret_cast<uintptr_t>(matrix.matrix().const_data_ptr()));
  for (const Options& options : model_.all_group_options())
    basis.push_back(options.centralize * 2U + options.use_rms * 1U);
  return basis;
}

std::vector<DevicePart> ShardUpdate::device_parts() {
  if (!device_squares_.defined()) {
    device_squares_ =
        at::empty({std::ssize(t_)}, at::TensorOptions(model_.device).dtype(at::kDouble));
    DeviceApi& api = device_api_of(model_.device);
    api.upload(device_squares_.data_ptr(), std::as_bytes(std::span(sum_of_squares_)),
               api.current_stream());
  }
  std::vector<DevicePart> parts;
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) {
    for (const OwnedSegment& segment : segments_[bucket]) {
      const int parameter = segment.where.parameter;
      const OwnedState& owned = owned_[segment.rows];
      DevicePart part;
      part.parameter = parameter;
      part.group = bucket;
      part.range = segment.where.range;
      part.rows = model_.matrices[parameter].rows(part.range);
      part.state = segment.state;
      part.options = model_.options_of(parameter);
      part.parameter_elements = model_.plan.parameters[parameter].elements();
      if (const int64_t offset = columns_.sum_offset[parameter]; offset >= 0)
        part.totals =
            message_.sums(offset, column_entries(owned.range, part.options)).data_ptr<double>();
      if (const int64_t offset = columns_.max_offset[parameter]; offset >= 0)
        part.totals = message_.maxima_bits(offset);
      if (is_scaled_by_rms(parameter)) {
        part.squares = device_squares_.data_ptr<double>() + parameter;
        part.new_squares = message_.square(columns_.square_offset[parameter]).data_ptr<double>();
      }
      parts.push_back(std::move(part));
    }
  }
  return parts;
}

void ShardUpdate::know_squares(int parameter, double sum) {
  sum_of_squares_[parameter] = sum;
  if (!device_squares_.defined()) return;
  DeviceApi& api = device_api_of(model_.device);
  api.upload(device_squares_.data_ptr<double>() + parameter, std::as_bytes(std::span(&sum, 1)),
             api.current_stream());
}

std::vector<double> ShardUpdate::sums_of_squares() {
  if (!steps_on_device_ || !device_squares_.defined()) return sum_of_squares_;
  DeviceApi& api = device_api_of(model_.device);
  const auto bytes = static_cast<int64_t>(device_squares_.nbytes());
  const auto read = api.allocate_pinned(bytes);
  api.download(read.get(), device_squares_.const_data_ptr(), bytes, api.current_stream());
  api.record(api.current_stream())->wait();
  const auto* const sums = reinterpret_cast<const double*>(read.get());
  std::vector<double> own(t_.size());
  for (const OwnedState& owned : owned_) own[owned.parameter] = sums[owned.parameter];
  return own;
}

// ---- between two steps -------------------------------------------------------------------------

void ShardUpdate::follow(int parameter) {
  ParameterMatrix& matrix = model_.matrices[parameter];
  const at::Tensor values = matrix.parameter().detach().reshape(
      {model_.plan.parameters[parameter].rows(), model_.plan.parameters[parameter].columns()});
  if (is_scaled_by_rms(parameter)) {
    // The same values (a model and an optimizer that were loaded together) keep the sum that was saved, to the bit.
    const double sum = measured_squares(parameter, values);
    const double known = sums_of_squares()[parameter];
    if (std::abs(sum - known) > kSummationError * sum) know_squares(parameter, sum);
  }
  const auto owned = std::ranges::find(owned_, parameter, &OwnedState::parameter);
  if (owned == owned_.end()) return;
  follow_parameter(values.narrow(0, owned->range.row_begin, owned->range.rows()), owned->state);
}

double ShardUpdate::measured_squares(int parameter, const at::Tensor& matrix) const {
  const plan::ParameterSpec& spec = model_.plan.parameters[parameter];
  return sum_of_squares(matrix, spec.all_rows(), model_.options_of(parameter));
}

void ShardUpdate::copy_into_replica(int parameter) {
  const auto owned = std::ranges::find(owned_, parameter, &OwnedState::parameter);
  if (owned != owned_.end()) model_.matrices[parameter].copy_into_replica(owned->range);
}

void ShardUpdate::set_hessian_diagonal(const at::Tensor& parameter, at::Tensor diagonal) {
  const auto it = std::ranges::find_if(
      model_.registered, [&](const RegisteredParameter& p) { return p.tensor.is_same(parameter); });
  FUSEDBUN_REQUIRE(
      it != model_.registered.end(), ConfigError,
      "set_hessian_diagonal was given a tensor that is no parameter of this optimizer");
  FUSEDBUN_REQUIRE(diagonal.sizes() == parameter.sizes(), ConfigError,
                   "the Hessian diagonal of '" + it->name + "' does not have its shape");
  const size_t p = static_cast<size_t>(it - model_.registered.begin());
  const plan::ParameterSpec& spec = model_.plan.parameters[p];
  hessian_diagonals_[p] = diagonal.detach()
                              .to(arithmetic_type(parameter.scalar_type()))
                              .contiguous()
                              .view({spec.rows(), spec.columns()});
}

int64_t ShardUpdate::state_bytes() const {
  int64_t bytes = 0;
  for (const OwnedState& owned : owned_) bytes += fusedbun::state_bytes(owned.state);
  return bytes;
}

std::vector<ShardedFusedbun::OwnedRows> ShardUpdate::owned_rows() {
  at::NoGradGuard no_grad;
  absorb_columns();
  if (steps_on_device_) {  // who reads them does so on the host
    DeviceApi& api = device_api_of(model_.device);
    api.record(api.current_stream())->wait();
  }
  std::vector<ShardedFusedbun::OwnedRows> rows;
  for (OwnedState& owned : owned_) {
    rows.push_back({.parameter = owned.parameter,
                    .name = model_.name(owned.parameter),
                    .range = owned.range,
                    .values = model_.matrices[owned.parameter].rows(owned.range),
                    .state = &owned.state,
                    .t = t_[owned.parameter]});
  }
  return rows;
}

void ShardUpdate::restore(std::vector<int64_t> step_counts, std::vector<double> sums_of_squares) {
  FUSEDBUN_ASSERT(step_counts.size() == t_.size() && sums_of_squares.size() == t_.size(),
                  "restored counts of another number of parameters");
  t_ = std::move(step_counts);
  sum_of_squares_ = std::move(sums_of_squares);
  for (int p = 0; p < model_.parameter_count(); ++p) {
    double sum = is_scaled_by_rms(p) ? sum_of_squares_[p] : 0;
    if (std::isnan(sum)) sum = measured_squares(p, model_.matrices[p].matrix());
    know_squares(p, sum);
  }
}

void ShardUpdate::save(torch::serialize::OutputArchive& archive) {
  absorb_columns();
  archive.write("t", at::tensor(t_, at::kLong), /*is_buffer=*/true);
  archive.write("sum_of_squares", at::tensor(sums_of_squares(), at::kDouble), /*is_buffer=*/true);
  for (OwnedState& owned : owned_) {
    torch::serialize::OutputArchive segment;
    visit_tensors(owned.state, [&](const char* name, at::Tensor& tensor) {
      if (tensor.defined()) segment.write(name, tensor, /*is_buffer=*/true);
    });
    archive.write("segment." + std::to_string(owned.parameter), segment);
  }
}

void ShardUpdate::load(torch::serialize::InputArchive& archive) {
  at::Tensor t, sum_of_squares;
  archive.read("t", t, true);
  archive.read("sum_of_squares", sum_of_squares, true);
  t_.assign(t.const_data_ptr<int64_t>(), t.const_data_ptr<int64_t>() + t.numel());
  for (int p = 0; p < static_cast<int>(t_.size()); ++p)
    know_squares(p, sum_of_squares.const_data_ptr<double>()[p]);
  for (OwnedState& owned : owned_) {
    torch::serialize::InputArchive segment;
    archive.read("segment." + std::to_string(owned.parameter), segment);
    visit_tensors(owned.state, [&](const char* name, at::Tensor& tensor) {
      at::Tensor saved;
      const bool is_saved = segment.try_read(name, saved, /*is_buffer=*/true);
      FUSEDBUN_REQUIRE(is_saved == tensor.defined(), DataError,
                       "rank " + std::to_string(model_.rank) + ": the saved state of '" +
                           model_.name(owned.parameter) + "' " + (is_saved ? "has" : "lacks") +
                           " a " + name + ": it was saved under other structural options");
      if (is_saved) tensor.copy_(saved);
    });
  }
}

}  // namespace fusedbun
