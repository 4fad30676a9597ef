#pragma once
// What a process does when one of our invariants is broken: abort() after the sentence was printed.
//
// Thread safety: none; main calls it.
namespace fusedbun::launcher {

/// From here on SIGABRT ends the process with code 70, by which launchers know our bug. Where core dumps are wanted (ulimit -c) a copy
/// of the process leaves one first. The signal may come at any moment, also while a thread holds the allocator's lock.
void install_abort_handler();

}  // namespace fusedbun::launcher
