"""A job that is killed while clients change things, again and again in one run folder: crash_test.py FAKE_JOB PROTO SCRATCH.

Every change that was answered is there afterwards, with its revision, step and content; none is there twice. The moments of
the kills are random; FUSEDBUN_TEST_SEED repeats them as far as a clock can.
"""
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

import grpc
from grpc_tools import protoc

fake_job, proto, scratch = sys.argv[1:]
os.makedirs(scratch, exist_ok=True)
builtin = os.path.join(os.path.dirname(protoc.__file__), "_proto")
contract = "fusedbun/control/v1/control.proto"
code = protoc.main(["", f"-I{proto}", f"-I{builtin}", f"--python_out={scratch}", f"--grpc_python_out={scratch}", contract])
assert code == 0, "protoc failed"
sys.path.insert(0, scratch)
from fusedbun.control.v1 import control_pb2, control_pb2_grpc  # noqa: E402

ROUNDS, CLIENTS = 20, 4
seed = int(os.environ.get("FUSEDBUN_TEST_SEED", time.time_ns() % 2**32))
print(f"seed {seed} (replay: FUSEDBUN_TEST_SEED={seed})")
chance = random.Random(seed)


def change_until_killed(address, name, answered):
    """Changes something as fast as it goes, and notes what was answered: eps -> (revision, step)."""
    with grpc.insecure_channel(address) as channel:
        stub = control_pb2_grpc.TrainingControlStub(channel)
        for number in range(1_000_000):
            request = control_pb2.CreateChangeRequest(parent="jobs/-", etag="*", request_id=f"{name}.{number}")
            if number % 8 == 0:
                request.change.apply_at_step = 999_999
            eps = 1e-6 * (1 + number)
            patch = request.change.patches.add(group="*")
            patch.values.eps = eps
            try:
                change = stub.CreateChange(request, timeout=10)
                answered.append((change.revision, change.effective_step, eps, request.request_id))
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                    continue  # 1,024 wait for the far step
                return


def all_changes(address):
    with grpc.insecure_channel(address) as channel:
        stub = control_pb2_grpc.TrainingControlStub(channel)
        changes, token = [], ""
        while True:
            page = stub.ListChanges(control_pb2.ListChangesRequest(parent="jobs/-", page_size=1000, page_token=token))
            changes += page.changes
            token = page.next_page_token
            if not token:
                return changes


with tempfile.TemporaryDirectory() as run_dir:
    answered = []
    for kill in range(ROUNDS + 1):
        job = subprocess.Popen([fake_job, run_dir], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            address = job.stdout.readline().strip()
            assert address.startswith("unix:"), f"attempt {kill + 1} did not start: {address}"
            changes = all_changes(address)
            assert [change.revision for change in changes] == list(range(1, len(changes) + 1))
            for revision, step, eps, request_id in answered:
                change = changes[revision - 1]
                assert (change.effective_step, change.patches[0].values.eps) == (step, eps), (request_id, change)
            if kill == ROUNDS:
                break
            threads = [threading.Thread(target=change_until_killed, args=(address, f"{kill}.{i}", answered))
                       for i in range(CLIENTS)]
            for thread in threads:
                thread.start()
            time.sleep(chance.uniform(0.01, 0.15))
            job.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()
        finally:
            job.kill()
            job.communicate()
    unanswered = len(changes) - len(answered)
    assert 0 <= unanswered <= ROUNDS * CLIENTS, unanswered
    print(f"{ROUNDS} kills: {len(answered)} changes answered, all there; {unanswered} there without an answer")
    assert len(answered) > 10 * ROUNDS
