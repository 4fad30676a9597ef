"""Two hosts, as two network namespaces with names of their own and a cable between: the ranks watch over one another under rank 0's own
addresses, wherever the store is. Needs root.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from bare_ranks import QUICK, free_port  # noqa: E402
from job_process import BINARY, Process  # noqa: E402
from training import TrainingTestCase  # noqa: E402

STORE = """
import sys, time
from torch.distributed import TCPStore
store = TCPStore(sys.argv[1], int(sys.argv[2]), is_master=True, wait_for_workers=False)
print("serves", flush=True)
time.sleep(600)
"""


class Host:
    """A namespace that lives as long as a process of its own; its interface is called `cable`."""

    def __init__(self, number):
        self.name, self.address = f"node-{number}", f"10.77.0.{number + 1}"
        self.keeper = subprocess.Popen(
            ["unshare", "--net", "--uts", "sh", "-c", f"hostname {self.name}; echo; exec sleep 600"],
            stdout=subprocess.PIPE, text=True)
        self.keeper.stdout.readline()

    def words(self, *words):
        return ["nsenter", "--target", str(self.keeper.pid), "--net", "--uts", *words]

    def ip(self, *words):
        subprocess.run(self.words("ip", *words), check=True)

    def connect(self):
        self.ip("link", "set", "lo", "up")
        self.ip("address", "add", f"{self.address}/24", "dev", "cable")
        self.ip("link", "set", "cable", "up")

    def leave(self):
        self.keeper.kill()
        self.keeper.wait()
        self.keeper.stdout.close()


def missing():
    for program in ("ip", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"no {program}"
    return "" if os.geteuid() == 0 else "not root"


@unittest.skipIf(missing(), missing())
class TwoHosts(TrainingTestCase):
    def setUp(self):
        super().setUp()
        self.hosts = [Host(number) for number in (0, 1)]
        for host in self.hosts:
            self.addCleanup(host.leave)
        subprocess.run(["ip", "link", "add", "cable", "netns", str(self.hosts[0].keeper.pid), "type", "veth",
                        "peer", "name", "cable", "netns", str(self.hosts[1].keeper.pid)], check=True)
        for host in self.hosts:
            host.connect()

    def rank(self, number, store, port, words):
        """The store is served by somebody else, as torchrun's agent does."""
        process = Process(self.hosts[number].words(BINARY, *words), environment={
            "RANK": str(number), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": store.address,
            "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "two-hosts"})
        process.__enter__()
        self.addCleanup(process.__exit__)
        return process

    def test_rank_0_is_heard_though_the_store_is_elsewhere(self):
        store, port = self.hosts[1], free_port()
        self.serve_store(store, port)
        ranks = [self.rank(number, store, port, [*self.train(1_000_000), *QUICK]) for number in (0, 1)]
        self.wait_for_steps(3)
        self.assertNotIn("no heartbeats", (self.run_dir / "train.log").read_text())
        ranks[1].signal(signal.SIGSTOP)
        stopped = time.monotonic()
        self.assert_fails(ranks[0].result(30), 76, "rank 1 ", "on node-1) is lost: no heartbeat for 1.")
        self.assertLess(time.monotonic() - stopped, 10)

    def serve_store(self, store, port):
        serving = Process(store.words(os.environ["FUSEDBUN_PYTHON"], "-c", STORE, store.address, str(port)))
        serving.__enter__()
        self.addCleanup(serving.__exit__)
        serving.popen.stdout.readline()

    def command(self, host, *words):
        """A command about the job, on a host that sees its run folder."""
        with Process(self.hosts[host].words(BINARY, *words, "--run-dir", self.run_dir)) as process:
            return process.result(60)

    def test_a_job_is_asked_from_another_host(self):
        script = Path(__file__).resolve().parents[2] / "deploy" / "control_certificates.sh"
        credentials = self.folder / "credentials"
        subprocess.run([script, credentials], check=True, stdout=subprocess.DEVNULL)
        job = Process(self.hosts[0].words(BINARY, *self.train(
            1_000_000, "--control", "0.0.0.0:0", "--control-credentials", credentials)))
        job.__enter__()
        self.addCleanup(job.__exit__)
        self.wait_for_steps(3)
        file = self.run_dir / "control.json"
        control = json.loads(file.read_text())
        port = control["address"].rpartition(":")[2]
        self.assertEqual(control["addresses"], [f"127.0.0.1:{port}", f"{self.hosts[0].address}:{port}"])
        for host in (0, 1):
            answer = self.command(host, "status")
            self.assertEqual(answer.code, 0, answer)
        control["boot_id"] = "another"  # both namespaces have one kernel, two hosts have not
        file.write_text(json.dumps(control))
        self.assertEqual(self.command(1, "status").code, 0)
        # Packets that are lost on the way there, then on the way back, as a firewall drops them: that costs time, and nobody is
        # called dead.
        for sender, receiver in ((1, 0), (0, 1)):
            neighbour = ["neigh", "replace", self.hosts[receiver].address, "dev", "cable"]
            self.hosts[sender].ip(*neighbour, "lladdr", "02:00:00:00:00:99", "nud", "permanent")
            answer = self.command(1, "status")
            self.assertIn(answer.code, (69, 124), answer)
            self.assertNotIn("is gone", answer.err)
            self.assertIn(self.hosts[0].name, answer.err)
            self.hosts[sender].ip("neigh", "del", self.hosts[receiver].address, "dev", "cable")
        self.assertEqual(self.command(1, "status").code, 0)

    def test_a_socket_of_another_host_says_where_to_go(self):
        job = Process(self.hosts[0].words(BINARY, *self.train(1_000_000)))
        job.__enter__()
        self.addCleanup(job.__exit__)
        self.wait_for_steps(3)
        file = self.run_dir / "control.json"
        control = json.loads(file.read_text())
        control["boot_id"] = "another"
        file.write_text(json.dumps(control))
        self.assert_fails(self.command(1, "status"), 69, "runs elsewhere", "on node-0", "ssh node-0 ")


if __name__ == "__main__":
    unittest.main()
