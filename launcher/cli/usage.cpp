#include "fusedbun/launcher/cli/usage.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "fusedbun/core/similar_name.h"

namespace fusedbun::launcher {
namespace {

class ExamplesFirst : public CLI::Formatter {
 public:
  ExamplesFirst() { column_width(32); }

  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override {
    if (mode == CLI::AppFormatMode::Sub) return make_expanded(app);
    if (app->get_parent() != nullptr) name = app->get_parent()->get_name() + " " + app->get_name();
    std::string help = make_description(app) + "\n" + make_usage(app, name) + "\n" +
                       app->get_footer() + "\n" + make_positionals(app) + make_groups(app, mode) +
                       make_subcommands(app, mode);
    for (size_t at; (at = help.find("\n\n\n")) != help.npos;) help.erase(at, 1);
    return help;
  }
};

/// The command whose words were being read when parsing stopped.
const CLI::App& deepest(const CLI::App& app) {
  const auto chosen = app.get_subcommands();
  return chosen.empty() ? app : deepest(*chosen.back());
}

std::string full_name(const CLI::App& app) {
  return app.get_parent() == nullptr ? app.get_name()
                                     : full_name(*app.get_parent()) + " " + app.get_name();
}

std::vector<std::string> flags_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::vector<std::string> commands_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

std::string unknown_word(const CLI::App& command, const std::string& word) {
  const bool is_flag = word.starts_with("-");
  const std::string name = word.substr(0, word.find('='));
  const std::string close = similar_name(name, is_flag ? flags_of(command) : commands_of(command));
  std::string sentence = std::string("unknown ") + (is_flag ? "flag " : "word ") + name + " of '" +
                         full_name(command) + "'";
  // The positional words of `launch` are a program: the flag may have been meant for it.
  const bool has_program =
      std::ranges::any_of(command.get_options(), [](const CLI::Option* option) {
        return option->get_single_name() == "program" && option->count() > 0;
      });
  if (!close.empty()) {
    sentence += ", did you mean " + close + "?";
  } else if (is_flag && has_program) {
    sentence += ", or put -- before the program";
  }
  return sentence;
}

}  // namespace

std::shared_ptr<CLI::FormatterBase> examples_first_formatter() {
  return std::make_shared<ExamplesFirst>();
}

std::vector<std::string> words_of(int argc, const char* const* argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  for (std::string& word : words) {
    if (word == "--") break;
    if (!word.starts_with("--")) continue;
    const auto name_end = word.begin() + std::min(word.find('='), word.size());
    std::replace(word.begin(), name_end, '_', '-');
  }
  return words;
}

std::vector<std::string> with_program_marked(const CLI::App& app, std::vector<std::string> words) {
  const auto launches =
      app.get_subcommands([](const CLI::App* command) { return command->get_name() == "launch"; });
  if (launches.empty() || words.empty() || words[0] != "launch" ||
      std::ranges::find(words, "--") != words.end()) {
    return words;
  }
  const CLI::App* const launch = launches.front();
  for (auto word = words.begin() + 1; word != words.end(); ++word) {
    if (!word->starts_with("-")) {
      const std::vector<std::string> commands = commands_of(app);
      if (std::ranges::find(commands, *word) != commands.end()) words.insert(word, "--");
      return words;
    }
    const CLI::Option* const flag = launch->get_option_no_throw(word->substr(0, word->find('=')));
    const bool value_follows = flag != nullptr && flag->get_items_expected_max() > 0 &&
                               word->find('=') == std::string::npos;
    if (value_follows && word + 1 != words.end()) ++word;
  }
  return words;
}

std::string usage_sentence(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& command = deepest(app);
  const std::vector<std::string> unknown = command.remaining();
  std::string sentence = error.what();
  if (const auto word = std::ranges::find_if(unknown, [](const auto& w) { return w != "--"; });
      word != unknown.end()) {
    sentence = unknown_word(command, *word);
  } else if (&command == &app) {
    sentence = "a command is missing";
  }
  return sentence + " (see '" + full_name(command) + " --help')";
}

}  // namespace fusedbun::launcher
