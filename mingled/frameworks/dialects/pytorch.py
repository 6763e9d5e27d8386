"""torch and what stands on it: torch itself, torchrun, Accelerate, Lightning.

Read by `torch.distributed` (`env://`), `torch/distributed/run.py` (`PET_*`), Accelerate's
`PartialState` (`accelerate/state.py`) and Lightning's `LightningEnvironment`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from mingled.core.config import Config
from mingled.core.words import Form
from mingled.frameworks.dialects.model import ALL, SIZED, Dialect, Given, Spoken, one_process
from mingled.frameworks.environment import VARIABLES

Value = Callable[[Config, Given], str | int | None]


def _single(value: Callable[[Config], int]) -> Value:
    """Known where the participant is one process; of several each has its own."""

    def of(config: Config, given: Given) -> int | None:
        return value(config) if one_process(config) else None

    return of


def _sized(value: Callable[[Config], int]) -> Value:
    """The same, and nobody knows it in the plain form."""

    def of(config: Config, given: Given) -> int | None:
        known = config.form is not Form.PLAIN and one_process(config)
        return value(config) if known else None

    return of


ADDRESS = (
    Spoken("MASTER_ADDR", "literal IP of rank 0's node", lambda c, g: c.master_addr),
    Spoken("MASTER_PORT", "TCP port of the store on rank 0", lambda c, g: c.master_port),
)

NODE_RANK = Spoken(
    "NODE_RANK",
    "this node's place among the nodes",
    lambda c, g: None if c.form is Form.PLAIN else c.node_rank,
)

PROCESS = (
    *ADDRESS,
    Spoken("RANK", "global rank of this process", _single(lambda c: c.global_rank)),
    Spoken("WORLD_SIZE", "processes in the job", _sized(lambda c: c.world_size)),
    Spoken("LOCAL_RANK", "rank among this node's processes", _sized(lambda c: c.local_rank)),
    Spoken("LOCAL_WORLD_SIZE", "processes on this node", _sized(lambda c: c.local_world_size)),
    NODE_RANK,
)
"""What one process of torch reads."""

TORCH = Dialect(
    name="torch",
    reader='`torch.distributed.init_process_group()`, as `init_method="env://"`',
    forms=ALL,
    one_process=True,
    variables=PROCESS,
)


def _torchrun(source: str) -> Value:
    return lambda config, given: str(getattr(config, source))


TORCHRUN = Dialect(
    name="torchrun",
    reader="`torchrun`, `python -m torch.distributed.run`",
    forms=frozenset({Form.LAUNCHER}),
    variables=tuple(
        Spoken(v.name, v.meaning, _torchrun(v.source))
        for v in VARIABLES
        if v.name.startswith("PET_") and isinstance(v.source, str)
    ),
)

ACCELERATE = Dialect(
    name="accelerate",
    reader="Accelerate's `PartialState`, hence `Accelerator()`",
    forms=SIZED,
    one_process=True,
    variables=PROCESS,
)


def _even(config: Config) -> str | None:
    """Lightning computes each global rank as node rank x processes per node + local rank."""
    if config.form is not Form.PROCESS:
        return None
    on_node = Counter(m.node_rank for m in config.members)
    if len(set(on_node.values())) > 1:
        hosts = {m.node_rank: m.host for m in config.members}
        counts = ", ".join(f"{n} on {hosts[rank]}" for rank, n in sorted(on_node.items()))
        return f"wants the same number of processes on every node, and there are {counts}"
    each = next(iter(on_node.values()), 1)
    for m in config.members:
        if m.rank != m.node_rank * each + m.local_index:
            return (
                f"wants the ranks of a node side by side, and rank {m.rank} is on {m.host}; leave "
                "--rank out on every node, or use torchrun"
            )
    return None


LIGHTNING = Dialect(
    name="lightning",
    reader="Lightning's `LightningEnvironment`: `Trainer(num_nodes=...)`, `Fabric(...)`. In the "
    "launcher form Lightning itself starts the processes of its node (`devices=...`)",
    forms=SIZED,
    variables=(
        *ADDRESS,
        NODE_RANK,
        Spoken(
            "LOCAL_RANK",
            "rank among this node's processes",
            lambda c, g: c.local_rank if c.form is Form.PROCESS else None,
        ),
    ),
    check=_even,
)
