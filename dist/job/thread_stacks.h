#pragma once
// What the threads of this process are doing at this moment, for somebody who looks into a job that hangs. As a debugger's backtraces, but
// without one: each thread is asked by a signal (SIGRTMIN + 6), whose handler notes the return addresses and nothing else.
//
// Thread safety: any thread; one caller at a time, the others wait. Not in a signal handler.
#include <string>

namespace fusedbun {

/// A paragraph per thread: name, id, what the kernel waits for, and its frames, the innermost first. Functions that the program does not
/// export are told as file+offset, as addr2line takes them. A program that handles the signal itself keeps its handler, and no
/// thread has frames then. A thread that blocks the signal, or does not run within a fifth of a second
/// (it is stopped, or waits in the kernel for a disk), is told without frames. Takes at most two seconds.
std::string thread_stacks();

}  // namespace fusedbun
