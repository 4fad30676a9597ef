#include "fusedbun/launcher/bench/rank_bench.h"

#include <ATen/ATen.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <chrono>
#include <cmath>
#include <functional>
#include <span>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/step/device_stream.h"
#include "fusedbun/launcher/env/host.h"

namespace fusedbun::bench {
namespace {

using Parameters = torch::OrderedDict<std::string, at::Tensor>;

constexpr int kWarmUps = 2;

int64_t largest(comm::Communicator& host, int64_t value) {
  host.all_reduce(comm::Buffer::of(std::span(&value, 1)), comm::ReduceOp::max).wait();
  return value;
}

void wait_for_device(at::Device device) {
  if (!device.is_cpu()) at::detail::getCUDAHooks().deviceSynchronize(device.index());
}

/// Milliseconds that the slowest rank spends in `work`, which all ranks begin together, until its device has done it.
double milliseconds_of(Job& job, const std::function<void()>& work) {
  comm::Communicator& host = *job.channels().host;
  const at::Device device = job.placement().device;
  wait_for_device(device);
  host.barrier().wait();
  const auto start = std::chrono::steady_clock::now();
  work();
  wait_for_device(device);
  const auto took = std::chrono::steady_clock::now() - start;
  return static_cast<double>(
             largest(host, std::chrono::duration_cast<std::chrono::microseconds>(took).count())) *
         1e-3;
}

/// Parameters equal on all ranks, gradients different.
Parameters make_parameters(const BenchModel& model, int rank, at::Device device) {
  Parameters parameters;
  at::manual_seed(1);
  int index = 0;
  for (const auto& shape : shapes_of(model)) {
    parameters.insert("p" + std::to_string(index++),
                      (at::randn(shape) * 0.02).to(device).requires_grad_());
  }
  at::manual_seed(100 + rank);
  for (auto& entry : parameters) {
    const at::NoGradGuard no_grad;
    entry.value().mutable_grad() = (at::randn(entry.value().sizes()) * 1e-3).to(device);
  }
  return parameters;
}

/// Two steps over the ranks against two of one process on the averaged gradient; on the smallest model.
void check(Job& job, const Contestant& contestant) {
  if (contestant.adamw) return;  // LibTorch's
  const BenchModel model = model_of(model_names().front());
  const at::Device device = job.placement().device;
  const Parameters sharded = make_parameters(model, job.rank(), device);
  Parameters alone;
  {
    const at::NoGradGuard no_grad;
    for (int rank = 0; rank < job.world_size(); ++rank) {
      const Parameters theirs = make_parameters(model, rank, device);
      for (const auto& entry : theirs) {
        if (rank == 0)
          alone.insert(entry.key(), entry.value());
        else
          alone[entry.key()].mutable_grad().add_(entry.value().grad());
      }
    }
    for (auto& entry : alone) entry.value().mutable_grad().div_(job.world_size());
  }
  auto options = FusedbunOptions::of_preset(contestant.preset, 1e-3);
  Fusedbun reference(alone.values(), options);
  const auto step = make_step(contestant, job.channels(), sharded, /*keep_gradients=*/true);
  for (int i = 0; i < 2; ++i) step->step();
  if (contestant.max_grad_norm > 0) return;  // clipping is not the reference's
  for (int i = 0; i < 2; ++i) reference.step();
  // Float32 sums and, at the first step, the sign of a gradient near 0: the update is compared as a whole.
  double distance = 0, length = 0;
  const Parameters start = make_parameters(model, 0, device);
  for (const auto& entry : alone) {
    const at::NoGradGuard no_grad;
    distance += (entry.value() - sharded[entry.key()]).square().sum().item<double>();
    length += (entry.value() - start[entry.key()]).square().sum().item<double>();
  }
  const double tolerance = contestant.bf16_on_wire ? 0.05 : 1e-3;
  FUSEDBUN_ASSERT(std::sqrt(distance) <= tolerance * std::sqrt(length),
                  "the sharded step differs from one process's: not timed");
}

}  // namespace

Json exchange_rows(Job& job, const RankBenchOptions& options) {
  Json rows = Json::array();
  for (const Contestant& contestant : options.contestants) {
    check(job, contestant);
    const Parameters parameters =
        make_parameters(options.model, job.rank(), job.placement().device);
    const auto step = make_step(contestant, job.channels(), parameters, /*keep_gradients=*/true);
    std::vector<double> times;
    for (int i = 0; i < kWarmUps + options.steps; ++i) {
      const double took = milliseconds_of(job, [&] { step->step(); });
      if (i >= kWarmUps) times.push_back(took);
    }
    Json row{{"name", contestant.name}, {"model", options.model.name}};
    put(row, "ms", spread_of(times));
    rows.push_back(std::move(row));
  }
  return rows;
}

namespace {

/// Forward and backward over one batch, again and again.
class BatchLoop {
 public:
  BatchLoop(const BenchModel& model, int rank, at::Device device)
      : model_(model.config, /*seed=*/1) {
    if (!device.is_cpu()) model_->to(device);
    at::manual_seed(100 + rank);
    const at::Tensor text = at::randint(std::min<int64_t>(model.config.vocab, 256),
                                        {model.sequences, model.context + 1});
    tokens_ = text.narrow(1, 0, model.context).contiguous().to(device);
    targets_ = text.narrow(1, 1, model.context).contiguous().to(device);
  }

