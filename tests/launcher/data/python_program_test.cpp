#include "fusedbun/launcher/data/python_program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::data {
namespace {

namespace fs = std::filesystem;
using support::ScratchFolder;
using support::write_text;
using testing::HasSubstr;
using testing::ThrowsMessage;

/// Python's place is taken by a shell script, which is called with `-X utf8 -c TEXT words...`.
class PythonProgramTest : public testing::Test {
 protected:
  PythonProgramTest() { ::unsetenv("VIRTUAL_ENV"); }
  ~PythonProgramTest() override { ::unsetenv("FUSEDBUN_PYTHON"); }

  fs::path program(const std::string& name, const std::string& body) {
    fs::create_directories((folder_ / name).parent_path());
    write_text(folder_ / name, "#!/bin/sh\n" + body + "\n");
    fs::permissions(folder_ / name, fs::perms::owner_all);
    return folder_ / name;
  }
  void let_python_be(const std::string& body) {
    ::setenv("FUSEDBUN_PYTHON", program("python", body).c_str(), 1);
  }
  ScratchFolder folder_;
};

TEST_F(PythonProgramTest, TheNearestEnvironmentIsTakenAndNamesGoFirst) {
  const fs::path binary = folder_ / "checkout/build/release/fusedbun";
  EXPECT_EQ(find_python("/nowhere/fusedbun"), "python3");
  const fs::path far = program(".venv/bin/python", "");
  EXPECT_EQ(find_python(binary), far);
  const fs::path near = program("checkout/.venv/bin/python", "");
  EXPECT_EQ(find_python(binary), near);
  const fs::path active = program("active/bin/python", "");
  ::setenv("VIRTUAL_ENV", (folder_ / "active").c_str(), 1);
  EXPECT_EQ(find_python(binary), active);
  ::setenv("VIRTUAL_ENV", (folder_ / "removed").c_str(), 1);
  EXPECT_EQ(find_python(binary), near);
  const fs::path named = program("named", "");
  ::setenv("FUSEDBUN_PYTHON", named.c_str(), 1);
  EXPECT_EQ(find_python(binary), named);
  ::setenv("FUSEDBUN_PYTHON", "python3.12", 1);
  EXPECT_EQ(find_python(binary), "python3.12") << "a bare name is PATH's";
  ::setenv("FUSEDBUN_PYTHON", (folder_ / "gone").c_str(), 1);
  EXPECT_THAT([&] { find_python(binary); }, ThrowsMessage<ConfigError>(HasSubstr("no program")));
}

TEST_F(PythonProgramTest, MessagesOfAnyLengthGoThereAndBack) {
  let_python_be("exec cat");
  PythonProgram python({});
  std::string large(3'000, 'x');
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>(i);
  for (const std::string& message : {std::string("words"), std::string(), large}) {
    python.send(message);
    EXPECT_EQ(python.receive(), message);
  }
  python.finish();
  EXPECT_EQ(python.pid(), 0);
}

TEST_F(PythonProgramTest, TheTextOfTheScriptAndTheWordsReachPython) {
  let_python_be(
      R"(printf '\005\000\000\000'; printf %s "$5"; case "$4" in *"def read_message"*) exit 0; esac; exit 1)");
  PythonProgram python({"hello"});
  EXPECT_EQ(python.receive(), "hello");
  EXPECT_EQ(python.receive(), std::nullopt);
}

TEST_F(PythonProgramTest, ItsLastLineIsTheErrorAndItsCodeTheKind) {
  const auto run = [this](const std::string& body) {
    let_python_be(body);
    PythonProgram({}).receive();
  };
  EXPECT_THAT([&] { run("echo Warning: long >&2; echo 'a.jsonl:3 is bad' >&2; exit 65"); },
              ThrowsMessage<DataError>("a.jsonl:3 is bad"));
  EXPECT_THAT([&] { run("echo no space >&2; exit 74"); }, ThrowsMessage<IoError>("no space"));
  EXPECT_THAT([&] { run("echo no wheel >&2; exit 78"); }, ThrowsMessage<ConfigError>("no wheel"));
  EXPECT_THAT([&] { run("exit 3"); }, ThrowsMessage<Error>(HasSubstr("it said nothing")));
  EXPECT_THAT([&] { run("kill -9 $$"); },
              ThrowsMessage<DeviceError>(HasSubstr("SIGKILL: out of memory?")));
  EXPECT_THAT([&] { run("printf '\\005\\000\\000\\000abc'"); },
              ThrowsMessage<IoError>(HasSubstr("in the middle of a message")));
}

TEST_F(PythonProgramTest, ErrorsThatFillAnyPipeDoNotStopIt) {
  let_python_be("head -c 3000000 /dev/zero | tr '\\0' 'w' >&2; echo >&2; echo done >&2; exit 65");
  EXPECT_THAT([] { PythonProgram({}).receive(); }, ThrowsMessage<DataError>("done"));
}

TEST_F(PythonProgramTest, AProcessThatHasGoneIsAnErrorNotASignal) {
  let_python_be("exec 0<&-; echo I left >&2; exit 65");
  EXPECT_THAT(
      [] {
        PythonProgram python({});
        for (int i = 0; i < 1000; ++i) python.send(std::string(10'000, ' '));
      },
      ThrowsMessage<DataError>("I left"));
}

TEST_F(PythonProgramTest, NothingIsLeftOfOneThatIsNoLongerNeeded) {
  let_python_be("exec sleep 1000");
  pid_t pid = 0;
  {
    PythonProgram python({});
    pid = python.pid();
  }
  EXPECT_FALSE(fs::exists("/proc/" + std::to_string(pid)));
}

}  // namespace
}  // namespace fusedbun::data
