#pragma once
// Ways to train data-parallel that `bench exchange` and `bench train` compare. They differ in one thing each, so that the
// transport, the sharding and the optimizer can be told apart.
//
// Thread safety: values; a ParallelStep: one thread.
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "fusedbun/dist/step/sharded_fusedbun.h"

namespace fusedbun::bench {

struct Contestant {
  std::string name;
  bool adamw = false;  ///< all_reduce of all gradients, AdamW on every rank: plain data parallelism
  std::string preset = "recommended";
  bool host_window = false;
  bool bf16_on_wire = false;    ///< gradients
  bool bf16_both_ways = false;  ///< and what a step changes
  bool in_backward = false;     ///< the update runs inside backward; needs a backward pass
  double max_grad_norm = 0;
  int64_t bucket_bytes = ShardedOptions{}.bucket_bytes;
};

const std::vector<Contestant>& contestants();
/// What a benchmark offers to its contestants.
struct Setting {
  bool with_backward = false;  ///< false leaves out what needs a backward pass
  bool on_gpu = false;         ///< true leaves out what is for CPUs
  int64_t bucket_bytes = ShardedOptions{}.bucket_bytes;
};
/// Those with the given names, all that fit if there are none. Throws ConfigError.
std::vector<Contestant> chosen(const std::vector<std::string>& names, const Setting& setting);

/// One contestant at work on one model's parameters.
class ParallelStep {
 public:
  virtual ~ParallelStep() = default;
  virtual void step() = 0;
  virtual int64_t state_bytes() const = 0;
};

/// Collective. Gradients stay after a step if `keep_gradients`.
std::unique_ptr<ParallelStep> make_step(
    const Contestant& contestant, Channels channels,
    const torch::OrderedDict<std::string, at::Tensor>& parameters, bool keep_gradients);

}  // namespace fusedbun::bench
