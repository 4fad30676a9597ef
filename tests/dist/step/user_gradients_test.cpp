// What programs do to p.grad: clip it, scale it, replace it, set it by hand, throw it away. p.grad at step() is the
// truth, or step() says that it cannot be.
#include <torch/nn/utils/clip_grad.h>

#include "user_program.h"

namespace fusedbun {
namespace {

using ::testing::AllOf;
using testing::expect_refused;
using ::testing::HasSubstr;
using testing::Model;
using testing::names_a_parameter;
using testing::plain_sgd;
using testing::Rank;

class UserGradients : public testing::UserProgram {};

const auto kSaysWhatToDo =
    AllOf(HasSubstr("max_grad_norm"), HasSubstr("loss_scale"), HasSubstr("no_sync()"));

/// Ways to write a gradient after backward(); each changes its values.
struct Write {
  const char* name;
  void (*apply)(const at::Tensor& parameter);
};
const Write kWrites[] = {
    {"scaled in place", [](const at::Tensor& p) { p.mutable_grad().mul_(0.5); }},
    {"scaled through data()", [](const at::Tensor& p) { p.mutable_grad().data().mul_(0.5); }},
    {"scaled through detach()", [](const at::Tensor& p) { p.mutable_grad().detach().mul_(0.5); }},
    {"replaced", [](const at::Tensor& p) { p.mutable_grad() = p.grad() * 0.01; }},
    {"overwritten", [](const at::Tensor& p) { p.mutable_grad().copy_(at::rand_like(p) + 1); }},
    {"clipped by value",
     [](const at::Tensor& p) { torch::nn::utils::clip_grad_value_(std::vector{p}, 0.25); }},
};

TEST_P(UserGradients, ClippedByHandAfterTheyLeftAreRefused) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    model.backward(100);
    torch::nn::utils::clip_grad_norm_(model.tensors(), 1.0);
    expect_refused([&] { optimizer.step(); }, AllOf(names_a_parameter(), kSaysWhatToDo));
    model.expect_values(0, "after a refused step");
  });
}

TEST_P(UserGradients, WrittenAfterTheyLeftAreRefused) {
  for (const Write& write : kWrites) {
    on_ranks([&](Rank& rank) {
      Model model(rank.type(), 0);
      ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                                rank.options());
      model.backward(rank.gradient());
      write.apply(model.large);
      expect_refused([&] { optimizer.step(); }, AllOf(HasSubstr("'large'"), kSaysWhatToDo),
                     write.name);
      model.expect_values(0, std::string("refused: ") + write.name);
    });
  }
}

// The others cannot see the write: they are told of it.
TEST_P(UserGradients, WrittenOnOneRankAloneAreRefusedOnAll) {
  for (const Write& write : kWrites) {
    on_ranks([&](Rank& rank) {
      Model model(rank.type(), 0);
      ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                                rank.options());
      model.backward(rank.gradient());
      if (rank.is_last()) write.apply(model.small);
      expect_refused([&] { optimizer.step(); }, AllOf(HasSubstr("'small'"), kSaysWhatToDo),
                     write.name);
      model.expect_values(0, std::string("refused: ") + write.name);
    });
  }
}

TEST_P(UserGradients, WrittenInASingleRowAreRefused) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    model.backward(rank.gradient());
    model.large.mutable_grad()[17].mul_(2);
    expect_refused([&] { optimizer.step(); }, AllOf(HasSubstr("'large'"), kSaysWhatToDo));
  });
}

// The way out for programs that write gradients themselves: nothing has left before step().
TEST_P(UserGradients, WrittenUnderNoSyncCount) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    for (int step = 1; step <= 3; ++step) {
      optimizer.zero_grad();
      {
        const auto guard = optimizer.no_sync();
        model.backward(64 * rank.gradient());
      }
      for (const at::Tensor& parameter : model.tensors()) {
        parameter.mutable_grad() = parameter.grad() * (1.0 / 64);
      }
      optimizer.step();
      model.expect_values(-step * rank.mean_gradient(), "after step " + std::to_string(step));
    }
  });
}

