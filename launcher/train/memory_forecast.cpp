#include "fusedbun/launcher/train/memory_forecast.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <vector>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

constexpr int64_t kLibraryBytes = 40 << 20;
constexpr int64_t kFloatBytes = 4, kHalfBytes = 2;
/// ShardedOptions::in_place_bytes: segments below it are packed.
constexpr int64_t kInPlaceBytes = 64 << 10;

/// Bytes per element of what a forward pass keeps.
struct ElementBytes {
  int64_t residual;  ///< the stream that blocks add to
  int64_t product;   ///< operands of matrix products
};

ElementBytes element_bytes(Precision precision) {
  return {.residual = parameter_bytes(precision),
          .product = has_autocast(precision) ? kHalfBytes : parameter_bytes(precision)};
}

/// Parameters that have a gradient.
int64_t trained(const MemoryQuestion& question) {
  return question.parameters - question.frozen_parameters;
}

int64_t largest_parameter(const model::ModelShape& shape) {
  return std::max(shape.width * std::max(shape.vocab, shape.positions),
                  std::ranges::max(model::block_matrices(shape)));
}

/// Elements of the parameters whose segments are too short to travel from where they are.
int64_t packed_elements(const MemoryQuestion& question) {
  const model::ModelShape& shape = question.model;
  const int64_t d = shape.width;
  const auto if_packed = [&](int64_t elements) {
    const int64_t segment_bytes =
        elements / question.world_size * parameter_bytes(question.precision);
    return segment_bytes < kInPlaceBytes ? elements : 0;
  };
  int64_t of_block = model::block_vector_elements(shape);
  for (const int64_t matrix : model::block_matrices(shape)) of_block += if_packed(matrix);
  return shape.layers * of_block + (shape.is_tied ? 1 : 2) * if_packed(shape.vocab * d) +
         if_packed(shape.positions * d) + 2 * d;
}

/// Of a GPU that is one of several: a few buckets, in which gradients are float32, and this rank's portion of the sum; stepped in backward
/// its part of these buckets.
int64_t ring_bytes(const MemoryQuestion& question, int64_t portion) {
  const int64_t of_bucket =
      std::min(trained(question), question.bucket_bytes / parameter_bytes(question.precision));
  const int64_t in_ring = plan::kBucketsOnAGpu * of_bucket * kFloatBytes;
  return in_ring +
         (question.steps_in_backward ? in_ring / question.world_size : portion * kFloatBytes);
}

int64_t bucket_bytes(const MemoryQuestion& question) {
  const int64_t count = trained(question), ranks = question.world_size;
  if (!question.is_sharded) return count * kFloatBytes;
  const int64_t bytes = parameter_bytes(question.precision);
  const int64_t portion = (count + ranks - 1) / ranks;  // of the sum, on one rank
  if (question.on_gpu) return ranks == 1 ? 0 : ring_bytes(question, portion);
  // Sums are float32; where gradients are too, a sum takes the place of one of them.
  const bool sums_apart = question.clips && bytes != kFloatBytes;
  switch (question.transport) {
    case plan::GradientTransport::shared_memory:
      return count * bytes + (ranks - 1) * portion * bytes +
             (sums_apart ? portion * kFloatBytes : 0);
    case plan::GradientTransport::point_to_point: {
      const bool rounds = question.bf16_on_wire && ranks > 1;
      const int64_t packed = std::min(count, packed_elements(question));
      const int64_t wire_bytes = rounds ? kHalfBytes : bytes;
      // Rows whose update is rounded are stepped in a copy, one bucket after the other.
      const int64_t stepped = rounds && bytes == kFloatBytes
                                  ? std::min(portion * kFloatBytes, question.bucket_bytes / ranks)
                                  : 0;
      return (ranks - 1) * portion * wire_bytes + (rounds ? count : packed) * wire_bytes +
             packed * bytes + stepped +
             (sums_apart || (rounds && question.clips) ? portion * kFloatBytes : 0);
    }
    case plan::GradientTransport::collective:
      return count * kFloatBytes + (ranks > 1 ? portion * kFloatBytes : 0) +
             (bytes != kFloatBytes ? count * bytes : 0);
    case plan::GradientTransport::automatic:
      break;
  }
  FUSEDBUN_ASSERT(false, "a transport has been chosen");
}

