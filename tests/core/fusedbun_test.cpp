// Fusedbun as a LibTorch user meets it.
#include "fusedbun/core/fusedbun.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/schedulers/step_lr.h>
#include <torch/serialize.h>

#include <limits>
#include <sstream>

#include "fusedbun/core/error.h"

namespace fusedbun {
namespace {

using torch::Tensor;
using torch::optim::OptimizerParamGroup;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Tensor parameter(at::IntArrayRef shape) {
  return at::randn(shape).requires_grad_();
}

void give_gradients(const std::vector<Tensor>& parameters) {
  for (const Tensor& p : parameters) p.mutable_grad() = at::randn(p.sizes());
}

const FusedbunParamState& state_of(Fusedbun& optimizer, const Tensor& p) {
  return static_cast<const FusedbunParamState&>(*optimizer.state().at(p.unsafeGetTensorImpl()));
}

std::vector<Tensor> copies(const std::vector<Tensor>& parameters) {
  std::vector<Tensor> result;
  for (const Tensor& p : parameters) result.push_back(p.detach().clone().requires_grad_());
  return result;
}

class FusedbunTest : public testing::Test {
 protected:
  void SetUp() override { at::manual_seed(11); }
};

TEST_F(FusedbunTest, LearnsALeastSquaresProblem) {
  const Tensor inputs = at::randn({64, 8}), targets = inputs.mm(at::randn({8, 3}));
  Tensor weight = at::zeros({8, 3}).requires_grad_();
  Fusedbun optimizer({weight}, FusedbunOptions::recommended(0.05).Lambda(0));
  const auto closure = [&] {
    optimizer.zero_grad();
    Tensor loss = (inputs.mm(weight) - targets).square().mean();
    loss.backward();
    return loss;
  };
  const double first = optimizer.step(closure).item<double>();
  double last = first;
  for (int i = 0; i < 150; ++i) last = optimizer.step(closure).item<double>();
  EXPECT_LT(last, 0.01 * first);
}

TEST_F(FusedbunTest, TheClosureRunsFirstWithGradientsEvenUnderNoGrad) {
  Tensor p = parameter({4, 3});
  const Tensor before = p.detach().clone();
  Fusedbun optimizer({p}, FusedbunOptions::recommended(0.1));
  at::NoGradGuard no_grad;
  const Tensor loss = optimizer.step([&] {
    EXPECT_TRUE(at::GradMode::is_enabled());
    EXPECT_TRUE(p.equal(before));
    Tensor value = p.square().sum();
    value.backward();
    return value;
  });
  EXPECT_TRUE(loss.defined());
  EXPECT_FALSE(p.equal(before));
  EXPECT_FALSE(optimizer.step().defined());
}

TEST_F(FusedbunTest, GroupsKeepTheirOwnOptionsAndLateOnesJoin) {
  Tensor a = at::ones({2, 2}).requires_grad_(), b = at::ones({2, 2}).requires_grad_(),
         c = at::ones({2, 2}).requires_grad_();
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<Tensor>{a});
  groups.emplace_back(std::vector<Tensor>{b}, std::make_unique<FusedbunOptions>(
                                                  FusedbunOptions::recommended(0.5).Lambda(0)));
  Fusedbun optimizer(groups, FusedbunOptions::recommended(0.25).Lambda(0));
  optimizer.add_param_group(OptimizerParamGroup({c}));
  for (const Tensor& p : {a, b, c}) p.mutable_grad() = at::ones({2, 2});
  optimizer.step();
  // At t = 1 the estimate is g² itself, so u = 1/(1+eps) and the momentum returns a tenth of it.
  EXPECT_TRUE(a.allclose(at::full({2, 2}, 1 - 0.25 * 0.1)));
  EXPECT_TRUE(b.allclose(at::full({2, 2}, 1 - 0.5 * 0.1))) << b;
  EXPECT_TRUE(c.equal(a));
}

TEST_F(FusedbunTest, BadOptionsAndParametersAreRefusedWhereTheyComeIn) {
  Tensor p = parameter({2, 2});
  EXPECT_THROW(Fusedbun({p}, FusedbunOptions(kNan)), ConfigError);
  EXPECT_THROW(Fusedbun({at::ones({2}, at::kLong)}, FusedbunOptions(1e-3)), ConfigError);
  Fusedbun optimizer({p}, FusedbunOptions::recommended(1e-3));
  EXPECT_THROW(optimizer.add_param_group(OptimizerParamGroup({p})), ConfigError);
  EXPECT_THROW(
      optimizer.add_param_group(OptimizerParamGroup(
          {parameter({2})}, std::make_unique<FusedbunOptions>(FusedbunOptions(1e-3).eps(0)))),
      ConfigError);
  EXPECT_THROW(optimizer.set_hessian_diagonal(p, at::ones({3})), ConfigError);
  const Tensor ones = at::ones({2, 2});
  p.mutable_grad() = ones.to_sparse();
  EXPECT_THROW(optimizer.step(), ConfigError);
  p.mutable_grad() = ones;
  static_cast<FusedbunOptions&>(optimizer.param_groups()[0].options()).lr(-1);
  EXPECT_THROW(optimizer.step(), ConfigError);
}

TEST_F(FusedbunTest, ParametersWithoutAGradientAreUntouchedAndCountTheirOwnSteps) {
  Tensor used = parameter({3, 5}), rare = parameter({3, 5}), frozen = at::randn({3, 5}),
         empty = parameter({0, 5});
  const Tensor rare_before = rare.detach().clone(), frozen_before = frozen.clone();
  Fusedbun optimizer({used, rare, frozen, empty}, FusedbunOptions::recommended(1e-2));
  for (int i = 0; i < 3; ++i) {
    give_gradients({used});
    if (i == 2) give_gradients({rare});
    optimizer.step();
    EXPECT_EQ(rare.equal(rare_before), i < 2);
  }
  EXPECT_TRUE(frozen.equal(frozen_before));
  EXPECT_EQ(state_of(optimizer, used).step, 3);
  EXPECT_EQ(state_of(optimizer, rare).step, 1);
  EXPECT_EQ(optimizer.state().size(), 2u);
}

TEST_F(FusedbunTest, ASkippedStepLeavesEverything) {
  std::vector<Tensor> parameters = {parameter({3, 5}), parameter({7})};
  Fusedbun optimizer(parameters, FusedbunOptions::recommended(1e-2));
  give_gradients(parameters);
  optimizer.step();
  const std::vector<Tensor> before = copies(parameters);
  const Tensor momentum = state_of(optimizer, parameters[0]).segment.momentum_buffer.clone();
  for (double bad : {kNan, HUGE_VAL, 1e20}) {  // the last one's square overflows float32
    give_gradients(parameters);
    parameters[1].mutable_grad()[3] = bad;
    optimizer.step();
  }
  EXPECT_EQ(optimizer.skipped_steps(), 3);
  EXPECT_TRUE(parameters[0].equal(before[0]) && parameters[1].equal(before[1]));
  EXPECT_TRUE(state_of(optimizer, parameters[0]).segment.momentum_buffer.equal(momentum));
  EXPECT_EQ(state_of(optimizer, parameters[0]).step, 1);
}

TEST_F(FusedbunTest, ATiedParameterIsSteppedOnce) {
  Tensor once = parameter({4, 4});
  Tensor tied = once.detach().clone().requires_grad_();
  Fusedbun single({once}, FusedbunOptions::recommended(1e-2)),
      listed_twice({tied, tied}, FusedbunOptions::recommended(1e-2));
  once.mutable_grad() = at::randn({4, 4});
  tied.mutable_grad() = once.grad().clone();
  single.step();
  listed_twice.step();
  EXPECT_TRUE(once.equal(tied));
  std::vector<OptimizerParamGroup> two = {OptimizerParamGroup({tied}), OptimizerParamGroup({tied})};
  EXPECT_THROW(Fusedbun(two, FusedbunOptions::recommended(1e-2)), ConfigError);
}

TEST_F(FusedbunTest, MemoryLayoutDoesNotMatter) {
  for (const char* name : {"recommended", "lean", "elementwise"}) {
    Tensor plain = parameter({6, 4, 3, 3});
    Tensor strided =
        plain.detach().clone().contiguous(at::MemoryFormat::ChannelsLast).requires_grad_();
    Tensor transposed = at::randn({5, 8}).t().requires_grad_();
    Tensor straight = transposed.detach().contiguous().clone().requires_grad_();
    ASSERT_FALSE(strided.is_contiguous() || transposed.is_contiguous());
    FusedbunOptions options = FusedbunOptions::of_preset(name, 1e-2).use_rms(true);
    Fusedbun one({plain, straight}, options), other({strided, transposed}, options);
    for (int i = 0; i < 3; ++i) {
      give_gradients({plain, straight});
      strided.mutable_grad() = plain.grad().contiguous(at::MemoryFormat::ChannelsLast);
      transposed.mutable_grad() = straight.grad().clone();
      const Tensor kept = plain.grad().clone();
      one.step();
      other.step();
      EXPECT_TRUE(plain.grad().equal(kept)) << "a step must not write to the gradient";
    }
    EXPECT_TRUE(plain.equal(strided)) << name;
    EXPECT_TRUE(straight.equal(transposed)) << name;
  }
}

TEST_F(FusedbunTest, AParameterChangedBetweenStepsIsMeasuredAnew) {
  // compact scales its update by the parameter's RMS, which it knows from its last step unless somebody writes.
  const auto run = [](bool reference) {
    at::manual_seed(12);
    std::vector<Tensor> parameters = {parameter({9, 17})};
    Fusedbun optimizer(parameters, FusedbunOptions::compact(0.1));
    for (int step = 0; step < 4; ++step) {
      const at::NoGradGuard no_grad;
      if (step == 2) parameters[0].mul_(3);
      if (step == 3) parameters[0].set_data(at::ones({9, 17}));
      give_gradients(parameters);
      // The reference's optimizer is a new one each time, so it knows nothing of the step before.
      if (!reference) {
        optimizer.step();
        continue;
      }
      std::stringstream saved;
      torch::save(optimizer, saved);
      Fusedbun fresh(parameters, FusedbunOptions::compact(0.1));
      if (step > 0) torch::load(fresh, saved);
      fresh.step();
      saved.str({});
      torch::save(fresh, saved);
      torch::load(optimizer, saved);
    }
    return parameters[0].detach();
  };
  EXPECT_TRUE(run(false).equal(run(true)));
}

// Plain SGD by Fusedbun, with a momentum that adds up: buf = b·buf + g.
FusedbunOptions sgd(double lr, double b) {
  return FusedbunOptions(lr).momentum_beta(b).momentum(Momentum::heavy_ball).Lambda(0);
}

void step_with_ones(Fusedbun& optimizer, const Tensor& p) {
  p.mutable_grad() = at::ones_like(p);
  optimizer.step();
}

struct ForeignWrite {
  const char* name;
  void (*write)(torch::nn::Linear& model, double value);
};
void PrintTo(const ForeignWrite& write, std::ostream* out) {
  *out << write.name;
}
const ForeignWrite kForeignWrites[] = {
    {"load",
     [](torch::nn::Linear& model, double value) {
       torch::nn::Linear other(torch::nn::LinearOptions(3, 5).bias(false));
       other->to(model->weight.scalar_type());
       other->weight.data().fill_(value);
       std::stringstream file;
       torch::save(other, file);
       torch::load(model, file);
     }},
    {"copy_",
     [](torch::nn::Linear& model, double value) {
       const at::NoGradGuard no_grad;
       model->weight.copy_(at::full({5, 3}, value));
     }},
    {"set_data",
     [](torch::nn::Linear& model, double value) {
       model->weight.set_data(at::full({5, 3}, value).to(model->weight.scalar_type()));
     }},
    {"fill_of_data",
     [](torch::nn::Linear& model, double value) { model->weight.data().fill_(value); }},
    {"clamp_of_data",
     [](torch::nn::Linear& model, double value) { model->weight.data().clamp_(value, value); }},
};

class ForeignWrites : public testing::TestWithParam<std::tuple<at::ScalarType, ForeignWrite>> {};

TEST_P(ForeignWrites, AStepGoesOnFromWhatTheTensorIsNow) {
  const auto& [type, write] = GetParam();
  torch::nn::Linear model(torch::nn::LinearOptions(3, 5).bias(false));
  model->to(type);
  model->weight.data().fill_(8);
  Fusedbun optimizer(model->parameters(), sgd(0.5, 0.5));
  const auto is = [&](double value) {
    return model->weight.detach().to(at::kDouble).equal(at::full({5, 3}, value, at::kDouble));
  };
  step_with_ones(optimizer, model->weight);  // buf = 1
  EXPECT_TRUE(is(7.5)) << model->weight;
  write.write(model, 4);
  step_with_ones(optimizer, model->weight);  // buf = 1.5: the momentum is kept
  EXPECT_TRUE(is(3.25)) << model->weight;
  step_with_ones(optimizer, model->weight);  // buf = 1.75
  EXPECT_TRUE(is(2.375)) << model->weight;
}

TEST_P(ForeignWrites, TheRootMeanSquareIsThatOfTheNewValues) {
  const auto& [type, write] = GetParam();
  torch::nn::Linear model(torch::nn::LinearOptions(3, 5).bias(false));
  model->to(type);
  model->weight.data().fill_(4);
  Fusedbun optimizer(model->parameters(), sgd(0.25, 0).scale_by_parameter_rms(true));
  step_with_ones(optimizer, model->weight);
  write.write(model, 8);
  step_with_ones(optimizer, model->weight);
  EXPECT_TRUE(model->weight.detach().to(at::kDouble).equal(at::full({5, 3}, 6, at::kDouble)))
      << model->weight;
}

INSTANTIATE_TEST_SUITE_P(Types, ForeignWrites,
                         testing::Combine(testing::Values(at::kFloat, at::kDouble, at::kBFloat16,
                                                          at::kHalf),
                                          testing::ValuesIn(kForeignWrites)),
                         [](const auto& info) {
                           return std::string(c10::toString(std::get<0>(info.param))) + "_" +
                                  std::get<1>(info.param).name;
                         });

TEST_F(FusedbunTest, AParameterMayChangeItsTypeBetweenSteps) {
  for (const at::ScalarType from : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    for (const at::ScalarType to : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
      for (const MomentumDtype stored : {MomentumDtype::master, MomentumDtype::bf16}) {
        torch::nn::Linear model(torch::nn::LinearOptions(3, 5).bias(false));
        model->to(from);
        model->weight.data().fill_(8);
        Fusedbun optimizer(model->parameters(), sgd(0.5, 0.5).momentum_dtype(stored));
        step_with_ones(optimizer, model->weight);
        model->to(to);
        step_with_ones(optimizer, model->weight);
        step_with_ones(optimizer, model->weight);
        EXPECT_EQ(model->weight.scalar_type(), to);
        EXPECT_TRUE(model->weight.detach()
                        .to(at::kDouble)
                        .equal(at::full({5, 3}, 8 - 0.5 * (1 + 1.5 + 1.75), at::kDouble)))
            << from << " to " << to << ": " << model->weight;
        const SegmentState& state = state_of(optimizer, model->weight).segment;
        EXPECT_EQ(state.master.defined(), to == at::kBFloat16 || to == at::kHalf);
        EXPECT_EQ(state.exp_avg_sq.row.scalar_type(), arithmetic_type(to));
      }
    }
  }
}

TEST_F(FusedbunTest, AParameterMayNotChangeItsShapeAfterItsFirstStep) {
  for (const char* name : {"recommended", "compact", "elementwise"}) {
    Tensor p = parameter({6, 4});
    Fusedbun optimizer({parameter({2}), p}, FusedbunOptions::of_preset(name, 1e-2));
    step_with_ones(optimizer, p);
    p.mutable_grad().reset();
    p.set_data(at::zeros({4, 6}));
    try {
      step_with_ones(optimizer, p);
      FAIL() << name;
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find("parameter 1 of group 0 [4, 6]"), std::string::npos)
          << error.what();
    }
  }
}

