#include "bucket_conformance.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "fusedbun/core/segment_step.h"
#include "fusedbun/dist/comm/host_window.h"
#include "fusedbun/dist/step/collective_bucket.h"
#include "fusedbun/dist/step/point_to_point_bucket.h"
#include "fusedbun/dist/step/shared_memory_bucket.h"
#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::testing {
namespace {

using plan::between;
using plan::chance;
using plan::GradientTransport;
using plan::Random;

// --- what is run ---------------------------------------------------------------------------------

at::ScalarType type_of(const plan::ParameterSpec& spec) {
  return scalar_type_of(spec.type);
}

// A model and its plan, the same on all ranks.
struct Setting {
  plan::ShardPlan plan;
  int64_t in_place_bytes = 0;
  bool rounds = false;          // float32 gradients travel as bfloat16
  bool rounds_updates = false;  // and what a step changes of float32 rows
  std::vector<int> hosts = {};  // [rank]
  bool strided = false;         // parameters are not contiguous
};

Setting random_setting(Random& random, int world_size, GradientTransport transport) {
  std::vector<plan::ParameterSpec> specs = plan::random_model(random, "p", 8);
  specs.push_back({.name = "large", .shape = {between(random, 40, 90), 33}});
  plan::PlanOptions options = plan::random_plan_options(random);
  options.world_size = world_size;
  Setting setting{.plan = plan::make_plan(specs, options)};
  const int64_t choices[] = {0, between(random, 1, 2000), std::numeric_limits<int64_t>::max()};
  setting.in_place_bytes = choices[between(random, 0, 2)];
  setting.rounds = transport == GradientTransport::point_to_point && chance(random, 0.3);
  setting.rounds_updates = transport == GradientTransport::point_to_point && chance(random, 0.4);
  for (int rank = 0; rank < world_size; ++rank)
    setting.hosts.push_back(static_cast<int>(between(random, 0, 2)));
  setting.strided = transport != GradientTransport::shared_memory && chance(random, 0.3);
  return setting;
}

// Numbers of many magnitudes, so that another order of addition gives other bits.
at::Tensor random_values(Random& random, const plan::ParameterSpec& spec) {
  at::Tensor values = at::empty(spec.shape, at::kDouble);
  double* const data = values.data_ptr<double>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    data[i] = std::ldexp(std::normal_distribution<double>()(random),
                         static_cast<int>(between(random, -8, 4)));
  }
  return values.to(type_of(spec));
}

// The same values in memory that is not contiguous where the shape allows it.
at::Tensor strided_copy(const at::Tensor& values) {
  if (values.dim() == 0) return values;
  if (values.dim() == 1) {
    at::Tensor every_second = at::zeros({values.numel() * 2}, values.options()).slice(0, 0, {}, 2);
    return every_second.copy_(values);
  }
  return values.transpose(0, 1).contiguous().transpose(0, 1);
}

// What one rank adds for one parameter in one step.
struct Addition {
  at::Tensor gradient;  // undefined: a gradient of zeros
  at::Tensor values;    // what counts: contiguous, of the parameter's type
};

Addition random_addition(Random& random, const plan::ParameterSpec& spec) {
  Addition addition;
  const int64_t kind = between(random, 0, 9);
  if (kind == 0) {
    addition.values = at::zeros(spec.shape, type_of(spec));
    return addition;
  }
  addition.values = random_values(random, spec);
  addition.gradient = addition.values.clone();
  if (kind == 1) addition.gradient = strided_copy(addition.gradient);
  if (kind == 2) addition.gradient = addition.gradient.to(at::kDouble);
  if (kind == 3) {  // as the gradient of a sum is
    addition.gradient = at::ones({}, type_of(spec)).expand(spec.shape);
    addition.values = at::ones(spec.shape, type_of(spec));
  }
  return addition;
}

// --- the dumb second implementation --------------------------------------------------------------

std::vector<double> widened(const at::Tensor& values, bool rounds) {
  at::Tensor v = values;
  if (rounds && v.scalar_type() == at::kFloat) v = v.to(at::kBFloat16);
  v = v.to(at::kDouble).contiguous();
  return {v.data_ptr<double>(), v.data_ptr<double>() + v.numel()};
}

// ((rank 0 + rank 1) + rank 2) ... in float32, or in float64 for float64 parameters.
std::vector<double> summed(const std::vector<at::Tensor>& by_rank, bool rounds) {
  std::vector<double> sum = widened(by_rank[0], rounds);
  const bool wide = by_rank[0].scalar_type() == at::kDouble;
  for (size_t r = 1; r < by_rank.size(); ++r) {
    const std::vector<double> next = widened(by_rank[r], rounds);
    for (size_t i = 0; i < sum.size(); ++i) {
      sum[i] = wide ? sum[i] + next[i]
                    : static_cast<double>(static_cast<float>(sum[i]) + static_cast<float>(next[i]));
    }
  }
  return sum;
}

