"""Hosts on one machine: each a network namespace with a host name, a loopback device and an address of its own, all on one switch.

They share processors, files and /dev/shm. Needs root and the right to make namespaces (`problem()` says what is missing); names
begin with the process id, so several may be there at once. What was made is removed at the end, with every process that still runs in it.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from job_process import BINARY, Process, wait_until  # noqa: E402


def problem():
    """Why there can be no hosts here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "Debian's iproute2 is not installed"
    name = f"fb{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    entered = made.returncode == 0 and subprocess.run(["ip", "netns", "exec", name, "unshare", "--uts", "true"], capture_output=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return "" if entered and entered.returncode == 0 else f"no network namespace can be made here: {made.stderr.strip()}"


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """`count` hosts named node0, node1, ... with the addresses 10.77.0.1, 10.77.0.2, ...; a context manager."""

    def __init__(self, count):
        self.count = count
        self.switch = f"fb{os.getpid()}s"
        self.namespaces = [f"fb{os.getpid()}h{host}" for host in range(count)]
        self.names = [f"node{host}" for host in range(count)]

    def address(self, host):
        return f"10.77.0.{host + 1}"

    def __enter__(self):
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self):
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self.switch, "link", "set", "switch", "up")
        known = "127.0.0.1 localhost\n::1 localhost\n" + "".join(f"{self.address(i)} {name}\n" for i, name in enumerate(self.names))
        for host, namespace in enumerate(self.namespaces):
            folder = Path("/etc/netns") / namespace  # `ip netns exec` puts its files over those of /etc
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(known)
            (folder / "hostname").write_text(self.names[host] + "\n")
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{host}", "netns", self.switch)
            ip("-n", self.switch, "link", "set", f"port{host}", "master", "switch", "up")
            ip("-n", namespace, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", namespace, "link", "set", "lo", "up")
            ip("-n", namespace, "link", "set", "eth0", "up")

    def __exit__(self, *_):
        for namespace in [*self.namespaces, self.switch]:
            pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout.split()
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / namespace, ignore_errors=True)

    def words(self, host, *words):
        """What runs `words` on a host."""
        enter = 'hostname "$0"; exec "$@"'
        return ["ip", "netns", "exec", self.namespaces[host], "unshare", "--uts", "sh", "-c", enter, self.names[host], *map(str, words)]

    def write_remote_shell(self, path):
        """Makes `path` a program that runs a command on a host as ssh does: PATH HOST COMMAND."""
        cases = "".join(f"  {name}) namespace={namespace} ;;\n" for name, namespace in zip(self.names, self.namespaces))
        path.write_text(f'#!/bin/sh\nhost=$1; shift\ncase $host in\n{cases}  *) echo "$host: no such host" >&2; exit 255 ;;\nesac\n'
                        'exec ip netns exec $namespace unshare --uts sh -c \'hostname "$0"; eval "$*"\' "$host" "$@"\n')
        path.chmod(0o755)

    def start(self, host, *words, **options):
        """Starts a program on a host."""
        return Process(self.words(host, *words), **options)

    def fusedbun(self, host, *words, **options):
        return self.start(host, BINARY, *words, **options)

    def set_link(self, host, is_up):
        """Plugs the host's cable in or out; the host itself sees its device up, as where a switch dies."""
        ip("-n", self.switch, "link", "set", f"port{host}", "up" if is_up else "down")

    def limit(self, host, rate):
        """Both directions of the host's line, as `tc tbf` counts: "1gbit"."""
        for namespace, device in ((self.namespaces[host], "eth0"), (self.switch, f"port{host}")):
            subprocess.run(["tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", "rate", rate, "burst", "256kb",
                            "latency", "50ms"], check=True, capture_output=True)

    def drop(self, host, port):
        """A firewall on the host that answers nothing on a TCP port."""
        rules = f"add table inet t; add chain inet t c {{ type filter hook input priority 0; }}; add rule inet t c tcp dport {port} drop"
        subprocess.run(["ip", "netns", "exec", self.namespaces[host], "nft", rules], check=True, capture_output=True)


__all__ = ["Hosts", "problem", "wait_until"]
