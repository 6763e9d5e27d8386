"""JAX over several machines, with no coordinator's address typed.

    import mingled.jax
    cfg = mingled.jax.initialize("bert", world_size=4)     # the same line on every machine

JAX itself is imported when this is called.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from typing import Any

from mingled.errors import BadInput
from mingled.frameworks.ddp import TIMEOUT_S, DdpConfig, join
from mingled.frameworks.dialects.jax import coordinator_address, local_device_ids
from mingled.frameworks.environment import defaults

FOUND = ("coordinator_address", "num_processes", "process_id")
"""Arguments of `jax.distributed.initialize` that are not typed."""


def initialize(
    job: str,
    *,
    nnodes: int | None = None,
    world_size: int | None = None,
    rank: int | None = None,
    timeout: float | None = TIMEOUT_S,
    wait: bool = True,
    any_user: bool = False,
    interface: str | None = None,
    subnet: str | None = None,
    peers: str | None = None,
    require_same: str | None = None,
    secret_file: str | None = None,
    **more: Any,
) -> DdpConfig:
    """Take part in a job, wait until everybody is here, then call `jax.distributed.initialize` with
    what was found: rank 0's address and port, the number of processes, and this one's ID. The lease
    lasts as `mingled.join` says of it.

    Give `nnodes` for one process per node, which uses all of its devices, or `world_size` for that
    many processes, several per node perhaps: each then takes one device of its node, in the order
    of their local ranks, unless `local_device_ids` says which (as does `JAX_LOCAL_DEVICE_IDS` in
    the environment, or `CUDA_VISIBLE_DEVICES` there, which has divided them already). With `nnodes`
    `rank` is the node's. `WORLD_SIZE` and `RANK` in the environment are their defaults. `timeout`
    is in seconds; None waits for ever. `wait` to `secret_file` are those of `mingled.join`, and
    `more` goes to `jax.distributed.initialize` as it is.

    Raises `BadInput` before anybody waits where JAX is not installed, or is initialized already,
    where no size is given, and for what is found and yet given; else what `mingled.join` and
    `jax.distributed.initialize` raise: where the latter fails, the others are told that this one is
    lost.
    """
    jax = _imported(job)
    given = [name for name in FOUND if name in more]
    if given:
        raise BadInput(
            f"job {job}: mingled.jax.initialize finds {', '.join(given)} itself; delete "
            f"{', '.join(given)}, or call jax.distributed.initialize alone"
        )
    if jax.distributed.is_initialized():
        raise BadInput(
            f"job {job}: jax.distributed is initialized already in this process; call "
            "jax.distributed.shutdown() first, or start a new process (in a notebook, a new kernel)"
        )
    if nnodes is not None and not isinstance(nnodes, int):
        raise BadInput(
            f"job {job}: nnodes={nnodes!r}: JAX starts with a fixed number of processes; want one "
            "number, as in nnodes=4"
        )
    if nnodes is None and world_size is None and not defaults(os.environ).get("WORLD_SIZE"):
        raise BadInput(
            f"job {job}: JAX must know how many processes there are; add world_size=W, or nnodes=N "
            "for one on each node, the same on every machine"
        )
    by_node = nnodes is not None
    cfg = join(
        job,
        nnodes=nnodes,
        world_size=world_size,
        rank=None if by_node else rank,
        node_rank=rank if by_node else None,
        timeout=timeout,
        wait=wait,
        any_user=any_user,
        interface=interface,
        subnet=subnet,
        peers=peers,
        require_same=require_same,
        secret_file=secret_file,
    )
    if cfg.interface is not None:
        _bind_gloo(cfg.interface)
    devices = local_device_ids(cfg.config, defaults(os.environ))
    if devices is not None:
        more.setdefault("local_device_ids", devices)
    cfg.apply()
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator_address(cfg.config),
            num_processes=cfg.world_size,
            process_id=cfg.rank,
            **more,
        )
    except BaseException as error:
        cfg.__exit__(type(error), error, error.__traceback__)
        raise
    return cfg


def _bind_gloo(interface: str) -> None:
    """On CPUs JAX's collectives are gloo's, at the address that the machine's own name stands for:
    none at all on many, 127.0.1.1 on any Debian. JAX has no setting for it, though its library has
    the argument (`jax/_src/xla_bridge.py`, `make_cpu_client`, JAX 0.10)."""
    library: Any = importlib.import_module("jaxlib._jax")
    make = getattr(library, "make_gloo_tcp_collectives", None)
    if make is None:
        return  # an older or a newer JAX: it goes by the name
    make = getattr(make, "func", make)  # of an earlier job of this process
    library.make_gloo_tcp_collectives = functools.partial(make, interface=interface)


def _imported(job: str) -> Any:
    if importlib.util.find_spec("jax") is None:
        raise BadInput(
            f"job {job}: JAX is not installed for {sys.executable}; pip install jax (for GPUs: "
            '"jax[cuda12]") there, or run the Python that has it'
        )
    return importlib.import_module("jax")