TEST_F(FusedbunTest, AutogradSeesThatAStepHasWritten) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    Tensor p = at::ones({4, 3}, type).requires_grad_();
    Fusedbun optimizer({p}, FusedbunOptions::recommended(0.1));
    const Tensor loss = p.square().sum();  // its backward needs p
    loss.backward({}, /*retain_graph=*/true);
    optimizer.step();
    EXPECT_THROW(loss.backward(), c10::Error);
    p.square().sum().backward();
    EXPECT_NO_THROW(optimizer.step());
  }
}

TEST_F(FusedbunTest, AGradientOfAnotherShapeIsRefusedAndNothingIsStepped) {
  Tensor first = parameter({3, 2}), second = parameter({3, 2});
  const Tensor before = first.detach().clone();
  Fusedbun optimizer({first, second}, FusedbunOptions::recommended(0.1));
  first.mutable_grad() = at::ones({3, 2});
  second.mutable_grad() = at::ones({2, 3});
  EXPECT_THROW(optimizer.step(), ConfigError);
  EXPECT_TRUE(first.equal(before));
}

TEST_F(FusedbunTest, AnotherOptimizersOptionsAreRefused) {
  Tensor p = parameter({3, 2});
  const auto group = [&] {
    return OptimizerParamGroup({p}, std::make_unique<torch::optim::AdamWOptions>(1e-3));
  };
  EXPECT_THROW(Fusedbun({group()}, FusedbunOptions::recommended(0.1)), ConfigError);
  Fusedbun optimizer(std::vector<Tensor>{p}, FusedbunOptions::recommended(0.1));
  optimizer.param_groups()[0].set_options(std::make_unique<torch::optim::AdamWOptions>(1e-3));
  p.mutable_grad() = at::ones({3, 2});
  EXPECT_THROW(optimizer.step(), ConfigError);
}

