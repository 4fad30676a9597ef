#pragma once
// `fusedbun watch` where there is no terminal: events and metrics as lines of text or JSON, until the job ends.
//
// Thread safety: none.
#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/launcher/cli/output_format.h"

namespace fusedbun::launcher {

/// Text: each event, and the metrics of a step at most each second. JSON: {"event":...} and {"sample":...}, every
/// step. Begins with the events and samples that the job has kept. Throws what ControlClient throws.
void watch_as_lines(const control::JobLocation& location, OutputFormat format);

}  // namespace fusedbun::launcher
