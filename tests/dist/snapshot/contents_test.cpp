// What a program puts beside its optimizer comes back, and what does not fit is refused by name before anything is changed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/linear.h>

#include <filesystem>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/checkpoint/checkpoint_reader.h"
#include "fusedbun/dist/snapshot/checkpointer.h"
#include "local_ranks.h"
#include "scratch_folder.h"

namespace fusedbun {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Net : torch::nn::Module {
  explicit Net(int64_t width = 6) {
    first = register_module("first", torch::nn::Linear(4, width));
    norm = register_module("norm", torch::nn::BatchNorm1d(width));
    frozen = register_module("frozen", torch::nn::Linear(width, 3));
    for (torch::Tensor& parameter : frozen->parameters()) parameter.set_requires_grad(false);
    mask = register_buffer("mask", at::zeros({5}, at::kBool));
    const at::NoGradGuard no_grad;
    double start = 0.01;  // not drawn: ranks are threads, and would draw from one generator
    for (torch::Tensor& parameter : parameters()) {
      parameter.copy_(at::linspace(start, start + 1, parameter.numel()).view_as(parameter));
      start += 0.1;
    }
  }
  void step(ShardedFusedbun& optimizer, double value) {
    for (torch::Tensor& parameter : parameters()) {
      if (parameter.requires_grad()) parameter.mutable_grad() = at::full_like(parameter, value);
    }
    optimizer.step();
  }
  torch::nn::Linear first{nullptr}, frozen{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  torch::Tensor mask;
};

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const DataError& error) {
    return error.what();
  }
  return "it was not refused";
}

TEST(CheckpointContents, TheModelsOtherTensorsAndTheProgramsOwnComeBack) {
  const support::ScratchFolder scratch;
  const CheckpointerOptions options{.folder = scratch / "checkpoints"};
  const at::Tensor average = at::arange(12, at::kDouble).view({3, 4}).t();  // not contiguous
  const at::Tensor large = at::rand({70, 9000});  // written by all ranks together
  testing::run_ranks(2, [&](comm::Communicator& ranks) {
    Net net;
    ShardedFusedbun optimizer({&ranks, &ranks}, net.named_parameters(),
                              FusedbunOptions::recommended(1e-2));
    net.step(optimizer, 0.5);
    net.norm->running_mean.fill_(3);
    net.norm->num_batches_tracked.fill_(17);
    net.mask[2] = true;
    Checkpointer checkpointer(ranks, options);
    checkpointer.save({.optimizer = &optimizer,
                       .model = &net,
                       .tensors = {{"average", average}, {"large", large}},
                       .values = {{"epoch", "3"}, {"note", "a \"quoted\"\nline"}}});
    checkpointer.wait();
    ASSERT_EQ(checkpointer.status().last_failure, "");
  });
  testing::run_ranks(3, [&](comm::Communicator& ranks) {
    Net net;
    for (torch::Tensor& parameter : net.parameters()) {
      const at::NoGradGuard no_grad;
      parameter.zero_();
    }
    ShardedFusedbun optimizer({&ranks, &ranks}, net.named_parameters(),
                              FusedbunOptions::recommended(1e-2));
    at::Tensor read_average = at::zeros({4, 3}, at::kDouble), read_large = at::zeros({70, 9000});
    Checkpointer checkpointer(ranks, options);
    const auto loaded =
        checkpointer.load({.optimizer = &optimizer,
                           .model = &net,
                           .tensors = {{"average", read_average}, {"large", read_large}}});
    ASSERT_TRUE(loaded);
    EXPECT_EQ(loaded->values.at("epoch"), "3");
    EXPECT_EQ(loaded->values.at("note"), "a \"quoted\"\nline");
    EXPECT_TRUE(at::equal(read_average, average));
    EXPECT_TRUE(at::equal(read_large, large));
    EXPECT_EQ(net.norm->running_mean[4].item<float>(), 3);
    EXPECT_EQ(net.norm->num_batches_tracked.item<int64_t>(), 17);
    EXPECT_TRUE(net.mask[2].item<bool>());
    EXPECT_FALSE(net.mask[1].item<bool>());
    const Net fresh;
    EXPECT_TRUE(at::equal(net.frozen->weight, fresh.frozen->weight));
    EXPECT_FALSE(at::equal(net.first->weight, fresh.first->weight));  // one step further
    EXPECT_NE(net.first->weight.abs().max().item<float>(), 0);
  });
}

