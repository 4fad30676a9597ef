#pragma once
// Training programs as people write them, run as one thread per rank: over messages and over a host window, on 1 to 3 ranks, in
// float32 and bfloat16. The optimizer is plain SGD (no momentum, no decay, no mask), so a parameter moves by lr times the
// mean gradient, and every expected value is a sum that a person can do.
//
// Thread safety: each rank's objects belong to its thread.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>

#include <functional>
#include <string>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"

namespace fusedbun::testing {

struct Setting {
  int world_size = 1;
  bool host_window = false;
  at::ScalarType type = at::kFloat;
};

std::vector<Setting> all_settings();
std::vector<Setting> settings_where(bool (*holds)(const Setting&));
std::vector<Setting> settings_of_several_ranks();
/// "Window3RanksBFloat16", for the test's name.
std::string name_of_setting(const ::testing::TestParamInfo<Setting>& info);

/// Two parameters in a bucket each. Over messages the rows of `small` are packed and those of `large` travel from where
/// autograd left them.
struct Model : torch::nn::Module {
  Model(at::ScalarType type, double start);

  /// A backward pass in which every element's gradient is `gradient`.
  void backward(double gradient) const;
  std::vector<at::Tensor> tensors() const { return {small, large}; }
  /// Every element of every parameter is `value`, up to the rounding of the type.
  void expect_values(double value, const std::string& when = {}) const;

  at::Tensor small, large;
};

/// Every element of `tensor` is `value`, up to the rounding of its type.
void expect_values(const at::Tensor& tensor, double value, const std::string& when = {});

/// What a program sees of its rank.
class Rank {
 public:
  Rank(comm::Communicator& communicator, const Setting& setting)
      : communicator_(communicator), setting_(setting) {}

  int rank() const { return communicator_.rank(); }
  void barrier() { communicator_.barrier().wait(); }
  int world_size() const { return setting_.world_size; }
  bool is_last() const { return rank() == world_size() - 1; }
  at::ScalarType type() const { return setting_.type; }
  /// The parameters are in a host window: a single rank has none.
  bool shares_memory() const { return setting_.host_window && world_size() > 1; }
  comm::Communicator& communicator() { return communicator_; }
  Channels channels() { return {&communicator_, &communicator_}; }
  /// Small buckets, and matrices split over the ranks.
  ShardedOptions options() const;
  /// This rank's gradient in most programs, rank + 1, and its mean over the ranks.
  double gradient() const { return rank() + 1; }
  double mean_gradient() const { return (world_size() + 1) / 2.0; }

 private:
  comm::Communicator& communicator_;
  Setting setting_;
};

/// SGD: a parameter moves by -lr times the mean gradient.
FusedbunOptions plain_sgd(double lr = 1);

/// A model whose elements are 8 and its optimizer on one rank.
struct Program {
  explicit Program(Rank& on, const FusedbunOptions& options = plain_sgd())
      : Program(on, options, on.options()) {}
  Program(Rank& on, const FusedbunOptions& options, const ShardedOptions& sharded)
      : rank(on),
        model(std::make_shared<Model>(on.type(), 8)),
        optimizer(on.channels(), model->named_parameters(), options, sharded) {}

  /// A pass and a step: every element moves by -rank.mean_gradient().
  void train() {
    optimizer.zero_grad();
    model->backward(rank.gradient());
    optimizer.step();
  }

  Rank& rank;
  std::shared_ptr<Model> model;
  ShardedFusedbun optimizer;
};

/// Throws unless `action` throws a ConfigError on this rank whose text matches. It throws and does not only report,
/// because ranks that are out of step have nothing more to show.
void expect_refused(const std::function<void()>& action,
                    const ::testing::Matcher<const std::string&>& text,
                    const std::string& when = {});
/// The name of one of Model's parameters, in quotes.
::testing::Matcher<const std::string&> names_a_parameter();

class UserProgram : public ::testing::TestWithParam<Setting> {
 protected:
  /// Runs `program` on every rank and waits for all.
  static void on_ranks(const std::function<void(Rank&)>& program);
};

}  // namespace fusedbun::testing
