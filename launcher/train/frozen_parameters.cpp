#include "fusedbun/launcher/train/frozen_parameters.h"

#include <ATen/ATen.h>

#include <span>

#include "fusedbun/dist/checkpoint/digest.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/launcher/train/across_ranks.h"
#include "fusedbun/launcher/train/freezing.h"

namespace fusedbun::train {
namespace {

uint64_t digest_of_values(const at::Tensor& tensor) {
  const at::Tensor values = tensor.detach().to(at::kCPU).contiguous();
  return checkpoint::digest_of({static_cast<const std::byte*>(values.data_ptr()), values.nbytes()})
      .high;
}

}  // namespace

void freeze_parameters(const std::vector<std::string>& patterns, model::CausalLm& model,
                       comm::Communicator& host) {
  const bool is_asked = sum_over_ranks(host, {patterns.empty() ? 0.0 : 1.0})[0] > 0;  // on any rank
  if (!is_asked) return;
  uint64_t digest = 0;
  comm::rethrow_on_all_ranks(host, [&] {
    if (patterns.empty()) return;
    auto parameters = model.named_parameters();
    const std::vector<bool> frozen = match_frozen(patterns, parameters.keys());
    for (size_t i = 0; i < frozen.size(); ++i) {
      if (!frozen[i]) continue;
      parameters[i].value().set_requires_grad(false);
      digest = 31 * digest + i + digest_of_values(parameters[i].value());
    }
  });
  require_same_start(host,
                     {{"--freeze, or what it freezes of --init,", static_cast<int64_t>(digest)}});
}

int64_t count_frozen(const model::CausalLm& model) {
  int64_t count = 0;
  for (const at::Tensor& parameter : model.parameters())
    count += parameter.requires_grad() ? 0 : parameter.numel();
  return count;
}

}  // namespace fusedbun::train