// --- one rank ------------------------------------------------------------------------------------

class Rank {
 public:
  Rank(const Setting& setting, GradientTransport transport, comm::Communicator& communicator,
       uint64_t seed)
      : setting_(setting), communicator_(communicator), seed_(seed) {
    Random random(seed);
    for (const plan::ParameterSpec& spec : plan().parameters) {
      at::Tensor values = random_values(random, spec);
      initial_.push_back(values.clone());
      parameters_.push_back(setting.strided ? strided_copy(values) : values);
    }
    transport == GradientTransport::shared_memory ? make_shared_buckets() : make_buckets(transport);
    for (size_t p = 0; p < parameters_.size(); ++p) {
      matrices_.emplace_back(parameters_[p], plan().parameters[p]);
      expected_.push_back(initial_[p]);
    }
  }

  void run_step(int step) {
    Random random(seed_ + 1000 * static_cast<uint64_t>(step + 1));  // the same on all ranks
    const auto count = parameters_.size();
    std::vector<bool> used(count);
    for (size_t p = 0; p < count; ++p) used[p] = chance(random, 0.8);
    const bool clips = chance(random, 0.4), skips = chance(random, 0.2);

    final_.assign(count, std::vector<at::Tensor>(communicator_.size()));
    add(random, used, /*again=*/false);
    sync();
    for (int resends = static_cast<int>(between(random, 0, 2)); resends > 0; --resends) {
      round_ += static_cast<uint32_t>(between(random, 0, 3));
      add(random, used, /*again=*/true);
      sync();
    }
    for (size_t b = 0; b < buckets_.size(); ++b) {
      if (clips) expect_norm(b);
      expect_sums(b, clips);
    }
    if (skips) {
      for (auto& bucket : buckets_) bucket->release_gradients();
      communicator_.barrier().wait();  // stands for the ranks' agreement to skip
    } else {
      update(random, used);
    }
    expect_parameters(step);
    for (const auto& [gradient, holders] : given_) {
      ASSERT_EQ(gradient.storage().use_count(), holders) << "a gradient is held after its release";
    }
    given_.clear();
  }

  // One bad element, wherever it is, is found when it is added; the gradient that replaces it is finite again.
  void expect_nonfinite_found(Random& random) {
    for (size_t p = 0; p < parameters_.size(); ++p) {
      const plan::ParameterSpec& spec = plan().parameters[p];
      if (spec.elements() == 0) continue;
      const at::Tensor good = random_values(random, spec);
      const double bad_ones[] = {std::nan(""), -HUGE_VAL,
                                 spec.type == ElementType::f64 ? 1e200 : 1e30};
      const at::Tensor bad = good.clone();
      bad.view({-1})[between(random, 0, bad.numel() - 1)] = bad_ones[between(random, 0, 2)];
      EXPECT_TRUE(add_to_its_buckets(p, good)) << spec.name;
      EXPECT_FALSE(add_to_its_buckets(p, bad)) << spec.name;
      EXPECT_TRUE(add_to_its_buckets(p, strided_copy(good))) << spec.name;
    }
    for (auto& bucket : buckets_) bucket->release_gradients();
  }

 private:
  const plan::ShardPlan& plan() const { return setting_.plan; }

  void make_buckets(GradientTransport transport) {
    for (const plan::Bucket& bucket : plan().buckets) {
      buckets_.push_back(
          transport == GradientTransport::collective
              ? make_collective_bucket(bucket, communicator_)
              : make_point_to_point_bucket(
                    bucket, communicator_,
                    {.gradient_type = wire_type(bucket, setting_.rounds),
                     .rounds_updates = setting_.rounds_updates,
                     .in_place_bytes = setting_.in_place_bytes,
                     .routes = plan::route_rows(setting_.hosts, communicator_.rank())}));
    }
  }

  void make_shared_buckets() {
    const WindowLayout layout = lay_out_window(plan(), 0, 0);
    const auto opened =
        comm::HostWindow::open(communicator_, layout.size, std::chrono::seconds(60));
    ASSERT_NE(opened.window, nullptr) << opened.reason;
    for (size_t b = 0; b < plan().buckets.size(); ++b) {
      buckets_.push_back(make_shared_memory_bucket(plan().buckets[b], communicator_.rank(),
                                                   opened.window, layout.buckets[b]));
    }
    for (size_t p = 0; p < parameters_.size(); ++p) {
      move_into_window(parameters_[p], opened.window, layout.parameter_offsets[p],
                       /*copy=*/communicator_.rank() == 0);
    }
    communicator_.barrier().wait();
  }

