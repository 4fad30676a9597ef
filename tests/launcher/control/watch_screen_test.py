"""`fusedbun watch` on a real pseudo-terminal: it draws, follows the window's size, quits on q, and restores everything."""

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest

BINARY, FAKE_JOB = os.environ["FUSEDBUN_BINARY"], os.environ["FUSEDBUN_FAKE_JOB"]
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


def plain(text):
    """Its lines without what steers a terminal."""
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text).split("\n")]


class Screen:
    """A terminal with `fusedbun watch` on it."""

    def __init__(self, run_dir):
        self.master, self.slave = pty.openpty()
        self.resize(100, 30)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen([BINARY, "watch", "--run-dir", run_dir], stdin=self.slave, stdout=self.slave,
                                        env=dict(os.environ, TERM="xterm"), start_new_session=True)
        self.text = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def resize(self, columns, lines):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read_until(self, part, seconds=20):
        end = time.monotonic() + seconds
        while part not in self.text:
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds} s on the screen: {part!r}\n{self.text[-3000:]}")
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += self.decoder.decode(os.read(self.master, 65536))

    def frame_of(self, lines):
        """Waits for a frame of so many lines."""
        while True:
            self.text = ""
            self.read_until("\x1b[H")
            self.text = self.text.rpartition("\x1b[H")[2]
            self.read_until("\x1b[H")
            frame = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.text.partition("\x1b[H")[0]).split("\n")
            if len(frame) == lines:
                return frame

    def end(self):
        code = self.process.wait(20)
        self.read_until(LEAVE)
        return code

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


class WatchScreen(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="fusedbun-test-")
        self.addCleanup(folder.cleanup)
        self.job = subprocess.Popen([FAKE_JOB, folder.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.end_job)
        self.job.stdout.readline()
        self.screen = Screen(folder.name)
        self.addCleanup(self.screen.close)
        self.screen.read_until(ENTER)
        self.screen.read_until("RUNNING  step ")

    def end_job(self):
        self.job.kill()
        self.job.wait()
        self.job.stdout.close()
        self.job.stdin.close()

    def assert_restored(self):
        self.assertEqual(termios.tcgetattr(self.screen.slave), self.screen.before)
        self.assertIn("\x1b[?25h", self.screen.text)

    def test_follows_the_windows_size_and_quits_on_q(self):
        for columns, lines in ((40, 12), (160, 50), (7, 3)):
            self.screen.resize(columns, lines)
            frame = self.screen.frame_of(lines)
            self.assertLessEqual(max(len(line) for line in frame), columns)
        os.write(self.screen.master, b"q")
        self.assertEqual(self.screen.end(), 0)
        self.assert_restored()

    def test_restores_the_terminal_after_a_signal(self):
        self.screen.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.screen.end(), 0)
        self.assert_restored()

    def test_ends_with_the_job_and_leaves_the_last_frame(self):
        self.job.stdin.close()
        self.assertEqual(self.screen.end(), 0)
        self.assert_restored()
        frames, _, left = self.screen.text.rpartition(LEAVE)
        while select.select([self.screen.master], [], [], 0.2)[0]:
            left += self.screen.decoder.decode(os.read(self.screen.master, 65536))
        last = plain(frames.rpartition("\x1b[H")[2])
        self.assertRegex(last[0], r"  step [1-9]\d* of 1,000,000 ")
        self.assertEqual([line for line in plain(left) if line], [line for line in last if line])


if __name__ == "__main__":
    unittest.main()
