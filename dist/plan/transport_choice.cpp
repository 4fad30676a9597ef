#include "fusedbun/dist/plan/transport_choice.h"

#include <algorithm>
#include <array>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

constexpr std::array<std::string_view, 4> kTransportNames = {"auto", "collective", "point_to_point",
                                                             "shared_memory"};

/// Why a transport cannot carry the job, with what to do; empty if it can.
std::string obstacle_of(GradientTransport transport, const TransportQuery& query) {
  if (transport == GradientTransport::collective) {
    if (query.rounds_gradients) {
      return "gradient_wire = bf16 is for messages between CPUs, because a reduce-scatter adds up "
             "what it carries: use "
             "gradient_wire = exact or transport = point_to_point";
    }
    if (!query.rounds_updates) return "";
    return "update_wire = bf16 is for messages between CPUs, because an all-gather carries rows "
           "and "
           "not their changes: use update_wire = exact or transport = point_to_point";
  }
  if (query.on_gpu) return "the parameters are on a GPU: use transport = collective";
  if (transport == GradientTransport::shared_memory && !query.strided_parameter.empty()) {
    return "parameter '" + query.strided_parameter +
           "' is not contiguous, and the shared replica holds rows: make it contiguous or use "
           "transport = point_to_point";
  }
  return "";
}

TransportChoice chosen(GradientTransport transport, const std::string& reason) {
  return {.transport = transport, .reason = std::string(name_of(transport)) + ": " + reason};
}

}  // namespace

std::string_view name_of(GradientTransport transport) {
  return kTransportNames.at(static_cast<size_t>(transport));
}

GradientTransport parse_transport(std::string_view name) {
  const auto found = std::ranges::find(kTransportNames, name);
  FUSEDBUN_REQUIRE(found != kTransportNames.end(), ConfigError,
                   "transport '" + std::string(name) +
                       "': must be auto, collective, point_to_point or shared_memory");
  return static_cast<GradientTransport>(found - kTransportNames.begin());
}

TransportChoice choose_transport(const TransportQuery& query) {
  if (query.request != GradientTransport::automatic) {
    const std::string obstacle = obstacle_of(query.request, query);
    FUSEDBUN_REQUIRE(
        obstacle.empty(), ConfigError,
        "transport " + std::string(name_of(query.request)) + " cannot be used: " + obstacle);
    return chosen(query.request, "asked for");
  }
  if (query.on_gpu) {
    const std::string obstacle = obstacle_of(GradientTransport::collective, query);
    FUSEDBUN_REQUIRE(obstacle.empty(), ConfigError,
                     "on a GPU gradients are summed by collectives: " + obstacle);
    return chosen(GradientTransport::collective, "the parameters are on a GPU");
  }
  if (query.world_size == 1) {
    return chosen(GradientTransport::point_to_point, "one rank sends nothing");
  }
  if (!query.wants_host_window) {
    return chosen(GradientTransport::point_to_point, "the host window is turned off");
  }
  const std::string obstacle = obstacle_of(GradientTransport::shared_memory, query);
  if (!obstacle.empty()) {
    TransportChoice choice = chosen(GradientTransport::point_to_point, obstacle);
    choice.lacks_host_window = true;
    return choice;
  }
  return chosen(GradientTransport::shared_memory, "the host window is wanted");
}

}  // namespace fusedbun::plan
