"""`fusedbun launch` with real processes: environment, output, signals, failures, restarts."""

import contextlib
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from job_process import BINARY, Process, TestCase, children, lives, run, start, wait_until  # noqa: E402


def launch(ranks, script, *flags, **options):
    """Starts `ranks` shells that run `script`."""
    return start("launch", "-n", ranks, *flags, "--", "sh", "-c", script, **options)


class Environment(TestCase):
    def test_ranks_get_what_torchrun_sets(self):
        names = ("RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT "
                 "TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT OMP_NUM_THREADS").split()
        script = "echo " + " ".join(f"${{{name}?}}" for name in names)
        with launch(2, script) as job:
            result = job.result()
        self.assertEqual(result.code, 0, result)
        lines = sorted(result.out.splitlines())
        self.assertEqual(len(lines), 2, result)
        values = [line.partition("] ")[2].split() for line in lines]
        threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
        for rank, value in enumerate(values):
            self.assertEqual(value[:6], [str(rank), str(rank), "2", "2", "0", "127.0.0.1"])
            self.assertEqual(value[8:], ["0", threads])
        self.assertEqual(values[0][6:8], values[1][6:8])
        self.assertGreater(int(values[0][6]), 1023)

    def test_a_thousand_ranks_under_the_usual_limit_of_descriptors(self):
        words = [BINARY, "launch", "-n", "1024", "--", "sh", "-c", "echo $RANK"]
        with Process(["prlimit", "--nofile=1024:", *words]) as job:
            result = job.result(120)
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual(sorted(int(line.split()[-1]) for line in result.out.splitlines()), list(range(1024)))
        with Process(["prlimit", "--nofile=1024:1024", *words]) as job:
            self.assert_fails(job.result(120), 78, "4164 file descriptors", "ulimit -Hn")

    def test_the_users_thread_count_and_port_stay(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        with launch(2, "echo $OMP_NUM_THREADS $MASTER_PORT", "--master_port", port,
                    environment={"OMP_NUM_THREADS": "7"}) as job:
            result = job.result()
        self.assertEqual(sorted(result.out.splitlines()), [f"[rank 0] 7 {port}", f"[rank 1] 7 {port}"])

    def test_a_fusedbun_command_runs_this_binary(self):
        result = run("launch", "--", "version")
        self.assertEqual(result.code, 0, result)
        self.assertTrue(result.out.startswith("fusedbun "), result)

    def test_one_of_our_commands_needs_no_mark(self):
        result = run("launch", "-n", "2", "version", "--output", "json")
        self.assertEqual(result.code, 0, result)
        self.assertEqual(result.out.count('"fusedbun"'), 2, result)

    def test_dry_run_prints_lines_that_a_shell_can_run(self):
        result = run("launch", "-n", "2", "--dry-run", "--", "sh", "-c", "echo \"it's $RANK\"")
        lines = result.out.splitlines()
        self.assertEqual(len(lines), 2, result)
        out = [subprocess.run(line, shell=True, capture_output=True, text=True).stdout for line in lines]
        self.assertEqual(out, ["it's 0\n", "it's 1\n"])


class Refusals(TestCase):
    def test_wrong_use_is_one_sentence_and_its_code(self):
        table = [
            (64, ["launch"], "nothing to launch"),
            (64, ["launch", "-n", "2", "python", "--steps", "2"], "put -- before the program"),
            (64, ["launch", "--log-dri", "x", "--", "true"], "--log-dir"),
            (64, ["lunch"], "launch"),
            (64, [], "a command is missing"),
            (64, ["launch", "-n", "two", "--", "true"], "--nproc-per-node"),
            (64, ["launch", "--tee", "3", "--", "true"], "--log-dir"),
            (64, ["launch", "--", "no-such-program"], "no-such-program"),
            (77, ["launch", "--", "/"], "Permission denied"),
            (78, ["launch", "-n", "0", "--", "true"], "--nproc-per-node = 0"),
            (78, ["launch", "-n", "-3", "--", "true"], "--nproc-per-node = -3"),
            (78, ["launch", "--grace", "nan", "--", "true"], "--grace"),
            (64, ["launch", "--nnodes", "2", "--", "true"], "--nnodes"),
            (78, ["launch", "--restart-delay", "0", "--", "true"], "--restart-delay"),
            (78, ["launch", "--restart-delay", "nan", "--", "true"], "--restart-delay"),
        ]
        for code, words, part in table:
            with self.subTest(words=words):
                result = run(*words)
                self.assert_fails(result, code, part)
                self.assertEqual(len(result.err.splitlines()), 1, result)
                self.assertEqual(result.out, "")

    def test_a_taken_port_is_refused(self):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            self.assert_fails(run("launch", "--master-port", port, "--", "true"), 69, str(port))


class Output(TestCase):
    def test_lines_carry_their_rank_and_stay_whole(self):
        script = "for i in $(seq 500); do printf 'a b %s\\n' $i; done; printf unfinished >&2"
        with launch(3, script) as job:
            result = job.result()
        for rank in range(3):
            mine = [line for line in result.out.splitlines() if line.startswith(f"[rank {rank}] ")]
            self.assertEqual(mine, [f"[rank {rank}] a b {i}" for i in range(1, 501)])
        self.assertEqual(sorted(result.err.splitlines()), [f"[rank {rank}] unfinished" for rank in range(3)])

    def test_one_rank_writes_by_itself(self):
        with launch(1, "printf out; printf err >&2") as job:
            result = job.result()
        self.assertEqual((result.out, result.err), ("out", "err"))

    def test_log_folder_is_laid_out_as_torchruns(self):
        with tempfile.TemporaryDirectory() as folder:
            with launch(2, "echo out $RANK; echo err $RANK >&2", "--log-dir", folder) as job:
                result = job.result()
            files = {str(path.relative_to(folder)).partition("/")[2]: path.read_text()
                     for path in Path(folder).rglob("*.log")}
        self.assertEqual(files, {f"attempt_0/{rank}/{name}.log": f"{name[3:]} {rank}\n"
                                 for rank in (0, 1) for name in ("stdout", "stderr")})
        self.assertIn("[rank 1] out 1", result.out)

    def test_redirects_keep_a_stream_from_the_console(self):
        with tempfile.TemporaryDirectory() as folder:
            with launch(2, "echo out; echo err >&2", "--log-dir", folder, "--redirects", "1:1") as job:
                result = job.result()
            self.assertEqual([path.parent.name for path in Path(folder).rglob("stdout.log")], ["1"])
        self.assertEqual(result.out, "[rank 0] out\n")
        self.assertEqual(sorted(result.err.splitlines()), ["[rank 0] err", "[rank 1] err"])

    def test_rank_zero_keeps_the_terminal(self):
        leader, follower = pty.openpty()
        script = "test -t 2 && echo $RANK sees a terminal >&2; true"
        with launch(2, script, streams={"stdout": subprocess.DEVNULL, "stderr": follower}) as job:
            self.assertEqual(job.result().code, 0)
        os.close(follower)
        self.assertEqual(os.read(leader, 1000), b"0 sees a terminal\r\n")
        os.close(leader)

    def test_a_terminal_that_stops_writers_from_other_groups_does_not_stop_rank_zero(self):
        pid, terminal = pty.fork()
        if pid == 0:
            settings = termios.tcgetattr(0)
            settings[3] |= termios.TOSTOP  # stty tostop
            termios.tcsetattr(0, termios.TCSANOW, settings)
            os.execv(BINARY, [BINARY, "launch", "-n", "2", "--", "sh", "-c", "echo rank $RANK >&2"])
        said = b""
        with contextlib.suppress(OSError):  # the terminal has gone
            while select.select([terminal], [], [], 20)[0]:
                said += os.read(terminal, 1000)
            os.kill(pid, signal.SIGKILL)  # nothing came for a long time
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
        os.close(terminal)
        self.assertIn(b"rank 0\r\n", said)

    def test_a_reader_that_stops_reading_does_not_hold_up_signals(self):
        with launch(2, "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done") as job:
            time.sleep(0.5)  # nobody reads: pipes and the launcher's memory fill
            job.signal(signal.SIGTERM)
            wait_until(lambda: not children(job.pid), 10, "the ranks to end")
            job.signal(signal.SIGTERM)
            wait_until(lambda: not lives(job.pid), 10, "the launcher to end")
            self.assertEqual(job.result().code, 143)

    def test_a_second_signal_that_is_seen_together_with_the_end_of_the_ranks_is_about_their_output(self):
        with launch(2, "trap '' TERM; while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done") as job:
            ranks = job.ranks(2)
            job.signal(signal.SIGTERM)
            time.sleep(0.1)
            job.signal(signal.SIGSTOP)
            for pid in ranks:
                with contextlib.suppress(ProcessLookupError):  # on a busy machine its shell was told before it had its trap
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not children(job.pid), 10, "the ranks to end")
            job.signal(signal.SIGTERM)
            job.signal(signal.SIGCONT)
            wait_until(lambda: not lives(job.pid), 10, "the launcher to end")