  torch::OrderedDict<std::string, at::Tensor> parameters() { return model_->named_parameters(); }
  /// Returns the loss.
  double forward_backward() {
    const at::Tensor loss = model_->loss(tokens_, targets_);
    const double value = loss.item<double>();
    loss.backward();
    return value;
  }

 private:
  model::Gpt2 model_;
  at::Tensor tokens_, targets_;
};

/// Frees a gradient as soon as it is final. Gradients that stayed until the end of backward would be new memory in every step, which
/// costs more than some of the steps that are measured.
class DropGradient : public torch::autograd::PostAccumulateGradHook {
  void operator()(const at::Tensor& tensor) override { tensor.mutable_grad().reset(); }
};

std::unique_ptr<BatchLoop> make_bare_loop(const BenchModel& model, int rank, at::Device device) {
  auto loop = std::make_unique<BatchLoop>(model, rank, device);
  for (const auto& entry : loop->parameters()) {
    torch::autograd::impl::set_post_acc_grad_hooks(entry.value(), std::make_unique<DropGradient>());
  }
  return loop;
}

}  // namespace

Json train_rows(Job& job, const RankBenchOptions& options) {
  comm::Communicator& host = *job.channels().host;
  Json rows = Json::array();
  for (const Contestant& contestant : options.contestants) {
    if (!contestant.in_backward) check(job, contestant);
    BatchLoop loop(options.model, job.rank(), job.placement().device);
    const auto step =
        make_step(contestant, job.channels(), loop.parameters(), /*keep_gradients=*/false);
    std::vector<double> whole, alone, difference, losses;
    const auto train = [&] {
      losses.push_back(loop.forward_backward());
      step->step();
    };
    launcher::disable_malloc_trim();
    for (int i = 0; i < kWarmUps; ++i) train();
    const int64_t state_bytes = largest(host, step->state_bytes());
    const int64_t peak =
        largest(host, launcher::resident_memory().peak_bytes);  // before there is a second model
    const auto bare = make_bare_loop(options.model, job.rank(), job.placement().device);
    bare->forward_backward();
    for (int i = 0; i < options.steps; ++i) {
      alone.push_back(milliseconds_of(job, [&] { bare->forward_backward(); }));
      whole.push_back(milliseconds_of(job, train));
      difference.push_back(whole.back() - alone.back());
    }
    FUSEDBUN_ASSERT(losses.back() < losses.front(), "the loss of a fixed batch does not fall");
    Json row{{"name", contestant.name}, {"model", options.model.name}};
    put(row, "step_ms", spread_of(whole));
    put(row, "forward_backward_ms", spread_of(alone));
    put(row, "not_forward_backward_ms", spread_of(difference));
    row["state_bytes"] = state_bytes;
    row["peak_rss"] = peak;
    rows.push_back(std::move(row));
  }
  return rows;
}

namespace {

/// Every rank's portion of `values` to it, and its portion of this rank into `received`.
comm::Work exchange_portions(comm::Communicator& data, std::span<float> values,
                             std::span<float> received, comm::ProducerStream producer) {
  const size_t share = values.size() / static_cast<size_t>(data.size());
  const auto message = [share](int peer, std::span<float> memory) {
    const auto portion = std::as_writable_bytes(memory.subspan(peer * share, share));
    return comm::Message{peer, portion.data(), std::ssize(portion)};
  };
  std::vector<comm::Message> sends, receives;
  for (int peer = 0; peer < data.size(); ++peer) {
    if (peer == data.rank()) continue;
    sends.push_back(message(peer, values));
    receives.push_back(message(peer, received));
  }
  return data.exchange(std::move(sends), std::move(receives), producer);
}

}  // namespace

Json collective_rows(Job& job, const RankBenchOptions& options) {
  comm::Communicator& data = *job.channels().data;
  const int64_t count = options.bytes / static_cast<int64_t>(sizeof(float));
  const int64_t share = count / data.size();
  const comm::Counts counts(data.size(), share);
  const at::Device device = job.placement().device;
  const auto memory = at::TensorOptions(device).dtype(at::kFloat);
  at::Tensor values = at::ones({share * data.size()}, memory), others = at::zeros_like(values);
  const auto span_of = [](const at::Tensor& tensor) {
    return std::span(tensor.data_ptr<float>(), static_cast<size_t>(tensor.numel()));
  };
  const comm::Buffer all = comm::Buffer::of(span_of(values));
  const comm::Buffer mine{values.data_ptr<float>() + share * data.rank(), share,
                          comm::DataType::f32};
  const auto stream = [device] { return current_stream(device); };
  const auto sent_by_one = static_cast<double>(share * (data.size() - 1)) * sizeof(float);
  struct Case {
    std::string name;
    double bytes_sent;
    std::function<comm::Work()> start;
  };
  const std::vector<Case> cases = {
      {"reduce_scatter", sent_by_one,
       [&] { return data.reduce_scatter(all, mine, counts, stream()); }},
      {"all_gather", sent_by_one, [&] { return data.all_gather(mine, all, counts, stream()); }},
      {"all_reduce", 2 * sent_by_one,
       [&] { return data.all_reduce(all, comm::ReduceOp::sum, stream()); }},
      {"exchange", sent_by_one,
       [&] { return exchange_portions(data, span_of(values), span_of(others), stream()); }},
  };
  std::vector<std::vector<double>> times(cases.size());
  for (int round = 0; round < kWarmUps + options.steps; ++round) {
    for (size_t c = 0; c < cases.size(); ++c) {
      values.fill_(1);
      const double took = milliseconds_of(job, [&] { cases[c].start().wait(); });
      if (cases[c].name == "all_reduce") {
        FUSEDBUN_ASSERT(values[share / 2].item<float>() == static_cast<float>(data.size()),
                        "the sum is wrong");
      }
      if (round >= kWarmUps) times[c].push_back(took);
    }
  }
  Json rows = Json::array();
  for (size_t c = 0; c < cases.size(); ++c) {
    Json row{{"operation", cases[c].name},
             {"backend", data.backend()},
             {"ranks", data.size()},
             {"bytes", static_cast<int64_t>(values.nbytes())}};
    const Spread spread = spread_of(times[c]);
    put(row, "ms", spread);
    row["gigabytes_per_second"] = cases[c].bytes_sent / spread.median * 1e-6;
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace fusedbun::bench
