#pragma once
// MemoryForecast: the memory that training a model takes on one rank at its peak, worked out before the first step from shapes alone.
//
// Words: N = tokens of one backward pass on one rank, d = width, V = vocabulary, P = parameters, W = ranks. Activations are what autograd
// keeps of a forward pass for the backward pass (Korthikanti et al., 2022, count them for GPT in the same way) and what both passes hold
// for a moment.
//
//   parameters        P in the parameters' type. In a host window the ranks of a host hold them once; each process shows them all.
//   optimizer state   by the plan's formula (dist/plan/README.md), of the rank that has most
//   gradient buckets  host window   own gradients, and what this rank reads of the others': P·(1 + (W−1)/W)
//                     messages      what arrives: P·(W−1)/W; copies of what is too short to travel alone
//                     collectives   P in float32, the own portion of the sum, and rows if they are of another type
//   gradients         p.grad. One backward pass a step: in a host window and with collectives one at a time, with messages all, until
//                     their bucket is stepped; those come as activations go. Several passes: all, beside the activations.
//   activations       of a block, per token: 2 d of the residual stream and what matrix products and the MLP's activation take (GPT-2:
//                     14 d; an RMSNorm keeps what it normed beside what it gives); all blocks, or with activation checkpointing one, and d per token of each other's input. Under autocast also
//                     the parameters in the shorter type. While the loss is there: some tokens' logits (launcher/model/cross_entropy.h).
//                     Dropout keeps its masks, and on CPUs that of attention three numbers per head and pair of positions.
//
//   checkpoint copy   what the rank writes of a checkpoint, copied so that training goes on: P/W in the parameters' type, and its state
//   libraries         what the libraries of matrix products load and allocate in their first step: 40 MiB, as found on CPUs
//
// Not counted: what the process holds before there is a model (LibTorch: some 100 MiB), holes in memory that is kept for the next step
// (launcher/env/host.h).
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <string>

#include "fusedbun/dist/plan/transport_choice.h"
#include "fusedbun/launcher/model/dropout_rates.h"
#include "fusedbun/launcher/model/model_shape.h"
#include "fusedbun/launcher/train/precision.h"

namespace fusedbun::train {

/// What the forecast depends on.
struct MemoryQuestion {
  model::ModelShape model;
  int64_t parameters = 0;         ///< P
  int64_t frozen_parameters = 0;  ///< of them, without gradient
  Precision precision = Precision::float32;
  bool checkpoints_activations = false;
  model::DropoutRates dropout = {};
  int64_t sequences = 1;  ///< of one backward pass on one rank
  int64_t context = 1;    ///< tokens of a sequence
  int accumulation = 1;   ///< backward passes of a step
  int world_size = 1;
  /// Never automatic.
  plan::GradientTransport transport = plan::GradientTransport::point_to_point;
  bool is_sharded =
      true;  ///< false: all gradients travel in one message, as with --optimizer adamw
  bool bf16_on_wire = false;
  bool clips = false;       ///< sums of gradients are stored before they are used
  int64_t state_bytes = 0;  ///< of the optimizer, on the rank that has most
  bool on_gpu = false;
  int64_t bucket_bytes = 25 << 20;  ///< gradients that travel together, in the parameters' type
  bool steps_in_backward = false;
  bool keeps_checkpoints = false;
};

/// In bytes.
struct MemoryForecast {
  int64_t parameters = 0;
  int64_t optimizer_state = 0;
  int64_t gradient_buckets = 0;
  int64_t gradients = 0;
  int64_t activations = 0;
  int64_t libraries = 0;
  int64_t checkpoint_copy = 0;  ///< from the first save on
  /// Gradients come while activations go, so they are never there together in full.
  bool gradients_follow_activations = false;

  int64_t peak(bool saves_checkpoint = false) const;
};

MemoryForecast forecast_memory(const MemoryQuestion& question);

/// "1.2 GiB", "34.5 MiB".
std::string mebibytes_or_gibibytes(int64_t bytes);
/// One line: "1.2 GiB per rank: parameters 475.0 MiB, optimizer state ..., activations 312.0 MiB".
std::string describe(const MemoryForecast& forecast);

}  // namespace fusedbun::train
