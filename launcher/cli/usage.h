#pragma once
// How the command line is read: help texts in one shape, wrong usage in one sentence, flag names with - or _.
//
// Thread safety: none; used by main.
#include <CLI/App.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fusedbun::launcher {

/// Purpose, usage, the examples that the command has put into its footer, then flags by group.
std::shared_ptr<CLI::FormatterBase> examples_first_formatter();

/// argv without the program's name; up to the first `--`, flags may be spelled with underscores, as torchrun allows.
std::vector<std::string> words_of(int argc, const char* const* argv);

/// The words, with -- before the program of `launch` where it was left out and the program is a command of ours: `launch -n 2
/// train --steps 3`. Another program's flags could be launch's own.
std::vector<std::string> with_program_marked(const CLI::App& app, std::vector<std::string> words);

/// What was wrong, with the nearest flag or command where a word is unknown, and where to read more.
std::string usage_sentence(const CLI::App& app, const CLI::ParseError& error);

}  // namespace fusedbun::launcher
