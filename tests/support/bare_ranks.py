"""The ranks of one job as children of the test itself: no launcher between, so each one's process id and exit code are known."""

import contextlib
import random
import socket

from job_process import start

QUICK = ["--heartbeat", "0.1", "--stall-timeout", "0.4", "--lost-timeout", "1"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def bare_ranks(count, words):
    """Starts `fusedbun <words>` as `count` ranks and gives the processes, by rank; kills what is left of them at the end."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(start(*words, environment={
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})) for rank in range(count)]


def seeded(environment):
    """A source of random numbers; its seed is printed, and FUSEDBUN_TEST_SEED repeats it."""
    seed = int(environment.get("FUSEDBUN_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"FUSEDBUN_TEST_SEED={seed}", flush=True)
    return random.Random(seed)
