"""Hosts: names, cables, and that nothing of them is left."""

import os
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from hosts import Hosts, missing  # noqa: E402

PING = "import socket, sys; socket.create_connection((sys.argv[1], 80), 1).close()"
SERVE = "import socket; s = socket.create_server(('', 80)); print('serves', flush=True)\nwhile True: s.accept()[0].close()"
SEND = """
import socket, sys, time
s, start = socket.create_connection((sys.argv[1], 80)), time.monotonic()
s.sendall(bytes(4 << 20)); s.shutdown(socket.SHUT_WR); s.recv(1)
print(time.monotonic() - start)
"""
RECEIVE = """
import socket
s = socket.create_server(("", 80)); print("serves", flush=True)
c = s.accept()[0]
while c.recv(1 << 20): pass
c.close()
"""


@unittest.skipIf(missing(), missing())
class HostsTest(unittest.TestCase):
    def reaches(self, sender, receiver):
        return sender.run(sys.executable, "-c", PING, receiver, check=False).returncode == 0

    def test_each_has_a_name_and_reaches_the_other_by_name(self):
        with Hosts(3) as hosts:
            self.assertEqual([host.run("hostname").stdout.strip() for host in hosts], ["node-0", "node-1", "node-2"])
            with hosts[1].start(sys.executable, "-c", SERVE, stdout=subprocess.PIPE) as server:
                server.stdout.readline()
                self.assertTrue(self.reaches(hosts[0], "node-1"))
                self.assertFalse(self.reaches(hosts[1], "node-0"))  # nobody serves there
                hosts[1].cut()
                self.assertFalse(self.reaches(hosts[0], "node-1"))
                hosts[1].mend()
                self.assertTrue(self.reaches(hosts[2], "node-1"))

    def test_a_firewall_loses_packets_of_a_port(self):
        with Hosts(2) as hosts:
            if hosts[1].run("nft", "list", "ruleset", check=False).returncode != 0:
                self.skipTest("no nft (Debian: nftables)")
            with hosts[1].start(sys.executable, "-c", SERVE, stdout=subprocess.PIPE) as server:
                server.stdout.readline()
                hosts[1].drop("input", "tcp dport 80")
                self.assertFalse(self.reaches(hosts[0], "node-1"))
                hosts[1].open_firewall()
                self.assertTrue(self.reaches(hosts[0], "node-1"))

    def test_a_cable_takes_as_long_as_its_rate_says(self):
        with Hosts(2) as hosts:
            hosts[0].shape("100mbit")
            with hosts[1].start(sys.executable, "-c", RECEIVE, stdout=subprocess.PIPE) as server:
                server.stdout.readline()
                seconds = float(hosts[0].run(sys.executable, "-c", SEND, "node-1").stdout)
            self.assertGreater(seconds, 8 * (4 << 20) / 100e6 * 0.8)  # 0.34 s at 100 Mbit/s; less what the burst lets pass
            self.assertLess(seconds, 3)

    def test_a_folder_is_hidden_on_one_host_alone(self):
        with Hosts(2, shm_mebibytes=64) as hosts:
            folder = str(Path(__file__).resolve().parent)
            hosts[1].hide(folder)
            self.assertEqual(hosts[1].run("ls", folder).stdout, "")
            self.assertIn("hosts.py", hosts[0].run("ls", folder).stdout)
            self.assertEqual(hosts[0].run("df", "-m", "--output=size", "/dev/shm").stdout.split()[-1], "64")

    def left(self, word):
        return subprocess.run(["pgrep", "-f", word], capture_output=True, text=True).stdout.split()

    def test_power_off_ends_all_processes(self):
        with Hosts(2) as hosts:
            process = hosts[1].start("sh", "-c", "echo runs; exec sleep 7913", stdout=subprocess.PIPE)
            process.stdout.readline()
            hosts[1].power_off()
            process.communicate(timeout=10)
            self.assertFalse(hosts[1].is_on())
            self.assertTrue(hosts[0].is_on())
        self.assertEqual(self.left("sleep 7913"), [])

    def test_nothing_is_left_of_a_test_that_was_killed(self):
        script = ("import sys, time; sys.path.insert(0, sys.argv[1]); from hosts import Hosts\n"
                  "with Hosts(2) as hosts:\n    hosts[0].start('setsid', 'sleep', '7914'); time.sleep(0.3)\n"
                  "    print('ready', flush=True); time.sleep(60)")
        with subprocess.Popen([sys.executable, "-c", script, str(Path(__file__).resolve().parent)],
                              stdout=subprocess.PIPE) as test:
            test.stdout.readline()
            self.assertNotEqual(self.left("sleep 7914"), [])
            os.kill(test.pid, signal.SIGKILL)
        end = time.monotonic() + 10
        while self.left("sleep 7914") and time.monotonic() < end:
            time.sleep(0.05)
        self.assertEqual(self.left("sleep 7914"), [])


if __name__ == "__main__":
    unittest.main()
