"""A Python client against a live job: python_client_test.py FAKE_JOB PROTO_FOLDER SCRATCH_FOLDER."""
import os
import re
import subprocess
import sys
import tempfile

import grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc

fake_job, proto, scratch = sys.argv[1:]
os.makedirs(scratch, exist_ok=True)
contract = "fusedbun/control/v1/control.proto"
builtin = os.path.join(os.path.dirname(protoc.__file__), "_proto")
code = protoc.main(["", f"-I{proto}", f"-I{builtin}", f"--python_out={scratch}", f"--grpc_python_out={scratch}", contract])
assert code == 0, "protoc failed"

with tempfile.TemporaryDirectory() as run_dir:
    job = subprocess.Popen([fake_job, run_dir], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address = job.stdout.readline().strip()
        assert address.startswith("unix:"), address
        with grpc.insecure_channel(address) as channel:
            reflected = ProtoReflectionDescriptorDatabase(channel)
            services = set(reflected.get_services())
            assert {"fusedbun.control.v1.TrainingControl", "grpc.health.v1.Health"} <= services, services
            described = reflected.FindFileContainingSymbol("fusedbun.control.v1.TrainingControl")
            assert described.name == contract and len(described.service[0].method) == 18, described.name
        client = os.path.join(os.path.dirname(os.path.abspath(__file__)), "change_learning_rate.py")
        environment = dict(os.environ, PYTHONPATH=scratch)
        said = subprocess.run([sys.executable, client, run_dir, "0.125"], env=environment, text=True,
                              stdout=subprocess.PIPE, timeout=30, check=True).stdout
        print(said, end="")
        step = int(re.fullmatch(r"jobs/test/changes/1 is used from step (\d+) on\n", said).group(1))
        refused = subprocess.run([sys.executable, client, run_dir, "nan"], env=environment, text=True,
                                 stderr=subprocess.PIPE, timeout=30)
        assert refused.returncode != 0 and "INVALID_ARGUMENT" in refused.stderr, refused.stderr
        rates = [float(line) for line in job.communicate(timeout=10)[0].split()]
    finally:
        job.kill()
        job.wait()
assert len(rates) > step, "the job ended before the change was used"
assert rates == [0.001] * step + [0.125] * (len(rates) - step), f"the steps around {step} used {rates[step - 2:step + 2]}"