  // Every rank draws what every rank adds, and adds its own. Some are added twice before they are sent; `again` adds some of the
  // parameters once more.
  void add(Random& random, const std::vector<bool>& used, bool again) {
    for (size_t p = 0; p < parameters_.size(); ++p) {
      for (int rank = 0; rank < communicator_.size(); ++rank) {
        if (again && chance(random, 0.6)) continue;
        for (int64_t times = between(random, 0, 3) / 3; times >= 0; --times) {
          Addition addition = random_addition(random, plan().parameters[p]);
          if (!used[p]) {
            addition.gradient.reset();
            addition.values.zero_();
          }
          final_[p][rank] = addition.values;
          if (rank == communicator_.rank()) give(p, addition.gradient);
        }
      }
    }
  }

  void give(size_t parameter, const at::Tensor& gradient) {
    if (gradient.defined()) {
      given_.push_back({gradient, gradient.storage().use_count()});
      EXPECT_TRUE(add_to_its_buckets(parameter, gradient));
      return;
    }
    const plan::BucketRange& buckets = plan().buckets_of[parameter];
    for (int b = buckets.begin; b < buckets.end; ++b) {
      buckets_[b]->add_zero_gradient(static_cast<int>(parameter));
    }
  }

  /// Whether every bucket found its part of the gradient finite.
  bool add_to_its_buckets(size_t parameter, const at::Tensor& gradient) {
    const plan::BucketRange& buckets = plan().buckets_of[parameter];
    bool finite = true;
    for (int b = buckets.begin; b < buckets.end; ++b) {
      finite &= buckets_[b]->add_gradient(static_cast<int>(parameter), gradient);
    }
    return finite;
  }

  void sync() {
    ++round_;
    std::vector<comm::Work> works;
    for (auto& bucket : buckets_) works.push_back(bucket->start_grad_sync(round_));
    for (comm::Work& work : works) {
      if (work.pending()) work.wait();
    }
  }

  void expect_norm(size_t b) {
    double squares = 0;
    for (const plan::Segment& own : plan().buckets[b].segments[communicator_.rank()]) {
      const std::vector<double> sum = summed(final_[own.parameter], setting_.rounds);
      for (int64_t e = 0; e < own.range.elements(); ++e) {
        const double x = sum[own.range.row_begin * own.range.columns + e];
        squares += x * x;
      }
    }
    const double norm = std::sqrt(squares);
    EXPECT_NEAR(buckets_[b]->reduce_and_norm(), norm, 1e-12 * norm);
  }

  void expect_sums(size_t b, bool is_reduced) {
    for (const plan::Segment& own : plan().buckets[b].segments[communicator_.rank()]) {
      const std::vector<at::Tensor> parts = buckets_[b]->reduced_gradients(own);
      ASSERT_EQ(parts.size(), is_reduced ? 1 : parts.size());
      for (const at::Tensor& part : parts) {
        ASSERT_EQ(part.sizes(), (std::vector<int64_t>{own.range.rows(), own.range.columns}));
        ASSERT_TRUE(part.is_contiguous());
        ASSERT_EQ(part.scalar_type(), parts[0].scalar_type());
      }
      // In one process the sum is of what the bucket gives; summed() adds in the type of the arithmetic.
      const bool wide = plan().parameters[own.parameter].type == ElementType::f64;
      std::vector<at::Tensor> as_sum;
      for (const at::Tensor& part : parts)
        as_sum.push_back(part.to(wide ? at::kDouble : at::kFloat));
      const std::vector<double> found = summed(as_sum, /*rounds=*/false);
      const std::vector<double> expected = summed(final_[own.parameter], setting_.rounds);
      for (int64_t e = 0; e < own.range.elements(); ++e) {
        ASSERT_EQ(found[e], expected[own.range.row_begin * own.range.columns + e])
            << plan().parameters[own.parameter].name << " element " << e << " of rank "
            << communicator_.rank();
      }
    }
  }