TEST_F(FusedbunTest, AGroupAddedThroughTheBaseClassIsCheckedAtTheStep) {
  Tensor p = parameter({3, 2}), late = parameter({2, 2});
  Fusedbun optimizer({p}, FusedbunOptions::recommended(0.1));
  torch::optim::Optimizer& base = optimizer;
  base.add_param_group(OptimizerParamGroup({late}));
  const Tensor before = late.detach().clone();
  give_gradients({p, late});
  optimizer.step();
  EXPECT_FALSE(late.equal(before));
  const Tensor tied = parameter({2, 2});
  base.add_param_group(OptimizerParamGroup({tied, tied}));
  EXPECT_THROW(optimizer.step(), ConfigError);
}

TEST_F(FusedbunTest, StackedMatricesAreSeenOneByOneIfAsked) {
  for (const char* name : {"recommended", "sm3", "lean", "elementwise"}) {
    const FusedbunOptions options =
        FusedbunOptions::of_preset(name, 1e-2).use_rms(true).matrix_view(MatrixView::last_two);
    Tensor stack = parameter({2, 3, 4, 5}), matrix = parameter({4, 5}), vector = parameter({7});
    std::vector<Tensor> matrices = copies(stack.detach().reshape({6, 4, 5}).unbind());
    std::vector<Tensor> same = copies({matrix, vector});
    Fusedbun one({stack, matrix, vector}, options);
    Fusedbun each({matrices[0], matrices[1], matrices[2], matrices[3], matrices[4], matrices[5],
                   same[0], same[1]},
                  FusedbunOptions(options).matrix_view(MatrixView::leading));
    for (int i = 0; i < 3; ++i) {
      give_gradients({stack, matrix, vector});
      const auto gradients = stack.grad().reshape({6, 4, 5}).unbind();
      for (size_t k = 0; k < matrices.size(); ++k)
        matrices[k].mutable_grad() = gradients[k].clone();
      same[0].mutable_grad() = matrix.grad().clone();
      same[1].mutable_grad() = vector.grad().clone();
      one.step();
      each.step();
    }
    EXPECT_TRUE(stack.reshape({6, 4, 5}).equal(at::stack(matrices))) << name;
    EXPECT_TRUE(matrix.equal(same[0]) && vector.equal(same[1])) << name;
    std::stringstream file;
    torch::save(one, file);
    Fusedbun loaded(copies({stack, matrix, vector}), FusedbunOptions(1.0));
    torch::load(loaded, file);
    EXPECT_EQ(static_cast<const FusedbunOptions&>(loaded.param_groups()[0].options()).matrix_view(),
              MatrixView::last_two);
  }
}

