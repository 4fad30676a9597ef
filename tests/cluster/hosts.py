"""Several hosts on this machine, for tests of whole clusters.

    with Hosts(2) as hosts:                      # node-0 at 10.77.0.1, node-1 at 10.77.0.2, a switch between them
        hosts[0].run("ping", "-c1", "node-1")
        with hosts[1].start("sleep", "60") as process:
            hosts[1].cut()                       # the cable is out; mend() puts it back
        hosts[1].shape("1gbit")                  # both directions of its cable
        hosts[1].power_off()                     # every process of it is gone at once

A host is a network, host name, process and mount namespace: it has an address, a name, processes and a /dev/shm of its own, and an
/etc/hosts that knows all names. Its files are this machine's, as on a cluster with a shared file system; hide() takes a folder away from
one host. Clock and boot id are shared.

Each host lives as long as a process that reads a pipe of this one, and is the first process of its namespace. So hosts, cables and all that
was started on them end with the context, and with this process however it ends. Needs root: `missing()` says what else.
"""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

SUBNET = "10.77.0"
CABLE = "eth0"
_PROGRAMS = ("ip", "tc", "unshare", "nsenter", "mount")
_FIRST_PROCESS = "mount -t tmpfs -o size={shm_mebibytes}m tmpfs /dev/shm && hostname {name} && ip link set lo up && echo ready && exec cat"


@functools.cache
def missing():
    """Why no hosts can be made here, in one sentence; empty where they can."""
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"no hosts can be made: there is no {' and no '.join(absent)} (Debian: iproute2, util-linux)"
    if os.geteuid() != 0:
        return "no hosts can be made: that needs root"
    tried = subprocess.run(["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "--mount-proc", "sh", "-c",
                            "ip link add name switch type bridge && ip link add name a type veth peer name b"],
                           capture_output=True, text=True)
    return f"no hosts can be made: {(tried.stderr or 'no permission').strip()}" if tried.returncode != 0 else ""


def _child(pid):
    """The only child of a process, once it is there."""
    for _ in range(500):
        if listed := Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            return int(listed[0])
        time.sleep(0.01)
    raise TimeoutError(f"process {pid} starts nothing")


