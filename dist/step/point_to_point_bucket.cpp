#include "fusedbun/dist/step/point_to_point_bucket.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/step/tensor_kernels.h"

namespace fusedbun {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

comm::Message message(int peer, const at::Tensor& memory) {
  return {peer, static_cast<std::byte*>(memory.data_ptr()), static_cast<int64_t>(memory.nbytes())};
}

/// The packed segments of all ranks, end to end.
class PackedSegments {
 public:
  PackedSegments(const plan::Bucket& bucket, int64_t in_place_bytes, at::ScalarType type)
      : bucket_(bucket),
        layout_(
            lay_out_packed(bucket, static_cast<int64_t>(c10::elementSize(type)), in_place_bytes)),
        memory_(at::zeros({layout_.packed_total}, at::TensorOptions().dtype(type))) {}

  const PackedLayout& layout() const { return layout_; }
  at::ScalarType type() const { return memory_.scalar_type(); }
  bool holds(int rank, size_t segment) const { return layout_.packs(rank, segment); }
  at::Tensor of_rank(int rank) const {
    return memory_.narrow(0, layout_.packed_begins[rank], layout_.packed[rank]);
  }
  at::Tensor segment(int rank, size_t i) const {
    return of_rank(rank).narrow(0, layout_.places[rank][i],
                                bucket_.segments[rank][i].range.elements());
  }

 private:
  const plan::Bucket& bucket_;
  PackedLayout layout_;
  at::Tensor memory_;
};

class PointToPointBucket final : public GradientBucket {
 public:
  PointToPointBucket(const plan::Bucket& bucket, comm::Communicator& communicator,
                     const PointToPointOptions& options)
      : GradientBucket(bucket, communicator.rank()),
        communicator_(communicator),
        routes_(options.routes),
        // Gradients that are rounded on their way are copied.
        gradients_(bucket_, rounds_gradients(options) ? kNever : options.in_place_bytes,
                   options.gradient_type),
        rows_(bucket_, options.in_place_bytes, parameter_type(bucket)),
        arrivals_(at::zeros({communicator.size() - 1, bucket.counts[communicator.rank()]},
                            at::TensorOptions().dtype(options.gradient_type))) {
    for (int peer = 0; peer < communicator.size(); ++peer) {
      if (peer != rank_) peers_.push_back(peer);
    }
    FUSEDBUN_ASSERT(routes_.receives.size() + routes_.relay_receives.size() == peers_.size(),
                    "every other rank's rows have a way here");
    if (!options.rounds_updates || parameter_type(bucket) != at::kFloat || peers_.empty()) return;
    // The gradients are used up when the updates come, so rounded ones lend their memory.
    if (rounds_gradients(options)) {
      updates_.emplace(gradients_);
    } else {
      updates_.emplace(bucket_, kNever, at::kBFloat16);
    }
  }

  bool add_gradient(int parameter, const at::Tensor& gradient) override {
    const at::Tensor flat = as_taken(bucket_, gradient).view({-1});
    bool finite = true;
    for (const auto& [rank, i] : segments_of(parameter)) {
      const at::Tensor elements = elements_of(flat, bucket_.segments[rank][i].range);
      if (gradients_.holds(rank, i)) {
        finite &= copy_and_test(elements, gradients_.segment(rank, i));
      } else {
        finite &= squares_are_finite(elements);
        kept_[parameter] = flat;
      }
    }
    return finite;
  }

  void add_zero_gradient(int parameter) override {
    kept_.erase(parameter);  // what is not kept is zero
    for (const auto& [rank, i] : segments_of(parameter)) {
      if (gradients_.holds(rank, i)) {
        gradients_.segment(rank, i).zero_();
      } else if (!zeros_.defined()) {
        zeros_ = at::zeros({longest_in_place()}, gradients_.type());
      }
    }
  }

  comm::Work start_grad_sync(uint32_t) override {
    is_summed_ = false;
    std::vector<comm::Message> sends, receives;
    for (size_t k = 0; k < peers_.size(); ++k) {
      const int peer = peers_[k];
      sends.push_back(message(peer, gradients_.of_rank(peer)));
      for (size_t i = 0; i < bucket_.segments[peer].size(); ++i) {
        if (!gradients_.holds(peer, i)) sends.push_back(message(peer, kept(peer, i)));
      }
      receives.push_back(
          message(peer, arrivals_[k].narrow(0, 0, gradients_.layout().packed[rank_])));
      for (size_t i = 0; i < bucket_.segments[rank_].size(); ++i) {
        if (!gradients_.holds(rank_, i)) receives.push_back(message(peer, placed(arrivals_[k], i)));
      }
    }
    return communicator_.exchange(std::move(sends), std::move(receives));
  }