int64_t gradient_bytes(const MemoryQuestion& question) {
  const int64_t all = trained(question) * parameter_bytes(question.precision);
  if (question.on_gpu && question.is_sharded && question.world_size == 1) {
    // They are read where they are, and go with their bucket's step.
    const int64_t at_once =
        largest_parameter(question.model) * parameter_bytes(question.precision) +
        2 * question.bucket_bytes;
    return question.accumulation == 1 && question.steps_in_backward ? std::min(all, at_once) : all;
  }
  const bool one_at_a_time =
      question.is_sharded && (question.transport != plan::GradientTransport::point_to_point ||
                              (question.bf16_on_wire && question.world_size > 1));
  return question.accumulation == 1 && one_at_a_time
             ? largest_parameter(question.model) * parameter_bytes(question.precision)
             : all;
}

/// On GPUs it is the host's memory.
int64_t checkpoint_copy_bytes(const MemoryQuestion& question) {
  if (!question.keeps_checkpoints || question.on_gpu) return 0;
  return question.parameters * parameter_bytes(question.precision) / question.world_size +
         question.state_bytes;
}

/// Attention's weights, of each head and pair of positions, where they are there: on CPUs no kernel has dropout without them.
int64_t attention_weight_bytes(const MemoryQuestion& question) {
  if (question.dropout.attention == 0 || question.on_gpu) return 0;
  return question.sequences * question.context * question.context * question.model.heads *
         kFloatBytes;
}

/// What dropout of one [tokens, d] keeps: on CPUs factors in the type of the values, on GPUs a byte each.
int64_t mask_bytes(const MemoryQuestion& question, int64_t value_bytes) {
  return question.sequences * question.context * question.model.width *
         (question.on_gpu ? 1 : value_bytes);
}

/// Of a block. Of attention's weights what the softmax gave, the factors, and what both make.
int64_t dropout_bytes(const MemoryQuestion& question) {
  const int64_t masks = question.dropout.residuals > 0
                            ? 2 * mask_bytes(question, element_bytes(question.precision).product)
                            : 0;
  return 3 * attention_weight_bytes(question) + masks;
}

