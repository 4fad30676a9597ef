"""/metrics of a run, as a real Prometheus reads it: its values against the run's metrics.jsonl, the alert rules and the dashboard of
deploy/monitoring against its answers."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent.parent
MONITORING = ROOT / "deploy" / "monitoring"
sys.path.insert(0, str(ROOT / "tests" / "support"))
from bare_ranks import bare_ranks, free_port  # noqa: E402
from job_process import Process, run, wait_until  # noqa: E402
from training import TrainingTestCase, metrics  # noqa: E402

HAS_PROMETHEUS = os.environ.get("FUSEDBUN_HAS_PROMETHEUS") == "1"
# Steps that are forward and backward more than waits.
MODEL = ["--layers", "2", "--width", "128", "--context", "64", "--batch", "32"]
TOKENS_PER_STEP = 32 * 64
SCRAPES_SECONDS = 0.25


def fetch(port, path="/metrics", address="127.0.0.1"):
    with contextlib.closing(http.client.HTTPConnection(address, port, timeout=5)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read().decode()


class Flags(TrainingTestCase):
    @unittest.skipUnless(HAS_PROMETHEUS, "this build has no Prometheus")
    def test_a_port_in_use_is_refused_before_anything_is_trained(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            result = run("launch", "-n", "2", "--", *self.train(50, "--metrics-port", port))
            self.assert_fails(result, 69, f"127.0.0.1:{port}", "something listens there already", "--metrics-port")
            self.assertFalse(self.run_dir.exists())

    @unittest.skipUnless(HAS_PROMETHEUS, "this build has no Prometheus")
    def test_places_that_cannot_be(self):
        for flags, code, part in ((["--metrics-address", "127.0.0.1"], 78, "--metrics-port"),
                                  (["--metrics-port", "70000"], 78, "65535"),
                                  (["--metrics-port", "9400", "--metrics-address", "node0"], 78, "is no IP address"),
                                  (["--metrics-port", "9400", "--metrics-address", "192.0.2.1"], 78, "192.0.2.1:9400")):
            with self.subTest(flags):
                self.assert_fails(run(*self.train(50, *flags)), code, part)
                self.assertFalse(self.run_dir.exists())

    @unittest.skipIf(HAS_PROMETHEUS, "this build has Prometheus")
    def test_a_build_without_it_says_so(self):
        self.assert_fails(run(*self.train(50, "--metrics-port", "0")), 78, "prometheus-cpp")

    def drip(self, port, process):
        """A byte of a request now and then, for as long as the process lives."""
        with contextlib.suppress(OSError), socket.create_connection(("::1", port), timeout=5) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
            while process.popen.poll() is None:
                connection.sendall(b"x")
                time.sleep(0.2)

    @unittest.skipUnless(HAS_PROMETHEUS, "this build has no Prometheus")
    def test_a_free_port_on_another_address_serves_metrics_alone(self):
        with Process([os.environ["FUSEDBUN_BINARY"],
                      *self.train(1_000_000, "--metrics-port", "0", "--metrics-address", "::1")]) as process:
            self.wait_for_steps(3)
            log = (self.run_dir / "train.log").read_text()
            port = int(re.search(r"metrics: http://\[::1\]:(\d+)/metrics", log).group(1))
            status, kind, text = fetch(port, address="::1")
            self.assertEqual((status, kind.split(";")[0]), (200, "text/plain"))
            self.assertIn("fusedbun_world_size 1\n", text)
            self.assertEqual(fetch(port, "/", address="::1")[0], 404)
            # Who never ends a request holds neither steps nor the end of the run up.
            drip = threading.Thread(target=self.drip, args=(port, process), daemon=True)
            drip.start()
            time.sleep(1)
            with self.assertRaises(OSError):
                fetch(port)
            # The same command elsewhere must not go there: a port is one run's.
            process.signal(signal.SIGTERM)
            self.assertEqual(process.result(10).code, 75)
        drip.join()
        again = run("train", "--config", self.run_dir / "run.json", "--run-dir", self.folder / "again", "--print-config")
        self.assertNotRegex(again.out, r"(?m)^metrics-port")


class Rules(unittest.TestCase):
    @unittest.skipUnless(shutil.which("promtool"), "promtool (Debian's prometheus) is not installed")
    def test_alerts(self):
        for words in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
            checked = subprocess.run(["promtool", *words], cwd=MONITORING, capture_output=True, text=True, timeout=60)
            self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)

    def test_the_dashboard_is_what_its_program_writes(self):
        self.assertEqual(subprocess.run([sys.executable, MONITORING / "dashboard.py", "--check"], timeout=60).returncode, 0,
                         "run deploy/monitoring/dashboard.py")


class Prometheus:
    """A real one on a free port, which asks `target` four times a second."""

    def __init__(self, folder, target):
        self.port = free_port()
        config = folder / "prometheus.yml"
        config.write_text(json.dumps({  # JSON is YAML
            "global": {"scrape_interval": f"{int(SCRAPES_SECONDS * 1000)}ms", "evaluation_interval": "500ms"},
            "rule_files": [str(MONITORING / "alerts.yaml")],
            "scrape_configs": [{"job_name": "fusedbun", "static_configs": [{"targets": [target]}]}]}))
        self.words = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}", "--log.level=warn",
                      f"--web.listen-address=127.0.0.1:{self.port}"]

    @contextlib.contextmanager
    def running(self):
        with Process(self.words):
            wait_until(self.answers, 20, "Prometheus is ready")
            yield self

    def answers(self):
        try:
            return fetch(self.port, "/-/ready")[0] == 200
        except OSError:
            return False

    def get(self, what, **parameters):
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression, at=None):
        """[(labels, value)]"""
        parameters = {"query": expression} | ({"time": f"{at:.3f}"} if at else {})
        return [(series["metric"], float(series["value"][1])) for series in self.get("query", **parameters)["result"]]

    def by_rank(self, expression, at=None):
        return {labels["rank"]: value for labels, value in self.query(expression, at)}


@unittest.skipUnless(HAS_PROMETHEUS, "this build has no Prometheus")
@unittest.skipUnless(shutil.which("prometheus"), "prometheus is not installed")
class Scraped(TrainingTestCase):
    def test_a_run_of_two_ranks(self):
        port = free_port()
        words = self.train(1_000_000, "--metrics-port", port, "--heartbeat", "0.1", "--checkpoint-every", "1s", "--weight-decay", "0.01",
                           *MODEL)
        with bare_ranks(2, words) as ranks, Prometheus(self.folder, f"127.0.0.1:{port}").running() as prometheus:
            self.wait_for_steps(5)
            self.assertEqual(run("set", "lr=0.00123", "--wait", "--run-dir", self.run_dir).code, 0)
            wait_until(lambda: prometheus.query("fusedbun_config_revision == 1 and fusedbun_checkpoints_total > 1"), 30,
                       "the change and a checkpoint in Prometheus")
            # Rates over two seconds want as many scrapes.
            wait_until(lambda: prometheus.query(f"count_over_time(fusedbun_world_size[1m]) > {3 / SCRAPES_SECONDS}"), 30, "enough scrapes")
            at = time.time() - 2 * SCRAPES_SECONDS
            self.check_values(prometheus, at, ranks)
            self.check_dashboard(prometheus)
            self.check_rules(prometheus)
            self.check_straggler(prometheus, ranks)
            ranks[0].signal(signal.SIGTERM)
            self.assertEqual([process.result(30).code for process in ranks], [75, 75])

    def check_values(self, prometheus, at, ranks):
        """What one scrape says is what metrics.jsonl says of its step."""
        def value(name):
            (_, only), = prometheus.query(name, at)
            return only

        step = int(value("fusedbun_step")) - 1
        line = next(line for line in metrics(self.run_dir) if line["step"] == step and "loss" in line)
        for name, key in (("loss", "loss"), ("grad_norm", "grad_norm"), ("tokens_per_second", "tokens_per_second"),
                          ("config_revision", "revision"), ("skipped_steps_total", "skipped")):
            self.assertAlmostEqual(value(f"fusedbun_{name}"), line[key], delta=1e-14 * abs(line[key]), msg=name)  # of 17 digits 16 are sent
        rates = {labels["group"]: rate for labels, rate in prometheus.query("fusedbun_learning_rate", at)}
        self.assertEqual(rates, {"default": line["lr"], "no_decay": line["lr"]})
        self.assertEqual(line["lr"], 0.00123)
        validation = next(line for line in metrics(self.run_dir) if "validation_loss" in line)
        self.assertEqual(value("fusedbun_validation_loss"), validation["validation_loss"])
        self.assertEqual(value("fusedbun_steps_total"), step + 1)
        self.assertEqual(value("fusedbun_tokens_total"), (step + 1) * TOKENS_PER_STEP)
        self.assertEqual(value("fusedbun_step_duration_seconds_count"), step + 1)
        self.assertEqual(value("fusedbun_planned_steps"), 1_000_000)
        self.assertEqual((value("fusedbun_world_size"), value("up")), (2, 1))
        self.assertLess(abs(value("fusedbun_last_step_timestamp_seconds") - at), 2)

        saved = {int(number): (float(megabytes), float(seconds)) for number, megabytes, seconds in re.findall(
            r"checkpoint of step (\d+) is durable: ([\d.]+) MB in ([\d.]+) s", (self.run_dir / "train.log").read_text())}
        megabytes, seconds = saved[int(value("fusedbun_checkpoint_step"))]
        self.assertAlmostEqual(value("fusedbun_checkpoint_bytes") / 1e6, megabytes, delta=0.06)
        self.assertAlmostEqual(value("fusedbun_checkpoint_duration_seconds"), seconds, delta=0.006)
        self.assertLess(at - value("fusedbun_checkpoint_last_success_timestamp_seconds"), 10)

        pids = {labels["rank"]: int(labels["pid"]) for labels, _ in prometheus.query("fusedbun_rank_info", at)}
        self.assertEqual(pids, {"0": ranks[0].pid, "1": ranks[1].pid})
        self.assertEqual(prometheus.by_rank("fusedbun_rank_alive", at), {"0": 1, "1": 1})
        self.assertTrue(all(age < 2 for age in prometheus.by_rank("fusedbun_peer_heartbeat_age_seconds", at).values()))
        for rank, resident in prometheus.by_rank("fusedbun_rank_resident_memory_bytes", at).items():
            pages = int(Path(f"/proc/{pids[rank]}/statm").read_text().split()[1])
            self.assertAlmostEqual(resident / (pages * os.sysconf("SC_PAGESIZE")), 1, delta=0.2)
        self.assertTrue(all(sent > 0 for sent in prometheus.by_rank("fusedbun_comm_sent_bytes_total", at).values()))
        # All of a rank's time is in some phase: over two seconds it adds up to two seconds.
        for part in prometheus.by_rank("sum by (rank) (rate(fusedbun_phase_seconds_total[2s]))", at).values():
            self.assertAlmostEqual(part, 1, delta=0.3)
        started = float(Path(f"/proc/{ranks[0].pid}").stat().st_mtime)
        self.assertLess(abs(value('process_start_time_seconds{job="fusedbun"}') - started), 5)

    def check_dashboard(self, prometheus):
        panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
        queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
        self.assertGreater(len(queries), 20)
        for query in queries:
            shown = query.replace("$instance", ".*").replace("$__rate_interval", "3s")
            self.assertTrue(prometheus.query(shown), f"no data for {shown}")

    def check_rules(self, prometheus):
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        self.assertEqual({rule["health"] for rule in rules}, {"ok"}, rules)
        self.assertEqual([rule["name"] for rule in rules if rule.get("alerts")], [], "a run that is well raises nothing")

    def check_straggler(self, prometheus, ranks):
        """Rank 1 shares its processor with others: rank 0 waits for it, and the rule says which one it is."""
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        waits = next(rule["query"] for rule in rules if rule["name"] == "fusedbun:rank_waits:ratio_rate5m")
        straggler = next(rule["query"] for rule in rules if rule["name"] == "FusedbunStraggler")
        straggler = straggler.replace("fusedbun:rank_waits:ratio_rate5m", f"({waits})").replace("[5m]", "[3s]")
        first, second = sorted(os.sched_getaffinity(0))[:2]
        for rank, processor in zip(ranks, (first, second)):
            for thread in Path(f"/proc/{rank.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {processor})
        others = [Process([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{second}}})\nwhile True: pass"]) for _ in range(3)]
        with others[0], others[1], others[2]:
            time.sleep(5)
        parts = prometheus.by_rank(waits.replace("[5m]", "[3s]"))
        self.assertGreater(parts["0"], 0.5, parts)
        self.assertLess(parts["1"], parts["0"], parts)
        self.assertEqual(list(prometheus.by_rank(straggler)), ["1"], parts)


if __name__ == "__main__":
    unittest.main()