class ClosedStreams(TestCase):
    """As cron jobs, daemons and `>&-` start processes: nothing that is opened later may be taken for a standard stream."""

    def test_launch_ends_and_its_ranks_see_open_streams(self):
        with tempfile.TemporaryDirectory() as folder:
            script = f"echo out; echo err >&2; ls -l /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 > {folder}/$RANK"
            for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
                with self.subTest(closed=closed):
                    with Process(["sh", "-c", f'exec "$0" "$@" {closed}', BINARY, "launch", "-n", "2", "--", "sh", "-c", script]) as job:
                        self.assertEqual(job.result(20).code, 0)
                    for rank in (0, 1):
                        self.assertEqual(len((Path(folder) / str(rank)).read_text().splitlines()), 3)

    def test_what_a_command_says_lands_in_no_file_of_its_own(self):
        for words in (["version"], ["env"], ["status", "--run-dir", "/no/such/folder"]):
            with Process(["sh", "-c", 'exec "$0" "$@" >&- 2>&-', BINARY, *words]) as job:
                self.assertIn(job.result(20).code, (0, 64, 69))  # 64: a build without that command


class Ending(TestCase):
    def test_the_first_failing_rank_gives_the_code_and_is_named_last(self):
        with launch(3, "if [ $RANK = 1 ]; then exit 65; fi; exec sleep 100") as job:
            began = time.monotonic()
            result = job.result()
        self.assertLess(time.monotonic() - began, 9)
        self.assertEqual(result.code, 65, result)
        last = result.err.splitlines()[-1]
        self.assertRegex(last, rf"rank 1 \(pid \d+ on {re.escape(socket.gethostname())}\).* exit code 65")

    def test_a_killed_rank_is_named_with_its_signal_and_log(self):
        with tempfile.TemporaryDirectory() as folder:
            with launch(2, "echo $$ up; exec sleep 100", "--log-dir", folder) as job:
                victim = job.ranks(2)[1]
                os.kill(victim, signal.SIGKILL)
                result = job.result()
        self.assertEqual(result.code, 137, result)
        last = result.err.splitlines()[-1]
        self.assertRegex(last, rf"rank 1 \(pid {victim} .* ended by SIGKILL; its output: {folder}/.*/attempt_0/1$")

    def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace(self):
        script = "trap '' TERM; echo ready; [ $RANK = 0 ] && exit 3; while :; do sleep 0.1; done"
        began = time.monotonic()
        with launch(2, script, "--grace", "0.5") as job:
            self.assertEqual(job.result().code, 3)
        self.assertLess(time.monotonic() - began, 9)  # the grace without the flag is 10 s

    def test_descendants_of_a_rank_end_with_it(self):
        with launch(2, "sleep 100 & echo $!; [ $RANK = 0 ] && sleep 0.3 && exit 1; wait") as job:
            result = job.result()
        self.assertEqual(result.code, 1, result)
        pids = [int(line.split()[-1]) for line in result.out.splitlines()]
        self.assertEqual(len(pids), 2)
        wait_until(lambda: not any(lives(pid) for pid in pids), 2, "grandchildren to end")

    def test_a_killed_launcher_leaves_no_orphan(self):
        for attempt in range(3):
            with launch(4, "echo up; exec sleep 100") as job:
                pids = job.ranks(4)
                if attempt:
                    time.sleep(0.1)
                job.signal(signal.SIGKILL)
                wait_until(lambda: not any(lives(pid) for pid in pids), 5, "the ranks to end")


