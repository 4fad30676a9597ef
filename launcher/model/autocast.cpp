#include "fusedbun/launcher/model/autocast.h"

#include <ATen/autocast_mode.h>

namespace fusedbun::model {
namespace {

void set(c10::DeviceType device, const AutocastState& state) {
  at::autocast::set_autocast_enabled(device, state.enabled);
  at::autocast::set_autocast_dtype(device, state.type);
}

}  // namespace

AutocastState AutocastState::of_this_thread(c10::DeviceType device) {
  return {.enabled = at::autocast::is_autocast_enabled(device),
          .type = at::autocast::get_autocast_dtype(device)};
}

Autocast::Autocast(c10::DeviceType device, const AutocastState& state)
    : device_(device), before_(AutocastState::of_this_thread(device)) {
  set(device, state);
  at::autocast::increment_nesting();
}

Autocast::~Autocast() {
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  set(device_, before_);
}

}  // namespace fusedbun::model
