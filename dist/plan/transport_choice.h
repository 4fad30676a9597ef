#pragma once
// TransportChoice: how gradients and new rows travel between the ranks, decided from what all ranks know alike.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <string>
#include <string_view>

namespace fusedbun::plan {

/// collective: reduce-scatter and all-gather, what GPUs use. point_to_point: messages from and to where tensors lie. shared_memory: the
/// ranks of one host read one another's gradients and share one replica of the parameters.
enum class GradientTransport : uint8_t { automatic, collective, point_to_point, shared_memory };
/// Buckets of one of several GPUs that have memory at once; the others wait for their turn.
inline constexpr int kBucketsOnAGpu = 3;

std::string_view name_of(GradientTransport transport);
/// "auto", "collective", "point_to_point", "shared_memory"; throws ConfigError listing them.
GradientTransport parse_transport(std::string_view name);

/// What the choice depends on; equal on all ranks.
struct TransportQuery {
  GradientTransport request = GradientTransport::automatic;
  bool on_gpu = false;
  int world_size = 1;
  bool wants_host_window = true;       ///< ShardedOptions::host_window
  bool rounds_gradients = false;       ///< float32 gradients travel as bfloat16
  bool rounds_updates = false;         ///< what a step changes of float32 rows does
  std::string strided_parameter = {};  ///< the first that is not contiguous; empty: none
};

struct TransportChoice {
  GradientTransport transport = GradientTransport::point_to_point;  ///< never automatic
  std::string reason;              ///< "point_to_point: the host window is turned off"
  bool lacks_host_window = false;  ///< it was wanted, and `reason` says what stands against it
};

/// Throws ConfigError, saying why, if what is asked for cannot carry this job. Whether the ranks share a host is found when the window is
/// opened: an automatic choice of shared_memory then falls back to point_to_point.
TransportChoice choose_transport(const TransportQuery& query);

}  // namespace fusedbun::plan
