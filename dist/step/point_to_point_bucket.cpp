// A bucket whose long segments are never copied: messages carry them from the gradients and parameters where they lie, and new rows
// arrive where they belong. Short segments are packed into one message. What arrives is added up by the step while it reads it.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/step/exchange_layout.h"
#include "fusedbun/dist/step/gradient_bucket.h"
#include "fusedbun/dist/step/gradient_copy.h"

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
            lay_out_exchange(bucket, static_cast<int64_t>(c10::elementSize(type)), in_place_bytes)),
        memory_(at::zeros({layout_.packed_total}, at::TensorOptions().dtype(type))) {}

  const ExchangeLayout& layout() const { return layout_; }
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
  ExchangeLayout layout_;
  at::Tensor memory_;
};

class PointToPointBucket : public GradientBucket {
 public:
  PointToPointBucket(const plan::Bucket& bucket, comm::Communicator& communicator,
                     at::ScalarType wire, int64_t in_place_bytes)
      : GradientBucket(bucket, communicator.rank()),
        communicator_(communicator),
        is_exact_(wire == gradient_type(bucket)),
        // Gradients of another type than the wire's are converted by the copy.
        gradients_(bucket_, wire == parameter_type(bucket) && is_exact_ ? in_place_bytes : kNever,
                   wire),
        rows_(bucket_, in_place_bytes, parameter_type(bucket)),
        arrivals_(at::zeros({communicator.size() - 1, bucket.counts[communicator.rank()]},
                            at::TensorOptions().dtype(wire))) {
    for (int peer = 0; peer < communicator.size(); ++peer) {
      if (peer != rank_) peers_.push_back(peer);
    }
  }

  bool add_gradient(int parameter, const at::Tensor& gradient, at::Tensor&) override {
    const at::Tensor source = gradient.detach().to(gradient_type(bucket_)).contiguous();
    bool finite = true;
    for_each_segment(bucket_, parameter, [&](int rank, size_t i) {
      const at::Tensor elements = elements_of(source, bucket_.segments[rank][i].range);
      if (gradients_.holds(rank, i)) {
        finite &= copy_and_test(elements, gradients_.segment(rank, i));
      } else {
        finite &= squares_are_finite(elements);
        kept_[parameter] = source;
      }
    });
    return finite;
  }

  void add_zero_gradient(int parameter) override {
    for_each_segment(bucket_, parameter, [&](int rank, size_t i) {
      const RowRange& range = bucket_.segments[rank][i].range;
      if (gradients_.holds(rank, i)) {
        gradients_.segment(rank, i).zero_();
      } else {
        kept_[parameter] = at::zeros({range.rows_total * range.columns}, gradient_type(bucket_));
      }
    });
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

  // This rank's own gradients are rounded if those that travel are: the sum does not depend on who owns a row.
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
    if (!is_exact_ && !sum_.defined()) {
      sum_ = at::empty({bucket_.counts[rank_]}, gradient_type(bucket_));
    }
    double squares = 0;
    for (size_t i = 0; i < bucket_.segments[rank_].size(); ++i) {
      squares += add_up(summands(i), sum_of(i));
    }
    is_summed_ = true;
    return std::sqrt(squares);
  }

  void release_gradients() override { kept_.clear(); }

  comm::Work start_param_sync(std::span<const ParameterMatrix> matrices,
                              const std::vector<bool>& used, uint32_t) override {
    if (peers_.empty()) return {};
    std::vector<comm::Message> sends, receives;
    for (size_t i = 0; i < bucket_.segments[rank_].size(); ++i) {
      const plan::Segment& own = bucket_.segments[rank_][i];
      if (rows_.holds(rank_, i)) {
        rows_.segment(rank_, i).copy_(matrices[own.parameter].rows(own.range).view({-1}));
      }
    }
    for (const int peer : peers_) {
      add_rows(sends, peer, rank_, matrices, used);
      add_rows(receives, peer, peer, matrices, used);
    }
    return communicator_.exchange(std::move(sends), std::move(receives));
  }

  void finish_param_sync(std::span<ParameterMatrix> matrices,
                         const std::vector<bool>& used) override {
    for (const int peer : peers_) {
      for (size_t i = 0; i < bucket_.segments[peer].size(); ++i) {
        const plan::Segment& segment = bucket_.segments[peer][i];
        if (!rows_.holds(peer, i) || !used[segment.parameter]) continue;
        matrices[segment.parameter].rows(segment.range).view({-1}).copy_(rows_.segment(peer, i));
      }
    }
  }

 private:
  /// A segment of a gradient that stayed where it was.
  at::Tensor kept(int rank, size_t i) const {
    const plan::Segment& segment = bucket_.segments[rank][i];
    return elements_of(kept_.at(segment.parameter), segment.range);
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

  /// Where their sum lies once the norm was asked for: in the place of the first that arrived, if its type has room for it. Alone, a
  /// rank's own gradient is the sum.
  at::Tensor sum_of(size_t i) const {
    if (!is_exact_) return placed(sum_, i);
    return peers_.empty() ? summands(i).front() : placed(arrivals_[0], i);
  }

  size_t index_of(const plan::Segment& own) const {
    const auto& segments = bucket_.segments[rank_];
    const auto it = std::ranges::find_if(segments, [&](const plan::Segment& segment) {
      return segment.parameter == own.parameter && segment.offset == own.offset;
    });
    FUSEDBUN_ASSERT(it != segments.end(), "the segment is this rank's");
    return static_cast<size_t>(it - segments.begin());
  }

  /// The rows of `owner`, to or from `peer`.
  void add_rows(std::vector<comm::Message>& messages, int peer, int owner,
                std::span<const ParameterMatrix> matrices, const std::vector<bool>& used) const {
    messages.push_back(message(peer, rows_.of_rank(owner)));
    for (size_t i = 0; i < bucket_.segments[owner].size(); ++i) {
      const plan::Segment& segment = bucket_.segments[owner][i];
      if (rows_.holds(owner, i) || !used[segment.parameter]) continue;
      messages.push_back(message(peer, matrices[segment.parameter].rows(segment.range)));
    }
  }

  comm::Communicator& communicator_;
  std::vector<int> peers_;    ///< the other ranks, in order
  bool is_exact_;             ///< gradients travel in the type in which they are added up
  PackedSegments gradients_;  ///< in the wire's type
  PackedSegments rows_;       ///< in the parameters' type
  std::map<int, at::Tensor>
      kept_;             ///< by parameter: gradients of this rank that are not packed whole
  at::Tensor arrivals_;  ///< [peer][elements of this rank's portion], by gradients_.layout()
  at::Tensor sum_;       ///< [elements of this rank's portion] where arrivals are rounded
  bool is_summed_ = false;
};

}  // namespace

std::unique_ptr<GradientBucket> make_point_to_point_bucket(const plan::Bucket& bucket,
                                                           comm::Communicator& communicator,
                                                           at::ScalarType wire,
                                                           int64_t in_place_bytes) {
  return std::make_unique<PointToPointBucket>(bucket, communicator, wire, in_place_bytes);
}

}  // namespace fusedbun
