"""A Slurm of its own on hosts of hosts.py: munged, slurmctld and a slurmd per host, in a folder that goes with the test.

Needs Debian's slurm-wlm, slurm-wlm-basic-plugins and munge: `missing()` says what else.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import hosts

_DAEMONS = ("munged", "slurmctld", "slurmd")
CORES = 2  # of each host, as Slurm shall believe

_CONFIG = """\
ClusterName=test
SlurmctldHost=node-0(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
# A requeued job waits as long as this before it starts again.
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
# PMIx keeps sockets there, and the hosts of this machine share /tmp.
TmpFS={folder}/tmp-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
# Without cgroups.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=20
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=node-[0-{last}] CPUs={cores} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing():
    """Why there can be no Slurm here, in one sentence; empty where there can."""
    absent = [daemon for daemon in _DAEMONS if shutil.which(daemon, path=os.environ["PATH"] + ":/usr/sbin") is None]
    return hosts.missing() or (f"Slurm is not installed: no {', no '.join(absent)} (Debian: slurm-wlm, munge)" if absent else "")


class SlurmCluster:
    """A context manager over `Hosts`; jobs are submitted from host 0."""

    def __init__(self, on, folder):
        self.hosts, self.folder = on, Path(folder)
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons = []

    def __enter__(self):
        (self.folder / "state").mkdir()
        for host in self.hosts:
            (self.folder / f"spool-{host.name}").mkdir()
            (self.folder / f"tmp-{host.name}").mkdir()
        (self.folder / "slurm.conf").write_text(_CONFIG.format(folder=self.folder, last=len(self.hosts) - 1, cores=CORES))
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for host in self.hosts:
            Path("/run/munge").mkdir(exist_ok=True)
            host.hide("/run/munge")
            host.run("chmod", "755", "/run/munge")
            own = self.folder / f"munge-{host.name}"
            host.run("munged", "--force", "--key-file", key, "--pid-file", f"{own}.pid", "--log-file", f"{own}.log", "--seed-file", f"{own}.seed")
        self._start(self.hosts[0], "slurmctld", "-D")
        for host in self.hosts:
            self._start(host, "slurmd", "-D", "-N", host.name)
        self._wait_for_nodes()
        return self

    def __exit__(self, *_):
        for daemon in self._daemons:
            daemon.__exit__()

    def _start(self, host, *words):
        with open(self.folder / f"{words[0]}-{host.name}.out", "w", encoding="utf-8") as log:
            self._daemons.append(host.start(*words, environment=self.environment, stdout=log, stderr=subprocess.STDOUT))

    def _wait_for_nodes(self):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            states = self.command("sinfo", "--noheader", "--Node", "--format=%t", check=False).stdout.split()
            if states and all(state == "idle" for state in states):
                return
            time.sleep(0.1)
        raise TimeoutError(f"Slurm's nodes are {states}: {(self.folder / 'slurmctld.log').read_text()}")

    def command(self, *words, environment=None, **options):
        """Runs one of Slurm's commands."""
        return self.hosts[0].run(*words, env={**os.environ, **self.environment, **(environment or {})}, **options)

    def state(self, job):
        """"RUNNING", "COMPLETED", ..."""
        shown = self.command("scontrol", "show", "job", str(job)).stdout
        return next(word.partition("=")[2] for word in shown.split() if word.startswith("JobState="))

    def wait_for(self, job, *states, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (found := self.state(job)) in states:
                return found
            time.sleep(0.1)
        raise TimeoutError(f"job {job} is {found}, not {' or '.join(states)}")
