// Param groups as programs give them, also wrongly, and loops that do something beside training: collectives of the user,
// parameters that some ranks do not use, changes of hyperparameters, a rank with fewer batches.
#include <torch/optim/adamw.h>

#include <optional>

#include "fusedbun/dist/changes/control_port.h"
#include "user_program.h"

namespace fusedbun {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using testing::expect_refused;
using testing::expect_values;
using ::testing::HasSubstr;
using testing::Model;
using testing::plain_sgd;
using testing::Rank;
using Groups = std::vector<torch::optim::OptimizerParamGroup>;

class UserGroups : public testing::UserProgram {};

Groups one_group(std::vector<at::Tensor> tensors) {
  Groups groups;
  groups.emplace_back(std::move(tensors));
  return groups;
}

TEST_P(UserGroups, WithOptionsOfAnotherOptimizerAreRefused) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    Groups groups = one_group({model.small});
    groups.emplace_back(std::vector<at::Tensor>{model.large},
                        std::make_unique<torch::optim::AdamWOptions>(0.1));
    expect_refused([&] { ShardedFusedbun(rank.channels(), groups, plain_sgd(), rank.options()); },
                   AllOf(HasSubstr("group 1"), HasSubstr("FusedbunOptions")));
  });
}

TEST_P(UserGroups, WithOneTensorTwiceAreRefused) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    Groups groups = one_group({model.small, model.large});
    groups.emplace_back(std::vector<at::Tensor>{model.small},
                        std::make_unique<FusedbunOptions>(plain_sgd(10)));
    expect_refused([&] { ShardedFusedbun(rank.channels(), groups, plain_sgd(), rank.options()); },
                   AllOf(HasSubstr("group0.0"), HasSubstr("group1.0")));
  });
}

/// A late group that must be refused, and why.
struct BadGroup {
  const char* name;
  std::function<torch::optim::OptimizerParamGroup(const Model&)> make;
  const char* words;
};

std::vector<BadGroup> bad_groups() {
  const auto with = [](const at::Tensor& tensor,
                       std::unique_ptr<torch::optim::OptimizerOptions> o) {
    return torch::optim::OptimizerParamGroup(std::vector<at::Tensor>{tensor}, std::move(o));
  };
  return {
      {"another optimizer's options",
       [=](const Model& m) {
         return with(m.large, std::make_unique<torch::optim::AdamWOptions>(1));
       },
       "FusedbunOptions"},
      {"a bad value",
       [=](const Model& m) {
         return with(m.large, std::make_unique<FusedbunOptions>(plain_sgd(-1)));
       },
       "lr = -1"},
      {"a tensor of another group",
       [=](const Model& m) {
         return with(m.small, std::make_unique<FusedbunOptions>(plain_sgd()));
       },
       "group1.0"},
      {"memory of another parameter",
       [=](const Model& m) {
         return with(m.small.detach().view({64}).requires_grad_(),
                     std::make_unique<FusedbunOptions>(plain_sgd()));
       },
       "share memory"},
      {"complex numbers",
       [=](const Model&) {
         return with(at::ones({4}, at::kComplexFloat).requires_grad_(),
                     std::make_unique<FusedbunOptions>(plain_sgd()));
       },
       "group1.0"},
  };
}

TEST_P(UserGroups, ThatAreRefusedChangeNothing) {
  for (const BadGroup& bad : bad_groups()) {
    on_ranks([&](Rank& rank) {
      Model model(rank.type(), 0);
      ShardedFusedbun optimizer(rank.channels(), one_group({model.small}), plain_sgd(),
                                rank.options());
      const auto train = [&] {
        optimizer.zero_grad();
        model.backward(rank.gradient());
        optimizer.step();
      };
      train();
      expect_refused([&] { optimizer.add_param_group(bad.make(model)); }, HasSubstr(bad.words),
                     bad.name);
      EXPECT_EQ(optimizer.param_groups().size(), 1u) << bad.name;
      train();
      expect_values(model.small, -2 * rank.mean_gradient(), bad.name);
      expect_values(model.large, 0, bad.name);

      model.large.mutable_grad().reset();
      optimizer.add_param_group(torch::optim::OptimizerParamGroup({model.large}));
      train();
      expect_values(model.small, -3 * rank.mean_gradient(), bad.name);
      expect_values(model.large, -rank.mean_gradient(), bad.name);
    });
  }
}

// The method of the base class is not virtual: nothing but the group's presence tells of the call.
TEST_P(UserGroups, AddedThroughTheBaseClassAreRefusedInTheNextStep) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), one_group({model.small}), plain_sgd(),
                              rank.options());
    torch::optim::Optimizer& base = optimizer;
    base.add_param_group(torch::optim::OptimizerParamGroup({model.large}));
    model.backward(rank.gradient());
    expect_refused([&] { optimizer.step(); }, HasSubstr("ShardedFusedbun::add_param_group"));
    expect_values(model.small, 0);
  });
}

/// Four parameters that alternate between two groups.
struct Alternating : torch::nn::Module {
  explicit Alternating(at::ScalarType type) {
    const at::NoGradGuard no_grad;
    for (const char* name : {"w1", "b1", "w2", "b2"}) {
      register_parameter(name, name[0] == 'w' ? at::full({8, 8}, 8, type) : at::full({8}, 8, type));
    }
  }
};

