#!/usr/bin/env python3
"""Tests of the checks themselves: each seeded violation is found, each clean tree passes."""
import contextlib
import io
import json
import subprocess
import tempfile
import unittest
from pathlib import Path

import headers_alone
import include_direction
import readmes
import rpc_policy
import words
from source_files import SOURCE_ROOT, code_lines

HERE = Path(__file__).resolve().parent


class TreeTest(unittest.TestCase):
    """A throw-away source tree."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)

    def write(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def said(self, check, *arguments):
        """(exit code, what it printed)"""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = check(*arguments)
        return code, out.getvalue()


class RpcPolicy(TreeTest):
    CSV = "call,role,STARTING,RUNNING,DRAINING,ENDED\nGetJob,viewer,OK,OK,OK,OK\nStopJob,admin,OK,OK,OK,X Y\n"
    TABLE = ("| calls | role | STARTING | RUNNING | DRAINING | ended |\n| --- | --- | --- | --- | --- | --- |\n"
             "| GetJob | viewer | OK | OK | OK | OK |\n| StopJob | admin | OK | OK | OK | X `Y` |\n")

    def code(self, csv, readme):
        self.write("dist/control/rpc_policy.csv", csv)
        self.write("dist/control/README.md", f"# a\n\n{readme}\nmore\n")
        return self.said(rpc_policy.main, self.root)[0]

    def test_the_readme_says_what_the_service_is_compiled_from(self):
        self.assertEqual(self.code(self.CSV, self.TABLE), 0)
        self.assertEqual(self.code(self.CSV.replace("StopJob,admin", "StopJob,viewer"), self.TABLE), 1)
        self.assertEqual(self.code(self.CSV, self.TABLE.replace("| OK | OK | OK | OK |", "| OK | OK | OK | X |")), 1)
        self.assertEqual(self.code(self.CSV + "Another,admin,OK,OK,OK,OK\n", self.TABLE), 1)
        self.assertEqual(self.code(self.CSV, ""), 1)


class IncludeDirection(TreeTest):
    def rules(self, path, text):
        self.write(path, text)
        found, _ = include_direction.violations(self.root)
        return [(file, line, rule) for file, line, _, rule in found]

    def assert_refused(self, path, text, words, line=1):
        found = self.rules(path, text)
        self.assertTrue(any(file == path and at == line and words in rule for file, at, rule in found),
                        f"{path}: {text!r} gave {found}")

    def assert_fine(self, path, text):
        self.assertEqual(self.rules(path, text), [])

    def test_parts_include_downwards_only(self):
        refused = [
            ("core/a.h", "dist/plan/b.h"), ("core/a.h", "core/fusedbun.h"), ("dist/plan/a.h", "core/segment_step.h"),
            ("dist/plan/a.cpp", "dist/comm/b.h"), ("dist/comm/a.h", "core/options.h"), ("dist/comm/a.h", "dist/comm/gloo.h"),
            ("dist/comm/mpi.cpp", "dist/comm/gloo.h"), ("dist/step/a.h", "dist/control/b.h"),
            ("dist/step/a.h", "dist/checkpoint/b.h"), ("dist/step/a.cpp", "dist/comm/nccl.h"),
            ("dist/step/a.h", "dist/job/b.h"), ("dist/control/a.h", "dist/step/b.h"), ("dist/control/a.h", "core/fusedbun.h"),
            ("dist/control/a.h", "dist/comm/b.h"), ("dist/changes/a.h", "dist/control/b.h"), ("dist/changes/a.h", "dist/step/b.h"),
            ("dist/changes/change.h", "dist/changes/change_log.h"), ("dist/changes/change_ledger.h", "dist/run_folder/a.h"),
            ("dist/plan/a.h", "dist/changes/b.h"), ("dist/checkpoint/a.h", "dist/step/b.h"), ("dist/job/a.h", "launcher/b.h"),
        ]
        for path, header in refused:
            with self.subTest(path=path, header=header):
                self.assert_refused(path, f'#include "fusedbun/{header}"\n', "may include only")
                (self.root / path).unlink()

    def test_parts_include_what_is_below(self):
        for path, header in [("dist/plan/a.h", "core/options.h"), ("dist/step/a.h", "dist/comm/communicator.h"),
                             ("dist/comm/gloo_x.cpp", "dist/comm/gloo.h"), ("dist/job/a.cpp", "dist/control/b.h"),
                             ("dist/control/a.h", "dist/plan/b.h"), ("launcher/x/a.cpp", "dist/job/b.h")]:
            with self.subTest(path=path):
                self.assert_fine(path, f'#include "fusedbun/{header}"\n')

    def test_libraries_are_seen_by_their_owners_only(self):
        refused = [
            ("core/options.cpp", "torch/types.h"), ("core/a.cpp", "cuda_runtime.h"), ("dist/plan/a.h", "ATen/ATen.h"),
            ("dist/plan/a.h", "mutex"), ("dist/plan/a.h", "chrono"), ("dist/plan/a.h", "fstream"), ("dist/plan/a.h", "unistd.h"),
            ("dist/plan/a.h", "grpcpp/grpcpp.h"), ("dist/comm/a.h", "torch/types.h"), ("dist/comm/gloo.cpp", "mpi.h"),
            ("dist/comm/mpi.cpp", "nccl.h"), ("dist/comm/nccl.cpp", "torch/types.h"), ("dist/step/a.h", "mpi.h"),
            ("dist/step/a.h", "grpcpp/grpcpp.h"), ("dist/control/a.cpp", "torch/types.h"), ("launcher/a.cpp", "mpi.h"),
        ]
        for path, header in refused:
            with self.subTest(path=path, header=header):
                self.assert_refused(path, f"#include <{header}>\n", "may not see")
                (self.root / path).unlink()
        for path, header in [("core/fusedbun.h", "torch/types.h"), ("core/gpu/a.cu", "cuda_runtime.h"), ("dist/comm/mpi.cpp", "mpi.h"),
                             ("dist/comm/nccl.cpp", "nccl.h"), ("dist/comm/gloo.cpp", "torch/types.h"),
                             ("dist/plan/a.cpp", "xxhash.h"), ("dist/control/a.h", "grpcpp/grpcpp.h")]:
            with self.subTest(path=path):
                self.assert_fine(path, f"#include <{header}>\n")

    def test_the_wide_header_of_torch(self):
        self.assert_refused("dist/step/a.cpp", "#include <torch/torch.h>\n", "narrow headers")

    def test_torch_and_log_never_meet(self):
        self.write("launcher/logging.h", "#include <spdlog/spdlog.h>\n")
        self.write("launcher/model.h", "#include <torch/types.h>\n")
        self.write("launcher/model_user.h", '#include "fusedbun/launcher/model.h"\n')
        self.assert_refused("launcher/a.cpp", '#include "fusedbun/launcher/logging.h"\n'
                            '#include "fusedbun/launcher/model_user.h"\n', "together")
        self.assertEqual(len(self.rules("launcher/b.cpp", '#include "fusedbun/launcher/model.h"\n')), 1)  # a.cpp's

    def test_includes_are_spelled_from_the_root(self):
        self.assert_refused("dist/plan/a.cpp", '\n#include "shard_plan.h"\n', "spell it from the root", line=2)

    def test_raw_calls(self):
        self.assert_refused("dist/step/a.cpp", "void f() {\n  MPI_Barrier(world);\n}\n", "calls of MPI", line=2)
        self.assert_refused("dist/job/a.cpp", "int n = ncclGetVersion(&v);\n", "calls of NCCL")
        self.assert_refused("core/a.cpp", "auto s = cudaMalloc(&p, 1);\n", "calls of CUDA")
        for path in ("dist/step/a.cpp", "dist/job/a.cpp"):
            (self.root / path).unlink()
        self.assert_fine("core/a.cpp", '// MPI_Barrier(world)\nauto s = "cudaMalloc(p)"; /* ncclSend(\n) */\n')
        self.assert_fine("dist/comm/mpi.cpp", "void f() { MPI_Barrier(world); }\n")

    def test_names_that_say_nothing(self):
        self.assert_refused("dist/step/tensor_utils.h", "", "does not say what is inside")
        self.assert_refused("launcher/common/a.h", "", "does not say what is inside")
        self.assert_refused("dist/step/a.h", "\nclass BucketManager {};\n", "'Manager'", line=2)
        self.assert_refused("dist/step/b.h", "struct BaseBucket {};\n", "'Base'")
        for path in ("dist/step/tensor_utils.h", "launcher/common/a.h", "dist/step/b.h"):
            (self.root / path).unlink()
        self.assert_fine("dist/step/a.h", "class Database {};\n")

    def test_a_folder_without_rules(self):
        self.assert_refused("dist/newpart/a.h", "", "no row of PARTS")

    def test_an_empty_tree_fails(self):
        code, words = self.said(include_direction.main, self.root)
        self.assertEqual(code, 1)
        self.assertIn("wrong place", words)

    def test_exit_codes(self):
        self.write("core/a.h", "#include <vector>\n")
        self.assertEqual(self.said(include_direction.main, self.root)[0], 0)
        self.write("core/a.h", "#include <mpi.h>\n")
        code, words = self.said(include_direction.main, self.root)
        self.assertEqual(code, 1)
        self.assertIn("core/a.h:1: #include mpi.h", words)


class CodeLines(unittest.TestCase):
    def test_comments_and_literals_go_and_line_numbers_stay(self):
        self.assertEqual(code_lines("a /* x\ny */ b\n'\"' c // d\n\"e\\\"\" f\n1'000 g"),
                         ["a ", " b", " c ", " f", "1000 g"])
        self.assertEqual(code_lines('R"x(\n")x" h'), ["", " h"])


class HeadersAlone(TreeTest):
    def compile_all(self):
        build = self.root / "build"
        (build / "include").mkdir(parents=True)
        (build / "include" / "fusedbun").symlink_to(self.root)
        commands = [{"directory": str(build), "file": str(source),
                     "command": f"c++ -std=c++20 -I{build}/include -MD -MT x.o -MF x.d -o x.o -c {source}"}
                    for source in self.root.rglob("*.cpp")]
        (build / "compile_commands.json").write_text(json.dumps(commands))
        return self.said(lambda: headers_alone.main(build, root=self.root))

    def test_a_header_that_needs_another_before_it(self):
        self.write("core/good.h", "#pragma once\n#include <string>\nstd::string f();\n")
        self.write("core/good.cpp", '#include "fusedbun/core/good.h"\n')
        self.write("core/needy.h", "#pragma once\ninline std::string g() { return f(); }\n")
        self.write("core/needy.cpp", '#include "fusedbun/core/good.h"\n#include "fusedbun/core/needy.h"\n')
        code, words = self.compile_all()
        self.assertEqual(code, 1)
        self.assertIn("core/needy.h does not compile alone", words)
        self.assertNotIn("core/good.h does not", words)
        self.assertIn("2 headers, 1 compiled here, 1 failed", words)

    def test_headers_that_stand_alone(self):
        self.write("dist/plan/a.h", "#pragma once\nint f();\n")
        self.write("tests/dist/plan/a_test.cpp", '#include "fusedbun/dist/plan/a.h"\n')  # its only user
        self.assertEqual(self.compile_all()[0], 0)

    def test_a_header_nobody_compiles_fails(self):
        self.write("dist/control/a.h", "#pragma once\n")
        code, words = self.compile_all()
        self.assertEqual(code, 1)
        self.assertIn("no source tells how", words)


class Words(TreeTest):
    def test_a_banned_word_is_named_with_what_says_it(self):
        self.write("README.md", "# a\n\nIt exits with 76.\n")
        self.write("dist/health/a.h", "// Ends cleanly.\n")
        self.assertEqual(self.said(words.main, self.root)[0], 0)
        self.write("dist/health/b.h", "int a;\n// It ends in " + "peace.\n")
        self.write("README.md", "It leaves " + "with 76.\n")
        code, printed = self.said(words.main, self.root)
        self.assertEqual(code, 1)
        self.assertIn("dist/health/b.h:2: 'in " + "peace': say cleanly", printed)
        self.assertIn("README.md:1: 'leaves " + "with 7': say exits with", printed)


class Readmes(TreeTest):
    def test_missing_long_and_good(self):
        self.write("core/README.md", "# core\n\n| One step |" + "x" * 200 + "|\n")
        self.write("dist/plan/README.md", "# plan\n" * 81)
        self.write("dist/comm/a.h", "")
        self.write("tests/README.md", "# tests\n\n" + "x" * 141)
        code, words = self.said(readmes.main, self.root)
        self.assertEqual(code, 1)
        self.assertIn("dist/comm/README.md is missing", words)
        self.assertIn("dist/plan/README.md has 81 lines", words)
        self.assertIn("tests/README.md line 3 has 141 columns", words)
        self.assertIn("4 folders, 3 failed", words)

    def test_no_folders_fail(self):
        self.assertEqual(self.said(readmes.main, self.root)[0], 1)


class Format(TreeTest):
    def run_format(self, *flags):
        subprocess.run(["git", "init", "-q"], cwd=self.root, check=True)
        self.write(".clang-format", (SOURCE_ROOT / ".clang-format").read_text())
        return subprocess.run([HERE / "format.sh", *flags, self.root], capture_output=True, text=True)

    def test_badly_formatted_is_refused_and_mended(self):
        self.write("core/a.h", "int   f( );\n")
        result = self.run_format()
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("core/a.h:1", result.stderr)
        self.assertEqual(self.run_format("--fix").returncode, 0)
        self.assertEqual(self.run_format().returncode, 0)
        self.assertEqual((self.root / "core/a.h").read_text(), "int f();\n")

    def test_no_files_fail(self):
        self.assertEqual(self.run_format().returncode, 1)


if __name__ == "__main__":
    unittest.main()
