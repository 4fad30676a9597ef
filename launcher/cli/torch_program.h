#pragma once
// The commands that need LibTorch are a program of their own, fusedbun-torch, beside `fusedbun`: loading LibTorch takes half a second,
// which `fusedbun set` and `fusedbun launch` need not wait for. Users type `fusedbun` alone.
//
// Thread safety: none; main calls it.
#include <CLI/App.hpp>
#include <filesystem>

namespace fusedbun::launcher {

struct TorchCommand {
  const char* name;
  const char* purpose;
};
inline constexpr TorchCommand kTrain{"train", "Train a language model on text or tokens"};
inline constexpr TorchCommand kGenerate{"generate", "Let a model go on with a text, or answer"};
inline constexpr TorchCommand kEval{"eval",
                                    "Say how well a model predicts files: loss and perplexity"};
inline constexpr TorchCommand kBench{
    "bench", "Measure the optimizer's step, the transport and training here"};
inline constexpr TorchCommand kEnv{"env",
                                   "Say which rank this is, which backend it would take, and why"};

/// For the help text and for `launch`, which takes such a name for a program.
CLI::App* add_torch_command(CLI::App& app, const TorchCommand& command);

/// If the first word is one of the commands above, the process becomes fusedbun-torch, with the same words and environment. Throws
/// UsageError if it is not there.
void become_torch_program(int argc, char* const* argv);

/// The program that users type, asked from either of the two.
std::filesystem::path fusedbun_program();

}  // namespace fusedbun::launcher