  // Each rank writes its own rows of the parameters that were used: as a step does, or as who restores them.
  void update(Random& random, const std::vector<bool>& used) {
    const bool steps = chance(random, 0.8);
    std::vector<at::Tensor> fresh;
    for (size_t p = 0; p < parameters_.size(); ++p) {
      fresh.push_back(random_values(random, plan().parameters[p]));
      if (used[p]) expected_[p] = steps ? as_stepped(expected_[p], fresh[p]) : fresh[p];
    }
    for (ParameterMatrix& matrix : matrices_) matrix.refresh();
    std::vector<comm::Work> works;
    for (size_t b = 0; b < buckets_.size(); ++b) {
      for (const plan::Segment& own : plan().buckets[b].segments[communicator_.rank()]) {
        if (!used[own.parameter]) continue;
        const at::Tensor rows = matrices_[own.parameter].rows(own.range);
        const at::Tensor target = steps ? buckets_[b]->rows_to_step(own, rows) : rows;
        ASSERT_TRUE(at::equal(target, rows)) << "a step does not begin with the rows as they are";
        target.copy_(fresh[own.parameter]
                         .view({own.range.rows_total, own.range.columns})
                         .narrow(0, own.range.row_begin, own.range.rows()));
      }
      works.push_back(steps ? buckets_[b]->start_update_sync(matrices_, used, round_)
                            : buckets_[b]->start_param_sync(matrices_, used, round_));
      buckets_[b]->release_gradients();
    }
    wait_for_all(works);
    for (auto& bucket : buckets_) works.push_back(bucket->relay_rows(matrices_, used));
    wait_for_all(works);
    for (auto& bucket : buckets_) bucket->finish_param_sync(matrices_, used);
    for (ParameterMatrix& matrix : matrices_) matrix.write_back();
  }

  static void wait_for_all(std::vector<comm::Work>& works) {
    for (comm::Work& work : works) {
      if (work.pending()) work.wait();
    }
    works.clear();
  }

  at::Tensor as_stepped(const at::Tensor& old_values, const at::Tensor& new_values) const {
    const bool rounds = setting_.rounds_updates && communicator_.size() > 1;
    if (!rounds || new_values.scalar_type() != at::kFloat) return new_values;
    return old_values + (new_values - old_values).to(at::kBFloat16).to(at::kFloat);
  }

  void expect_parameters(int step) {
    for (size_t p = 0; p < parameters_.size(); ++p) {
      ASSERT_TRUE(at::equal(parameters_[p], expected_[p]))
          << plan().parameters[p].name << " on rank " << communicator_.rank() << " after step "
          << step;
    }
  }

  const Setting& setting_;
  comm::Communicator& communicator_;
  uint64_t seed_;
  uint32_t round_ = 0;
  std::vector<at::Tensor> initial_, parameters_, expected_;  // [parameter]
  std::vector<ParameterMatrix> matrices_;
  std::vector<std::unique_ptr<GradientBucket>> buckets_;
  std::vector<std::vector<at::Tensor>> final_;  // [parameter][rank] the additions that count
  /// Gradients that this rank gave in this step, and how many held their memory before.
  std::vector<std::pair<at::Tensor, size_t>> given_;
};

// One seed for all ranks; rank 0 draws and prints it.
uint64_t shared_seed(comm::Communicator& communicator) {
  int64_t seed = communicator.rank() == 0 ? static_cast<int64_t>(plan::test_seed() >> 1) : 0;
  communicator.broadcast({&seed, 1, comm::DataType::i64}, 0).wait();
  return static_cast<uint64_t>(seed);
}

}  // namespace

std::string bucket_test_name(const ::testing::TestParamInfo<BucketConformance::ParamType>& info) {
  return comm::testing::name_of(std::get<0>(info.param)) + "_" +
         std::string(plan::name_of(std::get<1>(info.param)));
}

TEST_P(BucketConformance, SumsAndRowsAreTheDumbLoopsBitForBit) {
  world_->run([&](comm::Communicator& communicator) {
    const uint64_t seed = shared_seed(communicator);
    for (uint64_t k = 0; k < 25; ++k) {
      Random random(seed + k);
      const Setting setting = random_setting(random, communicator.size(), transport_);
      Rank rank(setting, transport_, communicator, seed + 100 * k);
      for (int step = 0; step < 4; ++step) {
        rank.run_step(step);
        if (::testing::Test::HasFatalFailure()) return;
      }
      communicator.barrier().wait();  // the window goes when nobody waits in it
    }
  });
}

TEST_P(BucketConformance, AGradientWhoseSquareIsNotFiniteIsFoundWhenItIsAdded) {
  world_->run([&](comm::Communicator& communicator) {
    const uint64_t seed = shared_seed(communicator);
    for (uint64_t k = 0; k < 10; ++k) {
      Random random(seed + k);
      const Setting setting = random_setting(random, communicator.size(), transport_);
      Rank(setting, transport_, communicator, seed).expect_nonfinite_found(random);
      communicator.barrier().wait();
    }
  });
}

}  // namespace fusedbun::testing
