"""What kubelet and collectors of logs get: gRPC health at a port of its own, and JSON lines."""

import json
import signal
import socket
import sys
import unittest
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
from bare_ranks import bare_ranks, free_port  # noqa: E402
from job_process import run, start, wait_until  # noqa: E402
from training import TrainingTestCase  # noqa: E402

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Stopped ranks are lost only long after what is looked at here.
PATIENT = ["--heartbeat", "0.1", "--stall-timeout", "1", "--lost-timeout", "30"]


class HealthPort(TrainingTestCase):
    def setUp(self):
        super().setUp()
        self.port = free_port()

    def check(self, service, address="127.0.0.1"):
        """As kubelet asks: in plaintext, with a deadline."""
        with grpc.insecure_channel(f"{address}:{self.port}") as channel:
            try:
                return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=2).status
            except grpc.RpcError as error:
                return error.code()

    def test_liveness_and_progress(self):
        with bare_ranks(2, [*self.train(1_000_000), *PATIENT, "--health-port", str(self.port)]) as ranks:
            wait_until(lambda: self.check("") == SERVING, 30, "liveness")
            self.wait_for_steps(5)
            wait_until(lambda: self.check("fusedbun.progress") == SERVING, 10, "progress")
            self.assertEqual(self.check(""), SERVING)
            self.assertEqual(self.check("", "[::1]"), SERVING, "pods may have IPv6 addresses alone")
            self.assertEqual(self.check("fusedbun.control.v1.TrainingControl"), grpc.StatusCode.NOT_FOUND)
            with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
                for method in ("/fusedbun.control.v1.TrainingControl/GetJob", "/fusedbun.control.v1.TrainingControl/StopJob"):
                    with self.assertRaises(grpc.RpcError) as refused:
                        channel.unary_unary(method)(b"", timeout=2)
                    self.assertEqual(refused.exception.code(), grpc.StatusCode.UNIMPLEMENTED)
                with self.assertRaises(grpc.RpcError) as refused:
                    ask = reflection_pb2.ServerReflectionRequest(list_services="")
                    list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]), timeout=2))
                self.assertEqual(refused.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

            ranks[1].signal(signal.SIGSTOP)
            wait_until(lambda: self.check("fusedbun.progress") == NOT_SERVING, 10, "the stall")
            self.assertEqual(self.check(""), SERVING, "it lives")
            ranks[1].signal(signal.SIGCONT)
            wait_until(lambda: self.check("fusedbun.progress") == SERVING, 10, "steps again")
            ranks[0].signal(signal.SIGTERM)
            self.assertEqual([process.result(30).code for process in ranks], [75, 75])
        self.assertEqual(self.check(""), grpc.StatusCode.UNAVAILABLE)

    def test_a_port_in_use_is_refused_before_anything_is_trained(self):
        with socket.socket() as taken:
            taken.bind(("0.0.0.0", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.assert_fails(run("launch", "-n", "2", "--", *self.train(50, "--health-port", port)), 69, str(port))
            self.assertFalse(self.run_dir.exists())
        self.assert_fails(run(*self.train(50, "--health-port", "65536")), 78, "--health-port = 65536")


class LogJson(TrainingTestCase):
    def records(self, text):
        return [json.loads(line) for line in text.splitlines()]

    def test_all_that_two_ranks_print_is_json(self):
        with start("launch", "-n", "2", "--", *self.train(30, "--log-json", "")) as process:
            result = process.result()
        self.assertEqual(result.code, 0, result)
        records = self.records(result.err)
        self.assertEqual({(record["level"], record["rank"]) for record in records}, {("info", 0)})
        messages = [record["message"] for record in records]
        self.assertTrue(any(message.startswith("run folder: ") for message in messages), messages)
        self.assertEqual([line for line in (self.run_dir / "train.log").read_text().splitlines() if line not in messages], [])
        last = next(record for record in reversed(records) if "step" in record)
        self.assertEqual((last["step"], last["total_steps"]), (29, 30))
        (end,) = self.records(result.out)
        self.assertEqual((end["steps"], end["model"]), (30, str(self.run_dir / "model.safetensors")))

    def test_so_is_what_went_wrong(self):
        result = run(*self.train(30, "--log-json", "", "--batch", "0"))
        (record,) = self.records(result.err)
        self.assertEqual((result.code, record["exit_code"], record["level"]), (78, 78, "error"))
        self.assertIn("--batch = 0", record["message"])
        self.assertEqual(result.out, "")


if __name__ == "__main__":
    unittest.main()
