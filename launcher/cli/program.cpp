#include "fusedbun/launcher/cli/program.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <new>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/standard_error.h"
#include "fusedbun/launcher/cli/abort_handler.h"
#include "fusedbun/launcher/cli/log_record.h"
#include "fusedbun/launcher/cli/standard_streams.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/cli/usage.h"

namespace fusedbun::launcher {
namespace {

int fail(ExitCode code, const std::string& sentence) {
  std::cout.flush();
  run_folder::write_to_standard_error(
      error_line(shown(sentence), {{"exit_code", int64_t{static_cast<int>(code)}}}));
  return static_cast<int>(code);
}

}  // namespace

int run_program(int argc, const char* const* argv,
                const std::function<void(CLI::App&)>& add_commands) {
  open_standard_streams();
  install_abort_handler();
  CLI::App app("Sharded data-parallel training with the Fusedbun optimizer", "fusedbun");
  app.formatter(examples_first_formatter());
  app.option_defaults()->always_capture_default();
  app.require_subcommand(1);
  try {
    add_commands(app);
    std::vector<std::string> words = with_program_marked(app, words_of(argc, argv));
    std::ranges::reverse(words);  // as CLI11 wants them
    app.parse(std::move(words));
    return static_cast<int>(ExitCode::done);
  } catch (const CLI::Success& asked_for_text) {
    return app.exit(asked_for_text);
  } catch (const CLI::ParseError& error) {
    return fail(ExitCode::usage, usage_sentence(app, error));
  } catch (const Error& error) {
    return fail(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(ExitCode::device, "out of memory");
  } catch (const std::exception& error) {
    const std::string text =
        error.what();  // of LibTorch's errors the first line; the rest is a stack
    return fail(ExitCode::unclassified, text.substr(0, text.find('\n')));
  }
}

}  // namespace fusedbun::launcher
