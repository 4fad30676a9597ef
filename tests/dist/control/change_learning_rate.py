"""Changes the learning rate of a running job: change_learning_rate.py RUN_DIR LR. All that a client needs to know."""
import json
import sys
import uuid

import grpc
from fusedbun.control.v1 import control_pb2 as control
from fusedbun.control.v1 import control_pb2_grpc


def main(run_dir, learning_rate):
    with open(f"{run_dir}/control.json") as file:
        address = json.load(file)["address"]
    with grpc.insecure_channel(address) as channel:
        job = control_pb2_grpc.TrainingControlStub(channel)
        now = job.GetHyperparameters(control.GetHyperparametersRequest(name="jobs/-/hyperparameters"), timeout=10)
        patch = control.GroupPatch(group="*", values=control.HyperparameterValues(learning_rate=learning_rate))
        change = control.Change(patches=[patch], next_step=True, reason="from Python")
        answer = job.CreateChange(control.CreateChangeRequest(
            parent="jobs/-", change=change, etag=now.etag, request_id=str(uuid.uuid4())), timeout=10)
        print(f"{answer.name} is used from step {answer.effective_step} on")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
