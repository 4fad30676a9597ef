"""The files of deploy/ for clusters are what their systems take, and what they start is what fusedbun takes."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import kubeflow_trainer_api.models as trainer
import kubernetes_validate
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from job_process import run  # noqa: E402

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TOOLS = Path(sys.executable).parent
KUBERNETES = "1.31"


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def lost(given, kept, path=""):
    """What a model did not take of a document."""
    if isinstance(given, dict):
        return [where for key, value in given.items()
                for where in ([f"{path}.{key}"] if key not in kept else lost(value, kept[key], f"{path}.{key}"))]
    if isinstance(given, list):
        return [where for i, value in enumerate(given) for where in lost(value, kept[i], f"{path}[{i}]")]
    return [] if given == kept else [path]


class Kubernetes(unittest.TestCase):
    def ranks(self, words, environment=None):
        """What the launcher would set for its ranks, without what is of this machine; and the words of `train`."""
        at = words.index("--")
        result = run(*words[:at], "--dry-run", *words[at:], environment=environment)
        self.assertEqual(result.code, 0, result)
        wanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        lines = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in result.out.splitlines()]
        return [tuple(line[name] for name in wanted) for line in lines]

    def assert_trains(self, words):
        result = run(*words, "--print-config")
        self.assertEqual(result.code, 0, result)
        self.assertIn("typed", result.out)

    def test_the_job_is_valid_and_its_pods_are_one_job_of_four_ranks(self):
        for document in documents("job.yaml"):
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        service, _, job = documents("job.yaml")
        spec = job["spec"]["template"]["spec"]
        words = spec["containers"][0]["args"]
        self.assertEqual(spec["subdomain"], service["metadata"]["name"])
        self.assertEqual(service["spec"]["selector"], {"batch.kubernetes.io/job-name": job["metadata"]["name"]})
        self.assertIn(f"--nnodes={job['spec']['completions']}", words)
        self.assertIn(f"--master-addr={job['metadata']['name']}-0.{service['metadata']['name']}", words)
        found = [rank for pod in range(2) for rank in self.ranks([word.replace("$(NODE_RANK)", str(pod)) for word in words])]
        where = ("fusedbun-train-0.fusedbun-train", str(service["spec"]["ports"][0]["port"]))
        self.assertEqual(found, [(str(rank), "4", str(rank % 2), *where) for rank in range(4)])
        self.assert_trains(words[words.index("--") + 1:])
        claimed = {claim["persistentVolumeClaim"]["claimName"] for claim in spec["volumes"] if "persistentVolumeClaim" in claim}
        self.assertEqual(claimed, {"fusedbun-runs", "fusedbun-data"})

    def test_exit_codes_that_may_pass_come_back_and_others_end_the_job(self):
        rules = {code: rule["action"] for rule in documents("job.yaml")[2]["spec"]["podFailurePolicy"]["rules"]
                 for code in rule.get("onExitCodes", {}).get("values", [])}
        self.assertEqual({code for code, action in rules.items() if action == "Ignore"}, {75, 76})
        self.assertEqual({code for code, action in rules.items() if action == "FailJob"}, {64, 65, 77, 78, 79})

    def test_the_trainjob_is_what_kubeflow_knows_and_fusedbun_reads_what_it_sets(self):
        runtime, job = documents("trainjob.yaml")
        for document, model in ((runtime, trainer.TrainerV1alpha1TrainingRuntime), (job, trainer.TrainerV1alpha1TrainJob)):
            self.assertEqual(lost(document, model.from_dict(document).to_dict()), [])
        self.assertEqual(job["spec"]["runtimeRef"]["name"], runtime["metadata"]["name"])
        words = job["spec"]["trainer"]["args"]
        for node in range(2):
            petset = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "2", "PET_NODE_RANK": str(node), "PET_MASTER_ADDR": "first-node-0-0.first",
                      "PET_MASTER_PORT": "29400"}
            self.assertEqual(self.ranks(words, petset), [(str(2 * node + local), "4", str(local), "first-node-0-0.first", "29400")
                                                         for local in range(2)])
        self.assert_trains(words[words.index("--") + 1:])


class Others(unittest.TestCase):
    def check(self, *words):
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_container_files_have_no_fault_that_hadolint_knows(self):
        self.check(TOOLS / "hadolint", *sorted((DEPLOY / "container").glob("Containerfile*")))

    def test_yaml_is_well_kept(self):
        rules = "{extends: default, rules: {line-length: {max: 140}, document-start: disable, braces: {max-spaces-inside: 1}}}"
        self.check(TOOLS / "yamllint", "-d", rules, DEPLOY / "kubernetes")

    def test_the_batch_script_is_bash(self):
        self.check("bash", "-n", DEPLOY / "slurm" / "train.sbatch")

    def test_systemd_takes_the_unit(self):
        if shutil.which("systemd-analyze") is None:
            self.skipTest("systemd is not installed")
        with tempfile.TemporaryDirectory() as folder:
            unit = Path(folder) / "fusedbun@.service"
            text = (DEPLOY / "systemd" / "fusedbun@.service").read_text()
            unit.write_text(text.replace("/usr/local/bin/fusedbun", os.environ["FUSEDBUN_BINARY"]))
            self.check("systemd-analyze", "verify", unit)


if __name__ == "__main__":
    unittest.main()