TEST_P(UserGroups, MayHaveNamesAndAlternate) {
  on_ranks([](Rank& rank) {
    Alternating model(rank.type());
    const std::vector<NamedGroup> groups = {
        {.name = "matrices", .options = plain_sgd(1)},
        {.name = "vectors", .options = plain_sgd(0.5), .is_exempt_from_decay = true}};
    ShardedFusedbun optimizer(
        rank.channels(), model.named_parameters(), groups,
        [](const std::string& name, const at::Tensor&) -> size_t { return name[0] == 'b'; },
        rank.options());
    EXPECT_EQ(optimizer.group_name(0), "matrices");
    EXPECT_EQ(optimizer.group_name(1), "vectors");
    EXPECT_FALSE(optimizer.is_exempt_from_decay(0));
    EXPECT_TRUE(optimizer.is_exempt_from_decay(1));
    std::vector<std::string> order;
    for (const auto& spec : optimizer.shard_plan().parameters) order.push_back(spec.name);
    EXPECT_EQ(order, (std::vector<std::string>{"w1", "b1", "w2", "b2"}))
        << "buckets leave in the order in which gradients come";
    at::Tensor loss = at::zeros({}, rank.type());
    for (const at::Tensor& parameter : model.parameters())
      loss = loss + (parameter * rank.gradient()).sum();
    loss.backward();
    optimizer.step();
    for (const auto& item : model.named_parameters()) {
      const double rate = item.key()[0] == 'b' ? 0.5 : 1;
      expect_values(item.value(), 8 - rate * rank.mean_gradient(), item.key());
    }
    EXPECT_EQ(optimizer.param_groups()[1].params().size(), 2u);
    optimizer.finish();
  });
}

TEST_P(UserGroups, WithoutNamesAreCounted) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), one_group({model.small}), plain_sgd(),
                              rank.options());
    EXPECT_EQ(optimizer.group_name(0), "default");
    optimizer.add_param_group(torch::optim::OptimizerParamGroup({model.large}));
    EXPECT_EQ(optimizer.group_name(1), "group1");
    EXPECT_FALSE(optimizer.is_exempt_from_decay(1));
  });
}

INSTANTIATE_TEST_SUITE_P(Everywhere, UserGroups, ::testing::ValuesIn(testing::all_settings()),
                         testing::name_of_setting);

// ---- loops of several ranks --------------------------------------------------------------------

class UserLoops : public testing::UserProgram {};

// A rank's data ended earlier. Both sides name both, so that the reader of one log knows.
TEST_P(UserLoops, WithUnevenBatchesAreNamedOnBothSides) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 0);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    const auto train = [&] {
      model.backward(rank.gradient());
      optimizer.step();
    };
    for (int step = 0; step < 9; ++step) train();
    const auto names_both =
        AllOf(HasSubstr("rank 0"), AnyOf(HasSubstr("rank 1"), HasSubstr("rank 2")));
    if (rank.rank() == 0) return expect_refused(train, names_both, "in step()");
    expect_refused([&] { optimizer.finish(); }, names_both, "in finish()");
  });
}

/// Changes the learning rate from step 3 on; announced at the end of step 1.
class OneChange : public changes::ControlPort {
 public:
  explicit OneChange(double lr) : lr_(lr) {}
  int64_t newest_revision() override { return 0; }
  Boundary close_step(int64_t job_step) override {
    return {job_step >= 1 ? 1 : 0, changes::LeaveRequest::none};
  }
  std::vector<changes::ChangeEntry> entries(int64_t after, int64_t up_to) override {
    if (after >= 1 || up_to < 1) return {};
    return {
        {.revision = 1, .effective_step = 3, .field = changes::Field::learning_rate, .value = lr_}};
  }
  void step_finished(const changes::StepReport&) override {}

 private:
  double lr_;
};

// Gradients of buckets whose parameters a rank did not use leave in step(), the others' in backward: nothing that is
// done between the two may meet them.
TEST_P(UserLoops, MayCommunicateWhileSomeRanksUseLessThanTheModel) {
  constexpr int kParameters = 5, kSteps = 7;
  on_ranks([](Rank& rank) {
    torch::OrderedDict<std::string, torch::Tensor> model;
    for (int p = 0; p < kParameters; ++p) {
      model.insert("p" + std::to_string(p), at::zeros({64, 32}, rank.type()).requires_grad_());
    }
    ShardedFusedbun optimizer(rank.channels(), model, plain_sgd(1), rank.options());
    OneChange control(0.5);
    optimizer.set_control(rank.rank() == 0 ? &control : nullptr);
    std::vector<double> expected(kParameters);
    for (int step = 0; step < kSteps; ++step) {
      // Rank r does without parameter (step + r) % 5.
      at::Tensor loss = at::zeros({}, rank.type());
      for (int p = 0; p < kParameters; ++p) {
        if ((step + rank.rank()) % kParameters != p) {
          loss = loss + (model[p].value() * rank.gradient()).sum();
        }
      }
      loss.backward();
      double sum = rank.gradient();
      rank.channels()
          .host->all_reduce(comm::Buffer::of(std::span(&sum, 1)), comm::ReduceOp::sum)
          .wait();
      EXPECT_EQ(sum, rank.world_size() * rank.mean_gradient());
      int64_t told = rank.rank() == 0 ? step : -1;
      rank.channels().host->broadcast(comm::Buffer::of(std::span(&told, 1)), 0).wait();
      EXPECT_EQ(told, step);
      optimizer.step();
      for (int p = 0; p < kParameters; ++p) {
        for (int r = 0; r < rank.world_size(); ++r) {
          if ((step + r) % kParameters == p) continue;
          expected[p] -= (step < 3 ? 1 : 0.5) * (r + 1) / rank.world_size();
        }
        expect_values(model[p].value(), expected[p], "step " + std::to_string(step));
      }
    }
    EXPECT_EQ(optimizer.report().active_revision, 1);
    optimizer.finish();
  });
}

INSTANTIATE_TEST_SUITE_P(Everywhere, UserLoops,
                         ::testing::ValuesIn(testing::settings_of_several_ranks()),
                         testing::name_of_setting);

}  // namespace
}  // namespace fusedbun
