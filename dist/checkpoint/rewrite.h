#pragma once
// A checkpoint as other files: its model as one, or the same checkpoint divided between another number of ranks. Neither is needed
// for loading, which takes any checkpoint on any number of ranks.
//
// Thread safety: functions without state.
#include <filesystem>

#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/checkpoint/checkpoint_reader.h"
#include "fusedbun/dist/checkpoint/model_place.h"

namespace fusedbun::checkpoint {

/// Writes the tensors of model/ as one safetensors file, with the metadata of rank 0's first, and where `to` is a folder, which is made if it
/// is not there, the companions beside it; each file atomically, the weights last. Reads the whole model into memory. Throws IoError, DataError.
void export_model(const CheckpointReader& from, const ModelPlace& to);

/// Publishes the same checkpoint in `to` as `ranks` ranks would have saved it: every tensor cut along its first dimension, a part
/// for each. Holds one rank's part in memory at a time. Throws ConfigError for ranks below 1, IoError, DataError.
void reshard(const CheckpointReader& from, const CheckpointFolder& to, int ranks);

}  // namespace fusedbun::checkpoint