int64_t activation_bytes(const MemoryQuestion& question) {
  const model::ModelShape& shape = question.model;
  const bool casts = has_autocast(question.precision);
  const auto [residual, product] = element_bytes(question.precision);
  const int64_t tokens = question.sequences * question.context;
  const int64_t stream = tokens * shape.width;  // elements of one [tokens, d]
  const std::vector<int64_t> matrices = model::block_matrices(shape);
  const int64_t in_matrices = std::accumulate(matrices.begin(), matrices.end(), int64_t{0});
  const int64_t embedding = shape.vocab * shape.width;
  // What a block's backward pass needs. Its input and what attention makes of it; normed twice, q, k, v, attended, and what the MLP's
  // matrices and activation take (around GELU 4 d twice; gate, up, and two products of them); per token the statistics of two norms and a
  // log-sum-exp per head; under autocast its matrices in the shorter type.
  const int64_t input = stream * residual;
  const int64_t norms = shape.is_gated ? 4 : 2;  // RMSNorm is two operations: both results are kept
  const int64_t operands = norms * shape.width + 2 * shape.query_width + 2 * shape.kv_width +
                           (shape.is_gated ? 4 : 2) * shape.mlp_width;
  const int64_t block = 2 * input + tokens * operands * product +
                        tokens * (4 + shape.heads) * kFloatBytes +
                        (casts ? in_matrices * kHalfBytes : 0) + dropout_bytes(question);
  // While the first matrix of a block's backward pass, the MLP's last, is at work: the gradient that came, a short one under autocast
  // too, those of the activation's output, of a gated one also of a factor, and of the matrix. The output layer's gradient waits for the
  // tied embedding's.
  const int64_t of_head = embedding * parameter_bytes(question.precision);
  const int64_t of_activation = (shape.is_gated ? 2 : 1) * tokens * shape.mlp_width;
  const int64_t at_work = input + (of_activation + (casts ? stream : 0)) * product +
                          matrices.back() * product + of_head;
  // While the loss is: the last norm's input and output, the gradients of its output and of the output layer, that layer in the shorter
  // type; of as many tokens as are taken at once the logits and their logarithms. Then both gradients once more, scaled.
  const int64_t logits =
      std::min(tokens * shape.vocab * kFloatBytes, model::kLogitBytes) / kFloatBytes;
  const int64_t in_loss = (shape.is_gated ? 3 : 2) * input + stream * product + of_head +
                          logits * 2 * kFloatBytes +
                          (casts ? (embedding + stream) * kHalfBytes : 0);
  const int64_t head = std::max(in_loss, 3 * input + 2 * of_head);
  // While attention's weights are, whose gradients are as large as they: what the block's MLP has kept is gone.
  const int64_t of_mlp =
      input +
      tokens * (operands - norms / 2 * shape.width - 2 * shape.query_width - 2 * shape.kv_width) *
          product;
  const int64_t at_attention = input + 2 * attention_weight_bytes(question) + of_head - of_mlp;
  const int64_t in_block = std::max(at_work, at_attention);
  const int64_t embeddings = question.dropout.embeddings > 0 ? mask_bytes(question, residual) : 0;
  if (!question.checkpoints_activations)
    return embeddings + shape.layers * block + std::max(head, in_block);
  // The block's input is one of the inputs, but its output is computed too.
  return embeddings + shape.layers * input + std::max(head, block + in_block);
}

}  // namespace

int64_t MemoryForecast::peak(bool saves_checkpoint) const {
  return parameters + optimizer_state + gradient_buckets + libraries +
         (saves_checkpoint ? checkpoint_copy : 0) +
         (gradients_follow_activations ? std::max(gradients, activations)
                                       : gradients + activations);
}

MemoryForecast forecast_memory(const MemoryQuestion& question) {
  return {.parameters = question.parameters * parameter_bytes(question.precision),
          .optimizer_state = question.state_bytes,
          .gradient_buckets = bucket_bytes(question),
          .gradients = gradient_bytes(question),
          .activations = activation_bytes(question),
          .libraries = question.on_gpu ? 0 : kLibraryBytes,
          .checkpoint_copy = checkpoint_copy_bytes(question),
          .gradients_follow_activations = question.accumulation == 1};
}

std::string mebibytes_or_gibibytes(int64_t bytes) {
  constexpr double kMebibyte = 1 << 20, kGibibyte = 1 << 30;
  const auto value = static_cast<double>(bytes);
  char text[48];
  if (value < kGibibyte) {
    std::snprintf(text, sizeof text, "%.1f MiB", value / kMebibyte);
  } else {
    std::snprintf(text, sizeof text, "%.2f GiB", value / kGibibyte);
  }
  return text;
}

std::string describe(const MemoryForecast& forecast) {
  const auto part = [](const char* name, int64_t bytes) {
    return std::string(name) + " " + mebibytes_or_gibibytes(bytes);
  };
  return mebibytes_or_gibibytes(forecast.peak()) +
         " per rank: " + part("parameters", forecast.parameters) + ", " +
         part("optimizer state", forecast.optimizer_state) + ", " +
         part("gradient buckets", forecast.gradient_buckets) + ", " +
         part("gradients", forecast.gradients) +
         (forecast.gradients_follow_activations ? " or " : ", ") +
         part("activations", forecast.activations) +
         (forecast.gradients_follow_activations ? " (whichever is more)" : "") +
         (forecast.libraries > 0 ? ", " + part("libraries", forecast.libraries) : "") +
         (forecast.checkpoint_copy > 0
              ? "; while a checkpoint is saved " +
                    mebibytes_or_gibibytes(forecast.checkpoint_copy) + " more"
              : "");
}

}  // namespace fusedbun::train