class Namespace:
    """The namespaces of a host or of the switch."""

    def __init__(self, name, shm_mebibytes=1024):
        self.name = name
        self._keeper = subprocess.Popen(
            ["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
             _FIRST_PROCESS.format(name=name, shm_mebibytes=shm_mebibytes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        if self._keeper.stdout.readline() != "ready\n":
            self._keeper.communicate()
            raise OSError(f"{name} cannot be made, see above")
        self.pid = _child(self._keeper.pid)  # of its first process, as this machine counts

    def words(self, *words):
        """The command line that runs `words` on it. Signals that are for the program go to the child of this command."""
        return ["nsenter", "--target", str(self.pid), "--net", "--uts", "--pid", "--mount", "--wd=" + os.getcwd(), "--",
                *(str(word) for word in words)]

    def run(self, *words, check=True, seconds=60, **options):
        """Runs a command to its end; the subprocess.CompletedProcess, with text of both streams."""
        done = subprocess.run(self.words(*words), capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL, **options)
        if check and done.returncode != 0:
            raise AssertionError(f"{self.name}: {' '.join(map(str, words))} left with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def power_off(self):
        """Every process of it ends at once, and says nothing more to anybody."""
        self._keeper.stdin.close()
        self._keeper.wait()
        self._keeper.stdout.close()

    def is_on(self):
        return self._keeper.poll() is None


class Host(Namespace):
    """One of Hosts."""

    def __init__(self, number, name, switch, shm_mebibytes, subnet):
        super().__init__(name, shm_mebibytes)
        self.address = f"{subnet}.{number + 1}"
        self._switch, self._port = switch, f"port{number}"
        self._written = set()
        subprocess.run(["ip", "link", "add", "name", CABLE, "netns", str(self.pid), "type", "veth",
                        "peer", "name", self._port, "netns", str(switch.pid)], check=True)
        self.run("ip", "address", "add", f"{self.address}/24", "dev", CABLE)
        self.run("ip", "link", "set", CABLE, "up")
        switch.run("ip", "link", "set", self._port, "master", "switch")
        switch.run("ip", "link", "set", self._port, "up")

    def start(self, *words, environment=None, **options):
        """Starts a command and returns its subprocess.Popen, a context manager that kills it at the end."""
        return _Started(self.words(*words), env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, text=True,
                        start_new_session=True, **options)

    def sent_bytes(self):
        """What has left it over its cable so far, with the headers of the network."""
        (link,) = json.loads(self.run("ip", "-json", "-statistics", "link", "show", CABLE).stdout)
        return link["stats64"]["tx"]["bytes"]

    def cut(self):
        """Pulls its cable at the switch: packets of both directions are lost, and nobody is told."""
        self._switch.run("ip", "link", "set", self._port, "down")

    def mend(self):
        self._switch.run("ip", "link", "set", self._port, "up")

    def shape(self, rate, burst="256kb", latency="50ms"):
        """Limits what it sends and what it receives to a rate in tc's words, such as 1gbit; with no rate, not any more."""
        for namespace, device in ((self, CABLE), (self._switch, self._port)):
            namespace.run("tc", "qdisc", "del", "dev", device, "root", check=False)
            if rate:
                namespace.run("tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", burst, "latency", latency)

    def drop(self, direction, match):
        """A firewall that loses packets: `direction` is input or output, `match` in nft's words, such as "tcp dport 29500"."""
        self.run("nft", f"add table inet firewall; add chain inet firewall {direction} "
                        f"{{ type filter hook {direction} priority 0; }}; add rule inet firewall {direction} {match} drop")

    def open_firewall(self):
        self.run("nft", "flush ruleset")

    def hide(self, folder):
        """An empty folder is in the place of this one, on this host alone."""
        self.run("mount", "-t", "tmpfs", "tmpfs", folder)

    def write_file(self, path, text):
        """On this host alone; the file must exist on the machine."""
        if path in self._written:
            self.run("umount", path)
        self._written.add(path)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix=f"{self.name}-", delete=False) as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        try:
            self.run("mount", "--bind", file.name, path)
        finally:
            os.unlink(file.name)  # it lives on where it is mounted


class _Started(subprocess.Popen):
    def __exit__(self, *_):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(_child(self.pid), 9)
            self.kill()
        self.communicate()


class Hosts:
    """A context manager: `count` hosts with names and a switch. `shm_mebibytes` is the size of each one's /dev/shm."""

    def __init__(self, count, prefix="node-", shm_mebibytes=1024, subnet=SUBNET):
        self._subnet = subnet
        self.names = [f"{prefix}{number}" for number in range(count)]
        self._shm_mebibytes = shm_mebibytes
        self._open = contextlib.ExitStack()
        self._hosts = []

    def __enter__(self):
        with contextlib.ExitStack() as stack:  # what is made goes, also if a later one cannot be made
            switch = Namespace("switch")
            stack.callback(switch.power_off)
            switch.run("ip", "link", "add", "name", "switch", "type", "bridge")
            switch.run("ip", "link", "set", "switch", "up")
            for number, name in enumerate(self.names):
                self._hosts.append(Host(number, name, switch, self._shm_mebibytes, self._subnet))
                stack.callback(self._hosts[-1].power_off)
            names = "".join(f"{host.address} {host.name}\n" for host in self._hosts)
            for host in self._hosts:
                host.write_file("/etc/hosts", f"127.0.0.1 localhost\n{names}")
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception):
        return self._open.__exit__(*exception)

    def __getitem__(self, number):
        return self._hosts[number]

    def __len__(self):
        return len(self._hosts)

    def __iter__(self):
        return iter(self._hosts)
