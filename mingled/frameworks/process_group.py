"""torch's process group for a job: `mingled.torch.init_process_group`, and `mingle://` URLs.

Rank 0's own store is open before its round is sealed, and the others connect to it: nobody knocks
too early, and no port is chosen that somebody else may take. Each round gets a new store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mingled.errors import BadInput
from mingled.frameworks.ddp import TIMEOUT_S, DdpConfig, join
from mingled.frameworks.store import CONNECT_S, Opening, connect_store, distributed
from mingled.frameworks.torch_errors import as_torch
from mingled.frameworks.url import SCHEME, parameters

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup, Store, TCPStore

Seconds = float | timedelta

_PREFIX = "default_pg"
"""What torch puts before the keys of the default group where it does the rendezvous itself: so
those who come by `env://` and those who come by us understand each other."""


class _Group:
    """What belongs to a job's newest round in this process."""

    def __init__(self, config: DdpConfig, store: TCPStore) -> None:
        self.config = config
        # Rank 0's listens as long as this refers to it: beyond the process group, so that the
        # others may still end theirs, until the next round's takes its place.
        self.store = store


_GROUPS: dict[str, _Group] = {}
"""By job."""


def init_process_group(
    backend: str | None = None,
    *,
    job: str,
    timeout: Seconds | None = None,
    world_size: int | None = None,
    rank: int | None = None,
    group_name: str = "",
    pg_options: Any = None,
    device_id: torch.device | int | None = None,
    join_timeout: Seconds | None = None,
    wait: bool = True,
    any_user: bool = False,
    interface: str | None = None,
    subnet: str | None = None,
    peers: str | None = None,
    require_same: str | None = None,
    secret_file: str | None = None,
) -> DdpConfig:
    """`torch.distributed.init_process_group` for a job: wait until all are here, then make the
    default process group. Returns who this process is, as `mingled.join` does.

    `backend`, `group_name`, `pg_options` and `device_id` are torch's own. `world_size` counts the
    processes; it and `rank` default to `WORLD_SIZE` and `RANK` in the environment, and without a
    rank one is handed out. `timeout` (seconds, or a timedelta) is torch's: what a collective may
    take. `join_timeout` is for the wait; without it `timeout` is, and without both 10 minutes. The
    rest is as for `mingled.join`.

    `os.environ` gets everything that `DdpConfig.apply` sets, before the group is made: `LOCAL_RANK`
    for the choice of a GPU, and the interface for Gloo and NCCL unless the user named one.

    To begin anew call `destroy_process_group` and then this again, in every process of the job.

    Raises as `mingled.join`, `BadInput` also where torch cannot be used, `Lost` where rank 0 ended
    meanwhile, and what torch raises while it makes the group; then this process is lost to the job.
    """
    dist = distributed()
    _check(dist, backend, job)
    group_s = _seconds(job, "timeout", timeout)
    wait_s = _seconds(job, "join_timeout", join_timeout) or group_s or TIMEOUT_S
    options = {
        "world_size": world_size,
        "rank": rank,
        "wait": wait,
        "any_user": any_user,
        "interface": interface,
        "subnet": subnet,
        "peers": peers,
        "require_same": require_same,
        "secret_file": secret_file,
    }
    config, store = _meet(job, wait_s, options)
    store.set_timeout(dist.default_pg_timeout if group_s is None else timedelta(seconds=group_s))
    try:
        dist.init_process_group(
            backend,
            timeout=None if group_s is None else timedelta(seconds=group_s),
            world_size=config.world_size,
            rank=config.rank,
            store=dist.PrefixStore(_PREFIX, store),
            group_name=group_name,
            pg_options=pg_options,
            device_id=device_id,
        )
    except BaseException as error:
        config.fail(f"no process group: {type(error).__name__}")
        raise
    return config


def destroy_process_group(group: ProcessGroup | None = None) -> None:
    """torch's own; with the default group this process also leaves its jobs, which the others are
    told. torch's alone leaves the others in the belief that this one still takes part, until the
    process ends or joins again."""
    dist = distributed()
    whole = group is None or group == dist.group.WORLD
    dist.destroy_process_group(group)
    if whole:
        for joined in _GROUPS.values():
            joined.config.leave()


def rendezvous(
    url: str, timeout: timedelta | None = None, **_torchs: object
) -> Iterator[tuple[Store, int, int]]:
    """torch's handler of `mingle://JOB?world_size=4`: yields store, rank and world size, once.

    What else the URL may say is what `mingled.join` takes for one process: `rank`, `timeout` (in
    seconds, for the wait; without it torch's), `any_user`, `wait`, `interface`, `subnet`, `peers`,
    `secret_file`.

    Raises `ValueError` for a URL that cannot work and `torch.distributed.DistError` for the rest,
    with our own error as the cause.
    """
    with as_torch():
        job, options = parameters(url)
        limit_s = TIMEOUT_S if timeout is None else timeout.total_seconds()
        wait_s = options.pop("timeout", limit_s)
        config, store = _meet(job, wait_s, options)
    yield store, config.rank, config.world_size
    raise RuntimeError(f"Unable to perform re-rendezvous using {SCHEME}:// method")


def register() -> None:
    """Make `mingle://` known to torch. Raises `BadInput` without torch. Idempotent."""
    distributed()
    from torch.distributed.rendezvous import register_rendezvous_handler

    with suppress(RuntimeError):  # it is registered already, as after importlib.reload
        register_rendezvous_handler(SCHEME, rendezvous)


# ---------------------------------------------------------------- helpers


def _meet(job: str, wait_s: float, options: dict[str, Any]) -> tuple[DdpConfig, TCPStore]:
    """Join, and the store of that round: opened here as rank 0, else connected to."""
    opened: list[Opening] = []

    def opens(address: str) -> int:
        opened[:] = [Opening(address)]  # one of an attempt that came to nothing ends with that
        return opened[0].port

    config = join(job, timeout=wait_s, open_store=opens, **options)
    try:
        config.apply()
        if config.rank == 0 and opened:
            store = opened[0].store()
        else:
            store = connect_store(
                config.master_addr,
                config.master_port,
                max(wait_s, CONNECT_S),
                world_size=config.world_size,
            )
    except BaseException as error:
        config.fail(str(error) or type(error).__name__)
        raise
    _GROUPS[job] = _Group(config, store)
    return config, store


def _check(dist: Any, backend: str | None, job: object) -> None:
    """Before anybody is kept waiting: could torch make a process group here?"""
    if dist.is_initialized():
        raise BadInput(
            f"job {job}: this process has a process group already; call "
            "mingled.torch.destroy_process_group() before it joins anew"
        )
    names = (part.rpartition(":")[2] for part in (backend or "").split(",") if part)
    for name in names:
        if not dist.is_backend_available(name):
            raise BadInput(
                f"job {job} on {os.uname().nodename}: the torch here has no backend {name!r}; "
                "gloo works without a GPU, and None leaves the choice to torch"
            )


def _seconds(job: object, name: str, value: object) -> float | None:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise BadInput(f"job {job}: {name}={value!r}: want seconds above 0, or a timedelta")
    return float(value)
