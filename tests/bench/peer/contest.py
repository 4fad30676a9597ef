"""Who takes part, on which models (those of launcher/bench), for how many steps. Data, without torch."""

from dataclasses import asdict, dataclass

WORLD_SIZE = 2
CHECK_STEPS = 6  # whole steps on one batch before anything is timed; the loss must fall
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Size:
    """A GPT-2-shaped model, the sequences per rank and step, and how many steps one turn of each part times."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    batch: int
    train_steps: int
    optimizer_steps: int
    exchange_steps: int
    positions: int = 128  # rows of the position table
    context: int = 128  # tokens of a sequence


SIZES = {
    "3m": Size(4, 256, 4, 256, batch=4, train_steps=30, optimizer_steps=100, exchange_steps=60),
    "25m": Size(8, 512, 8, 256, batch=2, train_steps=12, optimizer_steps=30, exchange_steps=20),
    "124m": Size(12, 768, 12, 50257, batch=1, train_steps=6, optimizer_steps=8, exchange_steps=8, positions=1024),
}


@dataclass(frozen=True)
class Peer:
    name: str
    wrap: str  # a function of sharding.py
    optimizer: str  # a key of optimizers.MAKERS


TRAIN = [
    Peer("DDP + AdamW fused", "ddp", "adamw_fused"),
    Peer("DDP + AdamW foreach", "ddp", "adamw_foreach"),
    Peer("DDP + SGD momentum fused", "ddp", "sgd_fused"),
    Peer("DDP + Adafactor", "ddp", "adafactor"),
    Peer("DDP + SM3 (pytorch_optimizer)", "ddp", "sm3"),
    Peer("DDP + plain Fusedbun, torch.compile", "ddp", "fusedbun_compiled"),
    Peer("DDP + ZeroRedundancyOptimizer(AdamW fused)", "zero_redundancy", "adamw_fused"),
    Peer("FSDP2 + AdamW fused", "fsdp2", "adamw_fused"),
    Peer("FSDP2, parameters kept after forward, + AdamW fused", "fsdp2_kept", "adamw_fused"),
    Peer("DeepSpeed ZeRO-1 + AdamW fused", "deepspeed_zero1", "adamw_fused"),
]

EXCHANGE = [
    Peer("all_reduce + AdamW fused", "all_reduce", "adamw_fused"),
    Peer("all_reduce + ZeroRedundancyOptimizer(AdamW fused)", "all_reduce_zero_redundancy", "adamw_fused"),
]

OPTIMIZERS = {
    "AdamW fused": "adamw_fused",
    "AdamW foreach": "adamw_foreach",
    "SGD momentum fused": "sgd_fused",
    "Adafactor": "adafactor",
    "SM3 (pytorch_optimizer)": "sm3",
    "plain Fusedbun, torch.compile": "fusedbun_compiled",
}
OPTIMIZER_THREADS = (1, 2)


@dataclass(frozen=True)
class Task:
    """What one process of a contestant is told."""

    part: str  # train, step or exchange
    size: Size
    steps: int
    threads: int = 1
    peer: Peer | None = None  # None for step, where one process holds all optimizers
    world_size: int = WORLD_SIZE

    def to_json(self):
        return asdict(self)

    @staticmethod
    def of_json(values):
        peer = Peer(**values["peer"]) if values["peer"] else None
        return Task(values["part"], Size(**values["size"]), values["steps"], values["threads"], peer, values["world_size"])
