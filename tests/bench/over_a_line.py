#!/usr/bin/env python3
"""What a step takes beyond forward and backward on two hosts with a slow line between them: ours beside DDP over Gloo, in turns.

    tests/bench/over_a_line.py [--model 25m] [--rate 1gbit] [--rounds 3] [--steps 7] [--json]

The hosts are namespaces of this machine with a switch between them (tests/cluster/hosts.py); `tc tbf` lets each cable carry --rate in
each direction. 1 and 2 ranks a host, one thread each, float32 models (peer/contest.py); ours are the rows "messages, bf16 both
ways" of `fusedbun bench train`: "agreed" looks at all gradients before the first write and skips a step that is not finite, "in backward"
does not, as DDP and AdamW do not. DDP has gradients as bucket views and torch's fused AdamW (peer/rank.py). Ranks find one another by
RANK, WORLD_SIZE and MASTER_ADDR, as under torchrun. The ratio is that of one round; its median and spread are told.

Needs root, a release build, .venv of `deploy/install.sh test`, and a quiet machine: some ten minutes.
"""
import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "cluster"))
from hosts import CABLE, Hosts, missing  # noqa: E402
from peer import environment  # noqa: E402
from peer.contest import SIZES, TRAIN, Task  # noqa: E402
from peer.machine import machine  # noqa: E402
from peer.turns import outcome, rows_of  # noqa: E402

HOSTS, PORT = 2, 29500
ROWS = ("messages, bf16 both ways, agreed", "messages, bf16 both ways, in backward")
DDP_NAME = "DDP + AdamW fused"
DDP = next(peer for peer in TRAIN if (peer.wrap, peer.optimizer) == ("ddp", "adamw_fused"))
TIMEOUT_S = 900


@dataclass(frozen=True)
class Place:
    """Where a rank is."""

    rank: int
    local_rank: int
    per_host: int

    def environment(self):
        """As torchrun would set it."""
        return {"RANK": self.rank, "LOCAL_RANK": self.local_rank, "WORLD_SIZE": HOSTS * self.per_host,
                "LOCAL_WORLD_SIZE": self.per_host, "MASTER_ADDR": "node-0", "MASTER_PORT": PORT}


def on_hosts(hosts, per_host, words_of):
    """Runs words_of(place) for all ranks; the row that rank 0 prints."""
    commands = []
    for rank in range(HOSTS * per_host):
        place = Place(rank, rank % per_host, per_host)
        variables = environment.variables(1) | {"GLOO_SOCKET_IFNAME": CABLE} | place.environment()
        commands.append(hosts[rank // per_host].words("env", *(f"{name}={value}" for name, value in variables.items()), *words_of(place)))
    (row,) = rows_of("", *outcome(commands, {}, TIMEOUT_S))
    if "refused" in row:
        sys.exit(f"tests/bench/over_a_line.py: {row['refused']}")
    return row


def ours(row):
    """The turn of a row of `fusedbun bench train`."""
    return lambda chosen, hosts, per_host: on_hosts(hosts, per_host, lambda place: [
        chosen.binary, "bench", "train", "--model", chosen.model, "--only", row, "--rounds", 1, "--steps", chosen.steps, "--bucket-mib",
        chosen.bucket_mib, "--json"])


def ddp(chosen, hosts, per_host):
    task = Task("train", SIZES[chosen.model], chosen.steps, peer=DDP, world_size=HOSTS * per_host)
    with tempfile.TemporaryDirectory(prefix="fusedbun-line-") as folder:
        return on_hosts(hosts, per_host, lambda place: [
            environment.PROJECT / "bin/python", Path(__file__).with_name("peer") / "rank.py", json.dumps(task.to_json()), place.rank,
            f"{folder}/store"])


TURNS = {DDP_NAME: ddp} | {row: ours(row) for row in ROWS}


def measure(chosen):
    """{ranks a host: [a round: {contestant: its row}]}"""
    measured = {per_host: [] for per_host in chosen.ranks}
    for number in range(1, chosen.rounds + 1):
        for per_host in measured:
            rows = {}
            for name, take_turn in TURNS.items():
                with Hosts(HOSTS) as hosts:
                    for host in hosts:
                        host.shape(chosen.rate)
                    rows[name] = take_turn(chosen, hosts, per_host)
            measured[per_host].append(rows)
            print(f"round {number} of {chosen.rounds}, {per_host} a host: " +
                  "; ".join(f"{name} {row['not_forward_backward_ms']:.0f} ms" for name, row in rows.items()), file=sys.stderr)
    return measured


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def table(chosen, measured):
    lines = [f"| {chosen.model}, {HOSTS} hosts, {chosen.rate} | {DDP_NAME}, ms | " + " | ".join(f"{row}, ms | ratio" for row in ROWS) + " |",
             "| --- " * (2 + 2 * len(ROWS)) + "|"]
    for per_host, rounds in measured.items():
        beyond = {name: [row[name]["not_forward_backward_ms"] for row in rounds] for name in TURNS}
        cells = [f"{per_host} a host", spread(beyond[DDP_NAME], 0)]
        for row in ROWS:
            cells += [spread(beyond[row], 0), spread([our / their for our, their in zip(beyond[row], beyond[DDP_NAME])], 2)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="25m")
    parser.add_argument("--rate", default="1gbit", help="in tc's words")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="ranks a host")
    parser.add_argument("--bucket-mib", type=int, default=25, help="of ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--binary", default=str(environment.ROOT / "build/release/launcher/fusedbun"))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if why := missing():
        print(f"tests/bench/over_a_line.py: {why}", file=sys.stderr)
        return environment.CODE_UNAVAILABLE
    measured = measure(chosen)
    if chosen.json:
        print(json.dumps({"date": str(date.today()), "machine": machine(), "rounds": measured}, indent=1))
        return 0
    at = machine()
    print(f"{table(chosen, measured)}\n\n{date.today()}, {at['cores']}, {at['processor']}, {chosen.rounds} rounds of {chosen.steps} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
