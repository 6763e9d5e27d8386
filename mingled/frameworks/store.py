"""torch's TCPStore, as rank 0 opens it before a round is sealed and as the others connect to it.

Each round gets a new one: a second round on an old store finds the first one's keys, and ends with
a refused connection on one rank and a hang on another. torch is imported when it is needed.
"""

from __future__ import annotations

from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING

from mingled.errors import BadInput, Lost, MingleError
from mingled.wording import clean, endpoint

if TYPE_CHECKING:
    from torch.distributed import TCPStore

TORCH_MIN = (2, 6)
"""Before it, the rendezvous of torch has no entry points, and `init_process_group` no default
backend."""

OPEN_S = 5.0
"""For a store to open and its own client to reach it over loopback: a millisecond. The daemon gives
a round's preparation 6 s, and is to hear why it failed."""

OPERATION_S = 300.0
"""TCPStore's own default, for what waits for a key."""

_LOOPBACK = "127.0.0.1"


def distributed() -> ModuleType:
    """`torch.distributed`. Raises `BadInput` where torch is missing, too old, or built without."""
    try:
        import torch
        import torch.distributed as module
    except ImportError as error:
        raise BadInput(
            f"torch cannot be imported here ({_first_line(error)}); install torch "
            f"{_version(TORCH_MIN)} or newer: pip install 'mingled[torch]'"
        ) from None
    found = str(torch.__version__)
    if _numbers(found) < TORCH_MIN:
        raise BadInput(
            f"torch {found} is older than {_version(TORCH_MIN)}, which mingled needs; upgrade it: "
            "pip install --upgrade 'mingled[torch]'"
        )
    if not module.is_available():
        raise BadInput(
            f"torch {found} was built without torch.distributed; install one that has it"
        )
    found_module: ModuleType = module
    return found_module


def open_store(address: str) -> TCPStore:
    """A new store on a port of the kernel's choice (`.port`), on all addresses of this node, for
    the others to reach at `address`. It listens as long as somebody refers to it.

    Raises `MingleError` where that fails, `BadInput` without torch.
    """
    # Our own client goes over loopback: TCPStore looks up the name of whom it connects to, which
    # takes seconds where a DNS server is configured and does not answer.
    store = _tcp_store(
        MingleError,
        f"the store for {address} could not be opened",
        _LOOPBACK,
        0,
        is_master=True,
        multi_tenant=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=OPEN_S),
    )
    store.set_timeout(timedelta(seconds=OPERATION_S))
    return store


def connect_store(
    address: str, port: int, timeout_s: float, *, world_size: int | None = None
) -> TCPStore:
    """A client of the store there; `timeout_s` is for the connection and for each later operation.

    `address` is a literal IP, IPv6 without brackets and with its scope where it has one. With
    `world_size` the store counts this client, as a rank 0 that came by `env://` waits for.

    Raises `Lost` where it cannot be reached, `BadInput` without torch.
    """
    return _tcp_store(
        Lost,
        f"rank 0's store at {endpoint(address, port)} cannot be reached, though it was when the "
        "round was sealed; run all of the job again",
        address,
        port,
        world_size=world_size,
        is_master=False,
        wait_for_workers=world_size is not None,
        timeout=timedelta(seconds=timeout_s),
    )


def _tcp_store(
    kind: type[MingleError], sentence: str, address: str, port: int, **options: object
) -> TCPStore:
    dist = distributed()
    try:
        return dist.TCPStore(address, port, **options)
    except (dist.DistError, OSError, RuntimeError, ValueError) as error:
        raise kind(f"{sentence} ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    """torch appends the frames of its C++ stack to what it says."""
    text = str(error).strip() or type(error).__name__
    return clean(text.splitlines()[0])


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 13) of "2.13.0a0+git1234": what cannot be read counts as new enough."""
    parts = version.split(".")[:2]
    if all(part.isdecimal() for part in parts):
        return tuple(int(part) for part in parts)
    return TORCH_MIN


def _version(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