// So that the model's files are one layout, whatever is trained.
TEST(CheckpointContents, FrozenMatricesAreStoredAsTheModelsFilesHaveThem) {
  struct Large : Net {
    Large() {
      wide = register_parameter("wide", at::arange(1200 * 900, at::kFloat).view({1200, 900}));
      wide.set_requires_grad(false);
      square = register_parameter("square", at::arange(36, at::kFloat).view({6, 6}));
      square.set_requires_grad(false);
    }
    torch::Tensor wide, square;
  };
  const support::ScratchFolder scratch;
  const CheckpointerOptions options{.folder = scratch / "checkpoints"};
  const auto contents = [](ShardedFusedbun& optimizer, Large& model) {
    return CheckpointContents{
        .optimizer = &optimizer,
        .model = &model,
        .is_stored_transposed = [](std::string_view name) { return name != "first.weight"; }};
  };
  const auto on_ranks = [&](int count, const auto& action) {
    testing::run_ranks(count, [&](comm::Communicator& ranks) {
      Large model;
      ShardedFusedbun optimizer({&ranks, &ranks}, model.named_parameters(),
                                FusedbunOptions::recommended(1e-2));
      Checkpointer checkpointer(ranks, options);
      action(model, optimizer, checkpointer);
    });
  };
  on_ranks(2, [&](Large& model, ShardedFusedbun& optimizer, Checkpointer& checkpointer) {
    model.step(optimizer, 0.5);
    checkpointer.save(contents(optimizer, model));
    checkpointer.wait();
    ASSERT_EQ(checkpointer.status().last_failure, "");
  });
  const checkpoint::CheckpointReader reader(
      checkpoint::CheckpointFolder(scratch / "checkpoints").path_of(1));
  const Large fresh;
  for (const auto& [name, tensor] : {std::pair("wide", fresh.wide), {"square", fresh.square}}) {
    const checkpoint::WholeTensor* stored = reader.find(checkpoint::kModelFolder, name);
    ASSERT_NE(stored, nullptr) << name;
    ASSERT_EQ(stored->shape, tensor.t().sizes().vec()) << name;
    const at::Tensor read = at::empty(stored->shape);
    reader.read(*stored, {std::vector<int64_t>(2, 0), stored->shape},
                {static_cast<std::byte*>(read.data_ptr()), read.nbytes()});
    EXPECT_TRUE(at::equal(read, tensor.t())) << name;
  }
  on_ranks(3, [&](Large& model, ShardedFusedbun& optimizer, Checkpointer& checkpointer) {
    {
      const at::NoGradGuard no_grad;
      model.wide.zero_();
      model.square.zero_();
    }
    ASSERT_TRUE(checkpointer.load(contents(optimizer, model)));
    EXPECT_TRUE(at::equal(model.wide, fresh.wide));
    EXPECT_TRUE(at::equal(model.square, fresh.square));
    EXPECT_TRUE(at::equal(model.frozen->weight, fresh.frozen->weight));
  });
}

TEST(CheckpointContents, AProgramMayRefuseACheckpointBeforeAnythingOfItIsTaken) {
  const support::ScratchFolder scratch;
  testing::run_ranks(2, [&](comm::Communicator& ranks) {
    Net net;
    ShardedFusedbun optimizer({&ranks, &ranks}, net.named_parameters(),
                              FusedbunOptions::recommended(1e-2));
    Checkpointer checkpointer(ranks, {.folder = scratch / "checkpoints"});
    net.step(optimizer, 0.5);
    checkpointer.save({.optimizer = &optimizer, .model = &net, .values = {{"epoch", "3"}}});
    checkpointer.wait();
    net.step(optimizer, 0.5);
    const at::Tensor before = net.first->weight.detach().clone();
    std::string told;
    const LoadOptions judged{
        .judge = [&](const CheckpointTexts& values, const std::filesystem::path& folder) {
          told = folder.filename().string() + ", epoch " + values.at("epoch");
          throw ConfigError("not this one");
        }};
    EXPECT_THROW(checkpointer.load({.optimizer = &optimizer, .model = &net}, judged), ConfigError);
    EXPECT_EQ(told, "step-1, epoch 3");
    EXPECT_TRUE(at::equal(net.first->weight, before));
  });
}

