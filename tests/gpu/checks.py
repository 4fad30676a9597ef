"""The stages that check: what each compares is in README.md."""

import functools
import json
import shutil

from figures import spread
from machine import REHEARSE, ROOT, output_of, sanitizer_program
from programs import BUILD, Failed, NotRun, rehearsing, run


def check(build, program, *words):
    path = build.wait_for(f"tests/gpu/{program}")
    return json.loads(run([path, *words, *rehearsing()], 90))


def train(build, device, steps, seconds, ranks=1):
    """One training run, all ranks on one card; (steps' losses, validation losses, tokens per second)."""
    fusedbun = build.wait_for("launcher/fusedbun")
    folder = BUILD / "runs" / f"{device}-{steps}-{ranks}"
    shutil.rmtree(folder, ignore_errors=True)
    together = ["launch", "-n", ranks, "--"] if ranks > 1 else []
    shared = ["--share-gpu"] if ranks > 1 and device == "cuda" else []
    run([fusedbun, *together, "train", *shared, "--steps", steps, "--warmup", 5, "--eval-every", 0, "--device", device, "--no-control",
         "--run-dir", folder, "--data", ROOT / "core", ROOT / "dist"], seconds)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return ([line["loss"] for line in lines if "loss" in line],
            [line["validation_loss"] for line in lines if "validation_loss" in line],
            [line["tokens_per_second"] for line in lines if "tokens_per_second" in line])


@functools.cache
def losses_on_cpu(build, steps):
    return train(build, "cpu", steps, 60)[0]


def train_stage(build):
    """The first steps give the CPU's losses; a longer run learns."""
    device, few, many = ("cpu", 3, 10) if REHEARSE else ("cuda", 20, 300)
    here, _, _ = train(build, device, few, 60)
    on_cpu = losses_on_cpu(build, few)
    apart = max(abs(a - b) for a, b in zip(here, on_cpu, strict=True))
    _, validation, speeds = train(build, device, many, 90)
    result = {"device": device, "steps_compared": few, "losses": here, "losses_on_cpu": on_cpu,
              "largest_difference": apart, "steps": many, "validation_loss": validation} | spread("tokens_per_second", speeds)
    if apart > 2e-3:
        raise Failed(f"the first {few} losses are up to {apart:.2g} from the CPU's", result)
    if not validation[-1] < 0.9 * validation[0]:
        raise Failed(f"validation loss went from {validation[0]:.3f} to {validation[-1]:.3f}", result)
    return result


def two_ranks_stage(build):
    """Two ranks on one card, over NCCL: the first steps give the losses of one rank on the CPU."""
    device, few = ("cpu", 3) if REHEARSE else ("cuda", 20)
    together, _, _ = train(build, device, few, 90, ranks=2)
    alone = losses_on_cpu(build, few)
    apart = max(abs(a - b) for a, b in zip(together, alone, strict=True))
    result = {"device": device, "steps_compared": few, "losses": together, "losses_of_one_on_cpu": alone, "largest_difference": apart}
    if apart > 2e-3:
        raise Failed(f"the first {few} losses of two ranks are up to {apart:.2g} from those of one on the CPU", result)
    return result


def graph_stage(build):
    """Agreement and update, captured in a CUDA graph and replayed, leave what they leave when they are launched."""
    build.wait_for("tests/gpu/gpu_graph_check")
    if REHEARSE:
        raise NotRun("a rehearsal: there is no CUDA graph without a GPU; the program is built")
    return check(build, "gpu_graph_check")


def sanitizer_stage(build):
    """The kernels read and write what is theirs, and do not race for shared memory."""
    program, tool = build.wait_for("tests/gpu/gpu_step_check"), sanitizer_program()
    if tool is None:
        raise NotRun("compute-sanitizer is neither beside nvcc nor on the PATH")
    result, wrong = {"tool": output_of(tool, "--version")}, []
    # Each tensor is an allocation, so that what is read behind its end is seen; LibTorch's kernels are not the subject.
    settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for what in ("memcheck", "racecheck"):
        log = BUILD / f"{what}.log"
        words = [tool, "--tool", what, "--error-exitcode", 9, "--report-api-errors", "no", "--kernel-name", "kns=fusedbun", "--log-file", log]
        if REHEARSE:
            run([*words, "--version"], 10)
            continue
        try:
            result[what] = json.loads(run([*words, program, "small"], 45, settings))
        except Failed as failed:
            wrong.append(f"{what}: {failed}")
            result[what] = failed.result or {}
        said = [line.strip("= ") for line in log.read_text(errors="replace").splitlines()] if log.exists() else []
        result[what]["said"] = said[:60]
        if not any("SUMMARY" in line for line in said):
            wrong.append(f"{what} does not say what it found")
    if wrong:
        raise Failed("; ".join(wrong), result)
    if REHEARSE:
        run([program, "small", "--rehearse"], 45)
        raise NotRun("a rehearsal: without a GPU the tool starts no program; it took its options, and the cases ran without it")
    return result
