// Agreement and update under a CUDA graph: captured once, replayed step after step with other gradients, hyperparameters and skips, they
// leave the bits of steps that are launched one by one. So nothing in them asks the host.
#include <ATen/ATen.h>
#include <cuda_runtime_api.h>

#include <iostream>
#include <limits>
#include <string_view>

#include "fusedbun/core/error.h"
#include "fusedbun/core/gpu/device_move.h"
#include "fusedbun/core/gpu/device_step.h"
#include "fusedbun/tests/gpu/gpu_check.h"

namespace fusedbun::gpu_check {
namespace {

using at::Tensor;

void require(cudaError_t status, const char* what) {
  FUSEDBUN_REQUIRE(status == cudaSuccess, DeviceError,
                   std::string("CUDA could not ") + what + ": " + cudaGetErrorString(status));
}

const at::Device kGpu(at::kCUDA, 0);
constexpr int64_t kRows = 300, kColumns = 1100;

Tensor bytes(size_t count) {
  return at::zeros({static_cast<int64_t>(count)}, at::TensorOptions(kGpu).dtype(at::kByte));
}

// One matrix, and everything that a step of it reads: at addresses that stay.
class Stepped {
 public:
  Stepped(const Tensor& initial, const Options& options, CudaStream stream)
      : parameter(initial.to(kGpu, initial.scalar_type(), false, /*copy=*/true)),
        gradient(at::zeros_like(initial.to(kGpu))),
        options_(options),
        range_{0, kRows, kRows, kColumns, false},
        state(make_segment_state(parameter, range_, options)),
        control_(bytes(sizeof(device::StepControl))),
        agreed_(bytes(sizeof(device::Agreed))),
        squares_(at::zeros({3}, at::TensorOptions(kGpu).dtype(at::kDouble))),
        outcome_(bytes(sizeof(device::StepOutcome))),
        step_(api(), kGpu, {part()}, control(), stream),
        test_(api(), kGpu, {{.elements = parameter.numel()}}, 1, stream) {
    const device::MoveSource source = source_of(gradient);
    test_.set_sources({&source, 1}, stream);
  }

  /// What the host tells before step `t`.
  void set_inputs(int64_t t, double lr, double max_norm, CudaStream stream) {
    options_.lr = lr;
    StepFactorSets factors;
    const int32_t set = factors.number_of(options_, t);
    const device::Gradient rows = gradient_of(gradient);
    step_.set_inputs({.max_norm = max_norm, .skips_nonfinite = 1}, {&set, 1}, factors.sets(),
                     stream);
    step_.set_gradients(0, {&rows, 1}, stream);
  }

  /// Agreement and update.
  void launch(CudaStream stream) {
    const DeviceKernels& kernels = api().kernels();
    auto* const agreed = static_cast<device::Agreed*>(agreed_.data_ptr());
    test_.run(control(), stream);
    test_.add_squares(squares_.data_ptr<double>(), stream);
    kernels.offer(squares_.data_ptr<double>(), control(), agreed, stream);
    kernels.decide(agreed, step_.inputs(), control(),
                   static_cast<device::StepOutcome*>(outcome_.data_ptr()), stream);
    step_.prepare(stream);
    step_.begin(0, stream);
    step_.absorb(/*with_squares=*/true, stream);
    if (!step_.has_finish(0)) return;
    step_.prepare(stream);
    step_.finish(0, stream);
    step_.absorb(/*with_squares=*/true, stream);
  }

  Tensor parameter, gradient;

 private:
  static DeviceApi& api() { return device_api_of(kGpu); }
  device::StepControl* control() { return static_cast<device::StepControl*>(control_.data_ptr()); }
  DevicePart part() {
    DevicePart part;
    part.range = range_;
    part.rows = parameter;
    part.state = state;
    part.options = options_;
    part.parameter_elements = parameter.numel();
    if (options_.scale_by_parameter_rms) {
      squares_[1].fill_(static_cast<double>(parameter.numel()));
      part.squares = squares_.data_ptr<double>() + 1;
      part.new_squares = part.squares + 1;
    }
    return part;
  }

  Options options_;
  const RowRange range_;

 public:
  SegmentState state;

 private:
  Tensor control_, agreed_, squares_, outcome_;
  DeviceStep step_;
  DeviceMove test_;
};

class Stream {
 public:
  Stream() { require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "make a stream"); }
  ~Stream() { (void)cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;  // owns it
  CudaStream get() const { return CudaStream(static_cast<void*>(stream_)); }
  void wait() const { require(cudaStreamSynchronize(stream_), "do the work that was given to it"); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Graph {
 public:
  Graph(Stepped& stepped, CudaStream stream) : stream_(static_cast<cudaStream_t>(stream.handle())) {
    require(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "begin a capture");
    stepped.launch(stream);
    require(cudaStreamEndCapture(stream_, &graph_), "end a capture");
    require(cudaGraphInstantiate(&ready_, graph_, 0), "make a graph ready");
  }
  ~Graph() {
    (void)cudaGraphExecDestroy(ready_);
    (void)cudaGraphDestroy(graph_);
  }
  Graph(const Graph&) = delete;  // owns both
  void launch() { require(cudaGraphLaunch(ready_, stream_), "launch a graph"); }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t ready_ = nullptr;
};

std::optional<std::string> difference(Stepped& have, Stepped& want) {
  if (!at::equal(have.parameter, want.parameter)) return "the parameter";
  std::vector<Tensor> expected;
  visit_tensors(want.state, [&](const char*, Tensor& tensor) { expected.push_back(tensor); });
  std::optional<std::string> first;
  size_t next = 0;
  visit_tensors(have.state, [&](const char* name, Tensor& tensor) {
    const Tensor& other = expected[next++];
    if (tensor.defined() && !first && !at::equal(tensor, other)) first = name;
  });
  return first;
}

Json check_graphs() {
  Comparisons comparisons;
  at::manual_seed(20261127);
  const Stream stream;
  for (const std::string& name : preset_names()) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      Options options = preset(name, 1e-2);
      options.low_precision = LowPrecision::stochastic;
      const Tensor initial = at::randn({kRows, kColumns}).to(type);
      Stepped one_by_one(initial, options, stream.get()), replayed(initial, options, stream.get());
      std::optional<Graph> graph;
      for (int64_t t = 1; t <= 6; ++t) {
        Tensor gradient = at::randn({kRows, kColumns}).to(type);
        if (t == 3) gradient[7][11] = std::numeric_limits<float>::quiet_NaN();
        for (Stepped* side : {&one_by_one, &replayed}) {
          side->gradient.copy_(gradient);
          at::detail::getCUDAHooks().deviceSynchronize(0);
          side->set_inputs(t, 1e-2 / static_cast<double>(t), t % 2 == 0 ? 1.0 : 0.0, stream.get());
        }
        one_by_one.launch(stream.get());
        // The first step is launched, so that every kernel is loaded before the capture.
        if (t == 1) {
          replayed.launch(stream.get());
        } else {
          if (!graph) graph.emplace(replayed, stream.get());
          graph->launch();
        }
        stream.wait();
        const auto wrong = difference(replayed, one_by_one);
        comparisons.add(name, wrong
                                  ? std::optional(name + " in " + c10::toString(type) + ", step " +
                                                  std::to_string(t) + ": " + *wrong + " differs")
                                  : std::nullopt);
      }
    }
  }
  return comparisons.result();
}

}  // namespace
}  // namespace fusedbun::gpu_check

int main() {
  return fusedbun::gpu_check::run_check(/*rehearse=*/false, fusedbun::gpu_check::check_graphs);
}
