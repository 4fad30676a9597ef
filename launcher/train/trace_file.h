#pragma once
// What all ranks did when, as a file for chrome://tracing and ui.perfetto.dev (Chrome's Trace Event Format): a process per
// rank, a thread for what it does, one for what is on the wire. Microseconds from the first span.
//
// Thread safety: functions without state.
#include <filesystem>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/step/step_trace.h"

namespace fusedbun::train {

/// Rank 0 writes. Clocks of different hosts are not aligned. Collective. Throws IoError on rank 0.
void write_trace(const std::filesystem::path& path, const StepTrace& trace,
                 comm::Communicator& host);

}  // namespace fusedbun::train