  // This rank's own gradients are rounded if those that travel are, so the sum does not depend on which rank owns a row.
  std::vector<at::Tensor> reduced_gradients(const plan::Segment& own) const override {
    const size_t i = index_of(own);
    std::vector<at::Tensor> gradients;
    if (is_summed_) {
      gradients.push_back(sum_of(i));
    } else {
      gradients = summands(i);
    }
    for (at::Tensor& gradient : gradients) {
      gradient = gradient.view({own.range.rows(), own.range.columns});
    }
    return gradients;
  }

  double reduce_and_norm() override {
    if (!sums_in_place() && !sum_.defined()) {
      sum_ = at::empty({bucket_.counts[rank_]}, sum_type(bucket_));
    }
    double squares = 0;
    for (size_t i = 0; i < bucket_.segments[rank_].size(); ++i) {
      squares += add_up(summands(i), sum_of(i));
    }
    is_summed_ = true;
    return std::sqrt(squares);
  }

  void release_gradients() override { kept_.clear(); }

  bool rounds_updates() const override { return updates_.has_value(); }

  at::Tensor rows_to_step(const plan::Segment& own, const at::Tensor& rows) override {
    if (!updates_) return rows;
    if (!stepped_.defined()) stepped_ = at::empty({bucket_.counts[rank_]}, at::kFloat);
    return stepped(index_of(own)).view(rows.sizes()).copy_(rows);
  }

  comm::Work start_update_sync(std::span<const ParameterMatrix> matrices,
                               const std::vector<bool>& used, uint32_t round) override {
    if (!updates_) return start_param_sync(matrices, used, round);
    for (size_t i = 0; i < bucket_.segments[rank_].size(); ++i) {
      const plan::Segment& own = bucket_.segments[rank_][i];
      if (!used[own.parameter]) continue;
      round_update(stepped(i), matrices[own.parameter].rows(own.range).view({-1}),
                   updates_->segment(rank_, i));
    }
    stepped_.reset();
    updates_travel_ = true;
    return send(routes_.sends, routes_.receives, matrices, used);
  }

  comm::Work start_param_sync(std::span<const ParameterMatrix> matrices,
                              const std::vector<bool>& used, uint32_t) override {
    if (peers_.empty()) return {};
    updates_travel_ = false;
    for (size_t i = 0; i < bucket_.segments[rank_].size(); ++i) {
      const plan::Segment& own = bucket_.segments[rank_][i];
      if (rows_.holds(rank_, i)) {
        rows_.segment(rank_, i).copy_(matrices[own.parameter].rows(own.range).view({-1}));
      }
    }
    return send(routes_.sends, routes_.receives, matrices, used);
  }

  comm::Work relay_rows(std::span<const ParameterMatrix> matrices,
                        const std::vector<bool>& used) override {
    if (!routes_.relays) return {};
    return send(routes_.relay_sends, routes_.relay_receives, matrices, used);
  }

  void finish_param_sync(std::span<ParameterMatrix> matrices,
                         const std::vector<bool>& used) override {
    for (const int peer : peers_) {
      for (size_t i = 0; i < bucket_.segments[peer].size(); ++i) {
        const plan::Segment& segment = bucket_.segments[peer][i];
        if (!used[segment.parameter]) continue;
        const at::Tensor rows = matrices[segment.parameter].rows(segment.range).view({-1});
        if (updates_travel_) {
          apply_update(updates_->segment(peer, i), rows);
        } else if (rows_.holds(peer, i)) {
          rows.copy_(rows_.segment(peer, i));
        }
      }
    }
  }

 private:
  bool rounds_gradients(const PointToPointOptions& options) const {
    return options.gradient_type != parameter_type(bucket_);
  }

  /// A segment of a gradient that stayed where it was, or zeros.
  at::Tensor kept(int rank, size_t i) const {
    const plan::Segment& segment = bucket_.segments[rank][i];
    const auto it = kept_.find(segment.parameter);
    if (it == kept_.end()) return zeros_.narrow(0, 0, segment.range.elements());
    return elements_of(it->second, segment.range);
  }

  /// Elements of the longest segment of any rank that is not packed.
  int64_t longest_in_place() const {
    int64_t longest = 0;
    for (int rank = 0; rank < communicator_.size(); ++rank) {
      for (size_t i = 0; i < bucket_.segments[rank].size(); ++i) {
        if (gradients_.holds(rank, i)) continue;
        longest = std::max(longest, bucket_.segments[rank][i].range.elements());
      }
    }
    return longest;
  }

  /// This rank's segment i of a portion.
  at::Tensor placed(const at::Tensor& portion, size_t i) const {
    return portion.narrow(0, gradients_.layout().places[rank_][i],
                          bucket_.segments[rank_][i].range.elements());
  }

