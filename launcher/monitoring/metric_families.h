#pragma once
// What a run is, as Prometheus counts and names it: a family per name. Which names there are, their types and units: README.md.
//
// Thread safety: pure.
#include <prometheus/metric_family.h>

#include <vector>

#include "fusedbun/launcher/monitoring/run_status.h"

namespace fusedbun::monitoring {

/// A family whose value is not known (no validation yet, no clipping) is left out rather than 0.
std::vector<prometheus::MetricFamily> families_of(const RunStatus& status);

}  // namespace fusedbun::monitoring
