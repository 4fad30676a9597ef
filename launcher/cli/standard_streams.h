#pragma once
// The three standard streams of the process.
//
// Thread safety: none; the first thing that main does.
namespace fusedbun::launcher {

/// Opens /dev/null where the process was started with standard input, output or error closed: otherwise the next file that
/// is opened gets the number, and what is meant for a reader goes into it.
void open_standard_streams();

}  // namespace fusedbun::launcher