TEST_F(FusedbunTest, ALearningRateScheduleReachesTheStep) {
  Tensor p = at::ones({2, 2}).requires_grad_();
  Fusedbun optimizer({p}, FusedbunOptions::recommended(0.1).momentum_beta(0).Lambda(0));
  torch::optim::StepLR schedule(optimizer, /*step_size=*/1, /*gamma=*/0.5);
  const auto rate = [&] { return optimizer.param_groups()[0].options().get_lr(); };
  for (int i = 0; i < 4; ++i) {
    const double before = p[0][0].item<double>(), expected = rate();
    p.mutable_grad() = at::ones({2, 2});
    optimizer.step();  // g is constant, so u = 1
    schedule.step();
    EXPECT_NEAR(before - p[0][0].item<double>(), expected, 1e-6);
  }
  EXPECT_LE(rate(), 0.1 / 8);
}

TEST_F(FusedbunTest, SavedAndLoadedItContinuesWithTheSameBits) {
  for (const std::string& name : preset_names()) {
    FusedbunOptions options =
        FusedbunOptions::of_preset(name, 1e-2).use_rms(true).momentum_dtype(MomentumDtype::bf16);
    if (name == "elementwise") options.prepare_hessian(true);
    std::vector<Tensor> parameters = {parameter({6, 5}), parameter({9}), parameter({4, 4})};
    Fusedbun optimizer(parameters, options);
    for (int i = 0; i < 3; ++i) {
      give_gradients({parameters[0], parameters[1]});  // the third has no state yet
      optimizer.step();
    }
    static_cast<FusedbunOptions&>(optimizer.param_groups()[0].options()).lr(3e-3);
    std::stringstream file;
    torch::save(optimizer, file);

    std::vector<Tensor> loaded = copies(parameters);
    Fusedbun other(loaded,
                   FusedbunOptions::of_preset(name, 1));  // everything else comes from the file
    torch::load(other, file);
    EXPECT_EQ(state_of(other, loaded[0]).step, 3);
    EXPECT_EQ(other.state().size(), 2u);
    for (int i = 0; i < 3; ++i) {
      give_gradients(parameters);
      for (size_t k = 0; k < loaded.size(); ++k)
        loaded[k].mutable_grad() = parameters[k].grad().clone();
      optimizer.step();
      other.step();
    }
    for (size_t k = 0; k < loaded.size(); ++k)
      EXPECT_TRUE(parameters[k].equal(loaded[k])) << name << " " << k;
  }
}