/// Six matrices: 1.6 million parameters.
struct Matrices : torch::nn::Module {
  Matrices() {
    for (int i = 0; i < 6; ++i)
      register_parameter("weight" + std::to_string(i), at::ones({512, 512}));
  }
};

int64_t bytes_of_files(const std::filesystem::path& folder) {
  int64_t bytes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) bytes += static_cast<int64_t>(entry.file_size());
  return bytes;
}

// Not once more for each rank: vectors that all ranks hold are written once, and what describes the tensors is small.
TEST(CheckpointContents, TakeTheBytesOfParametersAndStateAndAHundredthMore) {
  for (const char* name : {"recommended", "compact", "fusedbun"}) {
    SCOPED_TRACE(name);
    int64_t needed = 0;  // by one rank, who has nothing twice
    for (const int world_size : {1, 2, 4}) {
      SCOPED_TRACE(world_size);
      const support::ScratchFolder scratch;
      testing::run_ranks(world_size, [&](comm::Communicator& ranks) {
        Matrices model;
        ShardedFusedbun optimizer({&ranks, &ranks}, model.named_parameters(),
                                  FusedbunOptions(preset(name, 1e-2)));
        for (torch::Tensor& parameter : model.parameters())
          parameter.mutable_grad() = at::ones_like(parameter);
        optimizer.step();
        if (world_size == 1) needed = 6 * 512 * 512 * 4 + optimizer.state_bytes();
        Checkpointer checkpointer(ranks, {.folder = scratch / "checkpoints"});
        checkpointer.save({.optimizer = &optimizer, .model = &model});
        checkpointer.wait();
      });
      const int64_t written = bytes_of_files(scratch / "checkpoints");
      EXPECT_GE(written, needed);
      EXPECT_LE(written, needed + needed / 100);
    }
  }
}

class Fitting : public ::testing::Test {
 protected:
  Fitting() : options_{.folder = scratch_ / "checkpoints"} {
    testing::run_ranks(2, [&](comm::Communicator& ranks) {
      Net net;
      ShardedFusedbun optimizer({&ranks, &ranks}, net.named_parameters(),
                                FusedbunOptions::recommended(1e-2));
      net.step(optimizer, 0.5);
      Checkpointer checkpointer(ranks, options_);
      checkpointer.save({.optimizer = &optimizer, .model = &net});
      checkpointer.wait();
    });
  }

  /// What a load into `net` on two ranks is refused with, the same on both; nothing may have changed.
  std::string refusal_of(const std::function<std::shared_ptr<Net>()>& make,
                         const FusedbunOptions& optimizer_options, const LoadOptions& load = {}) {
    std::string sentences[2];
    testing::run_ranks(2, [&](comm::Communicator& ranks) {
      const std::shared_ptr<Net> net = make();
      ShardedFusedbun optimizer({&ranks, &ranks}, net->named_parameters(), optimizer_options);
      const at::Tensor before = net->first->weight.clone();
      Checkpointer checkpointer(ranks, options_);
      sentences[ranks.rank()] =
          refusal([&] { checkpointer.load({.optimizer = &optimizer, .model = net.get()}, load); });
      EXPECT_TRUE(at::equal(net->first->weight, before));
      EXPECT_EQ(optimizer.job_step(), 0);
      net->step(optimizer, 1);  // and training may go on
    });
    EXPECT_EQ(sentences[0], sentences[1]);
    return sentences[0];
  }

  support::ScratchFolder scratch_;
  CheckpointerOptions options_;
};

TEST_F(Fitting, AnotherShapeIsRefused) {
  EXPECT_THAT(
      refusal_of([] { return std::make_shared<Net>(7); }, FusedbunOptions::recommended(1e-2)),
      AllOf(HasSubstr("parameter 'first.weight' has the shape [6, 4] in it and [7, 4] here"),
            HasSubstr("--load-partial")));
}

TEST_F(Fitting, AnotherTypeIsRefused) {
  const auto make = [] {
    auto net = std::make_shared<Net>();
    net->first->to(at::kBFloat16);
    return net;
  };
  EXPECT_THAT(refusal_of(make, FusedbunOptions::recommended(1e-2)),
              HasSubstr("parameter 'first.weight' is f32 in it and bf16 here"));
}

