"""What the tests of whole clusters share: two hosts, a small training on them, and commands that are started on each."""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from hosts import SUBNET, Hosts, missing  # noqa: E402
from job_process import BINARY, Process, children, run, wait_until  # noqa: E402
from training import TrainingTestCase  # noqa: E402

QUICK = ["--heartbeat", "0.2", "--stall-timeout", "1", "--lost-timeout", "3"]


class OnHost(Process):
    """A command on a host. Its signals go to the command, not to what entered the host for it."""

    def __init__(self, host, *words, environment=None):
        super().__init__(host.words(*words), environment)
        entered = wait_until(lambda: children(self.popen.pid) or self.popen.poll() is not None, 10, "the command is there")
        self.pid = entered[0] if entered is not True else self.popen.pid


@unittest.skipIf(missing(), missing())
class ClusterTestCase(TrainingTestCase):
    """Two hosts, new ones for each test."""

    subnet = SUBNET
    shm_mebibytes = 1024

    def setUp(self):
        super().setUp()
        self.hosts = Hosts(2, shm_mebibytes=self.shm_mebibytes, subnet=self.subnet)
        self.hosts.__enter__()
        self.addCleanup(self.hosts.__exit__, None, None, None)

    def start(self, number, *words, environment=None):
        process = OnHost(self.hosts[number], BINARY, *words, environment=environment)
        self.addCleanup(process.__exit__)
        return process

    def static(self, number, *words, ranks=2, flags=(), address="node-0", environment=None):
        """The launcher of one host of two, as torchrun's static form is started."""
        return self.start(number, "launch", "--nnodes", "2", "--node-rank", str(number), "--master-addr", address,
                          "-n", str(ranks), *flags, "--", *words, environment=environment)

    def on_both(self, *words, **options):
        """Runs it on both hosts to the end; the two results."""
        jobs = [self.static(number, *words, **options) for number in (0, 1)]
        return [job.result(90) for job in jobs]

    def model_of_one_host(self, count, *more):
        """What the same four ranks train on one host."""
        run_dir = self.folder / "one-host"
        words = self.train(count, *more)
        words[words.index("--run-dir") + 1] = str(run_dir)
        result = run("launch", "-n", "4", "--", *words, "--no-host-window", seconds=90)
        self.assertEqual(result.code, 0, result)
        return (run_dir / "model.safetensors").read_bytes()

    def model(self):
        return (self.run_dir / "model.safetensors").read_bytes()


class SshCluster:
    """sshd on every host, and the variables with which ssh and mpirun find their way. Needs Debian's openssh-server."""

    def __init__(self, hosts, folder):
        self.folder = Path(tempfile.mkdtemp(prefix="ssh-", dir=folder))
        os.makedirs("/run/sshd", exist_ok=True)
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True)
        (self.folder / "authorized").write_text((self.folder / "user.pub").read_text())
        key = " ".join((self.folder / "host.pub").read_text().split()[:2])
        (self.folder / "known").write_text("".join(f"{host.name},{host.address} {key}\n" for host in hosts))
        (self.folder / "sshd").write_text(f"HostKey {self.folder}/host\nAuthorizedKeysFile {self.folder}/authorized\n"
                                          "StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPidFile none\n")
        self.arguments = (f"-i {self.folder}/user -o UserKnownHostsFile={self.folder}/known -o BatchMode=yes -o LogLevel=ERROR")
        self.servers = [host.start("/usr/sbin/sshd", "-D", "-E", self.folder / f"{host.name}.log", "-f", self.folder / "sshd")
                        for host in hosts]
        for host in hosts:
            wait_until(lambda host=host: hosts[0].run("ssh", *self.arguments.split(), host.name, "true", check=False).returncode == 0,
                       20, f"sshd of {host.name} answers")

    def environment(self):
        return {"OMPI_MCA_plm_rsh_agent": "ssh", "OMPI_MCA_plm_rsh_args": self.arguments, "OMPI_ALLOW_RUN_AS_ROOT": "1",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    def close(self):
        for server in self.servers:
            server.__exit__(None, None, None)