TEST_F(FusedbunTest, AStateThatDoesNotFitIsRefused) {
  Tensor p = parameter({6, 5});
  Fusedbun optimizer({p}, FusedbunOptions::recommended(1e-2));
  give_gradients({p});
  optimizer.step();
  std::stringstream file;
  torch::save(optimizer, file);
  Fusedbun other({parameter({6, 4})}, FusedbunOptions::recommended(1e-2));
  EXPECT_THROW(torch::load(other, file), DataError);
}

TEST_F(FusedbunTest, AnExternalDiagonalNormalisesTheNextStepOnly) {
  Tensor p = at::zeros({2, 2}).requires_grad_();
  FusedbunOptions options = FusedbunOptions(1.0)
                                .prepare_hessian(true)
                                .hessian_source(HessianSource::external)
                                .accumulator(Accumulator::full)
                                .momentum_beta(0)
                                .beta_decay(0)
                                .Lambda(0)
                                .eps(1);
  Fusedbun optimizer({p}, options);
  p.mutable_grad() = at::ones({2, 2}) * 2;
  optimizer.set_hessian_diagonal(p, at::tensor({9.0, 4.0, -1.0, 0.0}).reshape({2, 2}));
  optimizer.step();  // u = 2 / (sqrt(max(h, 0)) + 1)
  EXPECT_TRUE(p.allclose(-at::tensor({0.5, 2.0 / 3, 2.0, 2.0}).reshape({2, 2}).to(at::kFloat)));
  optimizer.step();  // no diagonal: 0
  EXPECT_TRUE(p.allclose(-at::tensor({2.5, 2.0 / 3 + 2, 4.0, 4.0}).reshape({2, 2}).to(at::kFloat)));
}

}  // namespace
}  // namespace fusedbun