TEST_F(Fitting, AddedAndMissingParametersAreRefused) {
  const auto added = [] {
    auto net = std::make_shared<Net>();
    net->register_module("extra", torch::nn::Linear(2, 2));
    return net;
  };
  EXPECT_THAT(refusal_of(added, FusedbunOptions::recommended(1e-2)),
              HasSubstr("parameter 'extra.weight' is not in it"));
  const auto missing = [] {
    auto net = std::make_shared<Net>();
    net->unregister_module("norm");
    return net;
  };
  EXPECT_THAT(refusal_of(missing, FusedbunOptions::recommended(1e-2)),
              HasSubstr("its parameter 'norm.weight' is none of the optimizer's"));
}

TEST_F(Fitting, OtherStructuralOptionsAreRefused) {
  EXPECT_THAT(refusal_of([] { return std::make_shared<Net>(); }, FusedbunOptions::sm3(1e-2)),
              HasSubstr("accumulator (mean, here sm3)"));
}

TEST_F(Fitting, AStepThatWasNotSavedIsRefused) {
  testing::run_ranks(2, [&](comm::Communicator& ranks) {
    Net net;
    ShardedFusedbun optimizer({&ranks, &ranks}, net.named_parameters(),
                              FusedbunOptions::recommended(1e-2));
    Checkpointer checkpointer(ranks, options_);
    EXPECT_THROW(checkpointer.load({.optimizer = &optimizer, .model = &net}, {.job_step = 5}),
                 Error);
  });
}

TEST_F(Fitting, PartialTakesWhatFitsAndSaysWhatNot) {
  testing::run_ranks(2, [&](comm::Communicator& ranks) {
    Net net(
        7);  // `first` and `norm` are larger, so are the frozen layer's columns; the mask is the same
    net.register_module("extra", torch::nn::Linear(2, 2));
    ShardedFusedbun optimizer({&ranks, &ranks}, net.named_parameters(),
                              FusedbunOptions::recommended(1e-2));
    const at::Tensor before = net.first->weight.clone();
    Checkpointer checkpointer(ranks, options_);
    const auto loaded =
        checkpointer.load({.optimizer = &optimizer, .model = &net}, {.partial = true});
    ASSERT_TRUE(loaded);
    EXPECT_THAT(loaded->left_out, ::testing::Contains("parameter 'extra.weight' is not in it"));
    EXPECT_TRUE(at::equal(net.first->weight, before));
    EXPECT_EQ(optimizer.job_step(), 1);
    for (const auto& rows : optimizer.owned_rows()) EXPECT_EQ(rows.t, 0) << rows.name;
    net.step(optimizer, 1);
  });
}

TEST(CheckpointContents, WhatCannotBeWrittenCostsTheRunNothing) {
  const support::ScratchFolder scratch;
  support::write_text(scratch / "file", "in the way");
  testing::run_ranks(2, [&](comm::Communicator& ranks) {
    Net net;
    ShardedFusedbun optimizer({&ranks, &ranks}, net.named_parameters(),
                              FusedbunOptions::recommended(1e-2));
    std::vector<std::string> told;
    Checkpointer checkpointer(
        ranks, {.folder = scratch / "file" / "checkpoints",
                .notice = [&](std::string_view sentence) { told.emplace_back(sentence); }});
    for (int step = 0; step < 3; ++step) {
      net.step(optimizer, 1);
      EXPECT_EQ(checkpointer.save({.optimizer = &optimizer, .model = &net}), SaveStart::started);
      EXPECT_TRUE(checkpointer.wait());
    }
    EXPECT_EQ(checkpointer.status().failed_saves, 3);
    EXPECT_FALSE(checkpointer.status().durable.has_value());
    EXPECT_THAT(checkpointer.status().last_failure, HasSubstr((scratch / "file").string()));
    EXPECT_EQ(told.size(), ranks.rank() == 0 ? 3U : 0U);
    EXPECT_EQ(optimizer.job_step(), 3);
  });
}

TEST(CheckpointContents, ThereIsNothingToLoadAtTheStart) {
  const support::ScratchFolder scratch;
  Net net;
  Fusedbun optimizer(net.first->parameters(), FusedbunOptions::recommended(1e-2));
  Checkpointer checkpointer({.folder = scratch / "checkpoints"});
  EXPECT_FALSE(checkpointer.load({.optimizer = &optimizer}).has_value());
  EXPECT_FALSE(std::filesystem::exists(scratch / "checkpoints"));
}

}  // namespace
}  // namespace fusedbun