TEST_P(UserGradients, WrittenUnderNoSyncOnOneRankCountThere) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    {
      const auto guard = optimizer.no_sync();
      model.backward(4);
    }
    if (rank.is_last()) model.large.mutable_grad().data().mul_(0.25);
    optimizer.step();
    testing::expect_values(model.small, -4);
    testing::expect_values(model.large, -(4.0 * (rank.world_size() - 1) + 1) / rank.world_size());
  });
}

TEST_P(UserGradients, ClippedByHandUnderNoSyncAreThoseThatCount) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    {
      const auto guard = optimizer.no_sync();
      model.backward(100);
    }
    torch::nn::utils::clip_grad_norm_(model.tensors(), 1024);
    optimizer.step();
    // The norm of 65,600 equal elements is 1024: each is 1024 / sqrt(65600).
    model.expect_values(-1024 / std::sqrt(65600.0));
  });
}

TEST_P(UserGradients, SetByHandWithoutABackwardPassCount) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    for (int step = 1; step <= 2; ++step) {
      for (const at::Tensor& parameter : model.tensors()) {
        parameter.mutable_grad() = at::full_like(parameter, rank.gradient());
      }
      optimizer.step();
      model.expect_values(-step * rank.mean_gradient());
    }
  });
}

TEST_P(UserGradients, SetByHandBesideABackwardPassCount) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    (model.large * rank.gradient()).sum().backward();
    model.small.mutable_grad() = at::full_like(model.small, 3);
    optimizer.step();
    testing::expect_values(model.large, -rank.mean_gradient());
    testing::expect_values(model.small, -3);
  });
}

TEST_P(UserGradients, SetBeforeABackwardPassAreAddedTo) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    for (const at::Tensor& parameter : model.tensors()) {
      parameter.mutable_grad() = at::full_like(parameter, 2);
    }
    model.backward(rank.gradient());
    optimizer.step();
    model.expect_values(-2 - rank.mean_gradient());
  });
}

// Lambda would show: a parameter without a gradient does not even decay.
TEST_P(UserGradients, ThrownAwayLeaveTheParametersUntouched) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 8);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(1).Lambda(0.5),
                              rank.options());
    for (int step = 0; step < 2; ++step) {
      model.backward(7);
      optimizer.zero_grad();
      optimizer.step();
      model.expect_values(8, "after a step without a gradient");
    }
    for (const auto& owned : optimizer.owned_rows()) EXPECT_EQ(owned.t, 0) << owned.name;
    EXPECT_EQ(optimizer.skipped_steps(), 0);
  });
}

TEST_P(UserGradients, ZeroedInPlaceAreZeroGradients) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 8);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    model.backward(7);
    optimizer.zero_grad(/*set_to_none=*/false);
    optimizer.step();
    model.expect_values(8);
    model.backward(rank.gradient());
    optimizer.step();
    model.expect_values(8 - rank.mean_gradient(), "a step later");
  });
}

TEST_P(UserGradients, ThrownAwayOnOneRankCountAsZeroThere) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    model.backward(6);
    if (rank.is_last()) optimizer.zero_grad();
    optimizer.step();
    model.expect_values(-6.0 * (rank.world_size() - 1) / rank.world_size());
  });
}

TEST_P(UserGradients, AreStillThereAfterARefusedStep) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    model.backward(2 * rank.gradient());
    for (const at::Tensor& parameter : model.tensors()) parameter.mutable_grad().mul_(0.5);
    expect_refused([&] { optimizer.step(); }, names_a_parameter());
    optimizer.step();  // calling it again means what stands in p.grad
    model.expect_values(-rank.mean_gradient());
  });
}

TEST_P(UserGradients, OfTheNextPassCountAfterARefusedStep) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    for (int round = 1; round <= 3; ++round) {
      model.backward(50);
      if (rank.is_last()) model.small.mutable_grad().mul_(0.5);
      expect_refused([&] { optimizer.step(); }, HasSubstr("'small'"));
      optimizer.zero_grad();
      model.backward(rank.gradient());
      optimizer.step();
      model.expect_values(-round * rank.mean_gradient());
    }
    EXPECT_EQ(optimizer.job_step(), 3);
  });
}

INSTANTIATE_TEST_SUITE_P(Everywhere, UserGradients, ::testing::ValuesIn(testing::all_settings()),
                         testing::name_of_setting);

}  // namespace
}  // namespace fusedbun
