#pragma once
// DeviceBucket: a bucket in a GPU's memory. Hooks only remember gradients; when the last one has fired, one launch copies and tests them all
// on their way into one piece of memory, of which one reduce-scatter brings this rank's portion as one sum. After the update one all-gather
// brings all ranks' new rows, and one launch puts them into the parameters. Nothing waits for the GPU.
//
// Portions lie as in collective_bucket.h.
//
// Thread safety: as GradientBucket.
#include <memory>

#include "fusedbun/core/gpu/device_api.h"
#include "fusedbun/core/gpu/steps_under_way.h"
#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/step/gradient_bucket.h"

namespace fusedbun {

/// Everything outlives the bucket. Gradients are reduced in sum_type(bucket), rows travel in the parameters' type.
std::unique_ptr<GradientBucket> make_device_bucket(const plan::Bucket& bucket, at::Device device,
                                                   comm::Communicator& communicator,
                                                   StepsUnderWay& under_way);

}  // namespace fusedbun