  /// Every rank's gradients of this rank's segment i, in rank order.
  std::vector<at::Tensor> summands(size_t i) const {
    std::vector<at::Tensor> gradients;
    for (size_t k = 0; k < peers_.size(); ++k) gradients.push_back(placed(arrivals_[k], i));
    gradients.insert(gradients.begin() + rank_,
                     gradients_.holds(rank_, i) ? gradients_.segment(rank_, i) : kept(rank_, i));
    return gradients;
  }

  /// What arrives is of the type of the sum, so a sum may take the place of an arrival.
  bool sums_in_place() const { return arrivals_.scalar_type() == sum_type(bucket_); }

  /// Where the sum of segment i is written: in the place of the first arrival. A rank that is alone has it in its own gradient.
  at::Tensor sum_of(size_t i) const {
    if (!sums_in_place()) return placed(sum_, i);
    return peers_.empty() ? summands(i).front() : placed(arrivals_[0], i);
  }

  /// This rank's segment i among those that were stepped in a copy.
  at::Tensor stepped(size_t i) const {
    return stepped_.narrow(0, updates_->layout().places[rank_][i],
                           bucket_.segments[rank_][i].range.elements());
  }

  comm::Work send(const std::vector<plan::RowMessage>& sends,
                  const std::vector<plan::RowMessage>& receives,
                  std::span<const ParameterMatrix> matrices, const std::vector<bool>& used) {
    std::vector<comm::Message> to, from;
    for (const plan::RowMessage& rows : sends) add_rows(to, rows, matrices, used);
    for (const plan::RowMessage& rows : receives) add_rows(from, rows, matrices, used);
    return communicator_.exchange(std::move(to), std::move(from));
  }

  void add_rows(std::vector<comm::Message>& messages, const plan::RowMessage& rows,
                std::span<const ParameterMatrix> matrices, const std::vector<bool>& used) const {
    const auto [peer, owner] = rows;
    if (updates_travel_) {
      messages.push_back(message(peer, updates_->of_rank(owner)));
      return;
    }
    messages.push_back(message(peer, rows_.of_rank(owner)));
    for (size_t i = 0; i < bucket_.segments[owner].size(); ++i) {
      const plan::Segment& segment = bucket_.segments[owner][i];
      if (rows_.holds(owner, i) || !used[segment.parameter]) continue;
      messages.push_back(message(peer, matrices[segment.parameter].rows(segment.range)));
    }
  }

  comm::Communicator& communicator_;
  const plan::RowRoutes routes_;
  std::vector<int> peers_;    ///< the other ranks, in order
  PackedSegments gradients_;  ///< in the wire's type
  PackedSegments rows_;       ///< in the parameters' type
  /// By parameter: gradients of this rank that are not packed whole, one-dimensional. One that is missing is zero.
  std::map<int, at::Tensor> kept_;
  at::Tensor zeros_;  ///< as long as any segment that is not packed; undefined until it is needed
  at::Tensor arrivals_;  ///< [peer][elements of this rank's portion], by gradients_.layout()
  at::Tensor sum_;       ///< [elements of this rank's portion] where arrivals have another type
  bool is_summed_ = false;
  /// Where updates are rounded: those of all ranks.
  std::optional<PackedSegments> updates_;
  at::Tensor
      stepped_;  ///< [elements of this rank's portion] between rows_to_step and start_update_sync
  bool updates_travel_ = false;  ///< in what was started last; else rows
};

}  // namespace

PackedLayout lay_out_packed(const plan::Bucket& bucket, int64_t element_bytes,
                            int64_t in_place_bytes) {
  PackedLayout layout;
  for (const std::vector<plan::Segment>& segments : bucket.segments) {
    std::vector<int64_t>& places = layout.places.emplace_back(segments.size());
    int64_t end = 0;
    const auto place = [&](bool packed) {
      for (size_t i = 0; i < segments.size(); ++i) {
        const int64_t elements = segments[i].range.elements();
        if ((elements * element_bytes < in_place_bytes) != packed) continue;
        places[i] = end;
        end += elements;
      }
    };
    place(/*packed=*/true);
    layout.packed.push_back(end);
    layout.packed_begins.push_back(layout.packed_total);
    layout.packed_total += end;
    place(/*packed=*/false);
  }
  return layout;
}

at::ScalarType wire_type(const plan::Bucket& bucket, bool rounds_gradients) {
  const at::ScalarType type = parameter_type(bucket);
  return rounds_gradients && type == at::kFloat ? at::kBFloat16 : type;
}

std::unique_ptr<GradientBucket> make_point_to_point_bucket(const plan::Bucket& bucket,
                                                           comm::Communicator& communicator,
                                                           const PointToPointOptions& options) {
  return std::make_unique<PointToPointBucket>(bucket, communicator, options);
}

}  // namespace fusedbun