class Signals(TestCase):
    def ready(self, job, ranks):
        for _ in range(ranks):
            self.assertIn("ready", job.popen.stdout.readline())

    def test_stop_signals_reach_all_ranks_and_their_code_comes_back(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            with self.subTest(number=number):
                name = number.name[3:]
                script = f"trap 'echo got {name}; exit 75' {name}; echo ready; while :; do sleep 0.02; done"
                with launch(2, script) as job:
                    self.ready(job, 2)
                    job.signal(number)
                    result = job.result()
                self.assertEqual(result.code, 75, result)
                self.assertEqual(sorted(result.out.splitlines()), [f"[rank {r}] got {name}" for r in (0, 1)])

    def test_ranks_that_do_not_handle_the_signal_end_by_it(self):
        with launch(2, "echo ready; exec sleep 100") as job:
            self.ready(job, 2)
            job.signal(signal.SIGINT)
            self.assertEqual(job.result().code, 130)

    def test_what_does_not_leave_within_the_grace_is_killed(self):
        with launch(2, "trap '' TERM; echo ready; while :; do sleep 0.1; done", "--grace", "0.5") as job:
            self.ready(job, 2)
            began = time.monotonic()
            job.signal(signal.SIGTERM)
            self.assert_fails(job.result(), 143, "did not leave in time")
            self.assertGreater(time.monotonic() - began, 0.4)

    def test_a_second_signal_kills_at_once(self):
        with launch(2, "trap '' TERM; echo ready; while :; do sleep 0.1; done", "--grace", "60") as job:
            self.ready(job, 2)
            job.signal(signal.SIGTERM)
            time.sleep(0.2)
            job.signal(signal.SIGTERM)  # the same request: as when a whole tree is signalled
            time.sleep(0.9)
            self.assertEqual(len(children(job.pid)), 2)
            job.signal(signal.SIGTERM)
            result = job.result(5)
        self.assert_fails(result, 143, "which have 60 s to leave; once more after 1 s kills them at once")
        self.assertEqual(result.err.count("forwarding"), 1, result)

    def test_one_signal_to_the_whole_tree_reaches_a_rank_at_most_twice_and_kills_nothing(self):
        script = "trap 'echo got; sleep 1; exit 75' TERM; echo ready; while :; do sleep 0.02; done"
        with launch(2, script) as job:
            self.ready(job, 2)
            for pid in job.ranks(2) + [job.pid]:
                os.kill(pid, signal.SIGTERM)
            self.assertEqual(job.result().code, 75)


class Stopping(TestCase):
    """Ctrl-Z, as a shell's terminal sends it: to the launcher's process group, in which the ranks are not."""

    def state(self, pid):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    def test_the_ranks_stop_and_go_on_with_the_launcher(self):
        # A shell that is stopped while it starts a program waits for that, in another state.
        with launch(2, "exec sleep 100") as job:
            pids = [*job.ranks(2), job.pid]
            os.killpg(job.pid, signal.SIGTSTP)
            wait_until(lambda: all(self.state(pid) == "T" for pid in pids), 10, "all to stop")
            os.killpg(job.pid, signal.SIGCONT)
            wait_until(lambda: all(self.state(pid) != "T" for pid in pids), 10, "all to go on")
            job.signal(signal.SIGTERM)
            self.assertEqual(job.result().code, 143)


class Restarts(TestCase):
    def test_all_ranks_start_again_until_they_are_done(self):
        script = "echo $TORCHELASTIC_RESTART_COUNT; [ $RANK$TORCHELASTIC_RESTART_COUNT = 10 ] && sleep 0.3 && exit 1; sleep 0.5"
        with launch(2, script, "--max-restarts", "3", "--restart-delay", "0.5") as job:
            result = job.result()
        self.assertEqual(result.code, 0, result)
        told = [line for line in result.err.splitlines() if "restart" in line]
        self.assertEqual(len(told), 1, result)
        self.assertRegex(told[0], r"^fusedbun: restart 1 of at most 3 in 0.5 s: "
                                  r"rank 1 \(pid \d+ on .*\) failed first: it left with exit code 1$")
        self.assertEqual(sorted(result.out.splitlines()),
                         ["[rank 0] 0", "[rank 0] 1", "[rank 1] 0", "[rank 1] 1"])

    def test_attempts_are_counted_and_logged_apart(self):
        with tempfile.TemporaryDirectory() as folder:
            with launch(1, "echo why >&2; exit 70", "--max-restarts", "2", "--restart-delay", "0.1", "--log-dir", folder) as job:
                result = job.result()
            self.assertEqual(result.code, 70)
            self.assertEqual([line.split(": ")[1] for line in result.err.splitlines() if ": restart " in line],
                             ["restart 1 of at most 2 in 0.1 s", "restart 2 of at most 2 in 0.2 s"])
            self.assertRegex(result.err.splitlines()[-1], rf"rank 0 \(.* left with exit code 70; its last line: why; its output: "
                                                          rf"{folder}/.*/attempt_2/0; all 2 restarts are used up$")
            attempts = sorted(path.name for path in Path(folder).glob("*/attempt_*"))
        self.assertEqual(attempts, ["attempt_0", "attempt_1", "attempt_2"])

    def test_what_would_fail_again_is_not_tried_again(self):
        for code in (64, 65, 69, 75, 77, 78, 79, 124):
            with self.subTest(code=code), launch(1, f"echo once; exit {code}", "--max-restarts", "5") as job:
                result = job.result()
                self.assertEqual((result.code, result.out), (code, "once\n"))

    def test_a_signal_in_the_pause_ends_it_at_once(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            with self.subTest(number=number.name):
                with launch(2, "[ $RANK = 0 ] && exit 70; exec sleep 100", "--max-restarts", "5", "--restart-delay", "60") as job:
                    while "restart 1 of at most 5 in 60 s" not in job.popen.stderr.readline():
                        self.assertIsNone(job.popen.poll())
                    began = time.monotonic()
                    job.signal(number)
                    result = job.result()
                self.assertLess(time.monotonic() - began, 5)
                self.assertEqual(result.code, 70)
                self.assertIn(f"received {number.name}, so nothing starts again", result.err)

    def test_nohup_keeps_the_pause_too(self):
        script = "[ $TORCHELASTIC_RESTART_COUNT = 1 ] || exit 1"
        words = [BINARY, "launch", "--max-restarts", "1", "--restart-delay", "1", "--", "sh", "-c", script]
        with Process(["sh", "-c", 'trap "" HUP; exec "$0" "$@"', *words]) as job:
            while "restart 1 of at most 1" not in job.popen.stderr.readline():
                self.assertIsNone(job.popen.poll())
            job.signal(signal.SIGHUP)
            self.assertEqual(job.result().code, 0)


class LastLines(TestCase):
    """Of a program that keeps its last words where $FUSEDBUN_LAST_WORDS says."""

    KEEP = "printf 'in step 7: 3 steps are lost\\n--more\\n' > $FUSEDBUN_LAST_WORDS; echo ready; "

    def last(self, result, count):
        lines = result.err.splitlines()
        self.assertTrue(all(line.startswith("fusedbun: ") for line in lines[-count:]), result)
        return [line.removeprefix("fusedbun: ") for line in lines[-count:]]

    def test_they_are_said_when_all_ranks_are_killed_at_once(self):
        with launch(2, self.KEEP + "exec sleep 100") as job:
            pids = job.ranks(2)
            for _ in pids:
                self.assertIn("ready", job.popen.stdout.readline())
            job.signal(signal.SIGSTOP)  # it sees both at once
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            job.signal(signal.SIGCONT)
            result = job.result()
        who, lost, how = self.last(result, 3)
        self.assertRegex(who, r"^rank [01] \(pid \d+ on .*\) failed first: it was ended by SIGKILL$")
        self.assertEqual(lost, "in step 7: 3 steps are lost")
        self.assertTrue(how.startswith(f"to go on: {BINARY} launch -n 2 -- sh -c 'printf "), how)
        self.assertTrue(how.endswith("' --more"), how)

    def test_the_failing_ranks_own_sentence_is_among_them(self):
        with launch(2, "[ $RANK = 1 ] && { echo 'no such file' >&2; exit 65; }; exec sleep 100") as job:
            result = job.result()
        self.assertRegex(self.last(result, 1)[0], r"^rank 1 .* failed first: it left with exit code 65; its last line: no such file$")

    def test_nothing_is_said_of_a_job_that_is_done(self):
        with launch(2, self.KEEP) as job:
            result = job.result()
        self.assertEqual((result.code, result.err), (0, ""))


if __name__ == "__main__":
    unittest.main()
