"""torch's TCPStore, as rank 0 opens it before a round is sealed and as the others connect to it.

Each round gets a new one: a second round on an old store finds the first one's keys, and ends with
a refused connection on one rank and a hang on another. torch is imported when it is needed.

TCPStore asks for the name of whom it connects to, by DNS: where a server is configured and does not
answer that takes 10 s and more, also over loopback. Hence rank 0's port listens, and is told,
before its own client is there; and all of it is done in threads, which Ctrl-C does not wait for.
"""

from __future__ import annotations

import socket
from concurrent.futures import Future
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING

from mingled.errors import BadInput, Lost, MingleError
from mingled.frameworks.background import begin
from mingled.wording import clean, endpoint

if TYPE_CHECKING:
    from torch.distributed import TCPStore

TORCH_MIN = (2, 6)
"""Before it, the rendezvous of torch has no entry points, and `init_process_group` no default
backend."""

CONNECT_S = 60.0
"""For a client to connect to a store that listens, where nothing is in a hurry: names may be asked
of several servers that are all dead."""

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


class Opening:
    """A new store, for rank 0 and one round. Others may connect to `port` at once, on all addresses
    of this node, or on one; `store` waits for the store itself. It listens as long as somebody
    refers to it.
    """

    def __init__(self, address: str, *, interface_only: bool = False) -> None:
        """`address`: where the others will reach it; with `interface_only` it listens nowhere else.
        Raises `MingleError` where no port can be had, `BadInput` without torch."""
        distributed()
        self._sentence = f"the store for {address} could not be opened"
        listener = (
            _listener_at(address, self._sentence) if interface_only else _listener(self._sentence)
        )
        self.port: int = listener.getsockname()[1]
        self._store = _begin(
            address if interface_only else _LOOPBACK,
            self.port,
            is_master=True,
            # A tenant shares the server that this process has at the same port. The kernel gives
            # one port twice where the addresses differ, and the second store would be the first.
            multi_tenant=not interface_only,
            master_listen_fd=listener.detach(),
            wait_for_workers=False,
            timeout=timedelta(seconds=CONNECT_S),
        )

    def keep(self, before: Opening | None) -> None:
        """Hold an older store until this one has been made. torch 2.13 died twice of a segmentation
        fault where one went in one thread while another was being made in a second."""
        kept = [before]
        self._store.add_done_callback(lambda _: kept.clear())

    def store(self) -> TCPStore:
        """Raises `MingleError` where it could not be opened."""
        store = _end(self._store, MingleError, self._sentence, CONNECT_S)
        store.set_timeout(timedelta(seconds=OPERATION_S))
        return store


def open_store(address: str) -> TCPStore:
    """A new store, for the others to reach at `address` and at its `.port`. Where somebody waits
    for that port, use `Opening`. Raises as it does."""
    return Opening(address).store()


def connect_store(
    address: str, port: int, timeout_s: float, *, world_size: int | None = None
) -> TCPStore:
    """A client of the store there; `timeout_s` is for the connection, and for each later operation
    until somebody calls `set_timeout`. It holds also where a server that was stopped would keep
    TCPStore itself for longer.

    `address` is a literal IP, IPv6 without brackets and with its scope where it has one. With
    `world_size` the store counts this client, as a rank 0 that came by `env://` waits for.

    Raises `Lost` where it cannot be reached, `BadInput` without torch.
    """
    distributed()
    connecting = _begin(
        address,
        port,
        world_size=world_size,
        is_master=False,
        wait_for_workers=world_size is not None,
        timeout=timedelta(seconds=timeout_s),
    )
    sentence = (
        f"rank 0's store at {endpoint(address, port)} cannot be reached, though it was when the "
        "round was sealed; run all of the job again"
    )
    return _end(connecting, Lost, sentence, timeout_s)


def _listener(sentence: str) -> socket.socket:
    """On all addresses, of both families where this node has both."""
    try:
        return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError):
        pass  # a kernel without IPv6, or one that keeps the families apart
    try:
        return socket.create_server(("", 0))
    except OSError as error:
        raise MingleError(f"{sentence} ({error.strerror})") from None


def _listener_at(address: str, sentence: str) -> socket.socket:
    """On this address alone: a literal one, with its scope where it has one."""
    try:
        numeric = socket.AI_NUMERICHOST
        (place, *_) = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM, flags=numeric)
        family, _, _, _, at = place
        return socket.create_server(at, family=family)
    except OSError as error:
        raise MingleError(f"{sentence} ({error.strerror})") from None


def _begin(address: str, port: int, **options: object) -> Future[TCPStore]:
    return begin(lambda: _construct(address, port, **options))


def _construct(address: str, port: int, **options: object) -> TCPStore:
    dist = distributed()
    try:
        store: TCPStore = dist.TCPStore(address, port, **options)
    except RuntimeError as error:
        if "listen fd" not in str(error):
            raise
        # torch 2.6: only its older server takes a socket that is bound. Clients see no difference.
        store = dist.TCPStore(address, port, use_libuv=False, **options)
    return store


def _end(
    future: Future[TCPStore], kind: type[MingleError], sentence: str, timeout_s: float
) -> TCPStore:
    try:
        return future.result(timeout_s)
    except TimeoutError:
        reason = f"no answer within {timeout_s:g} s"
    except (OSError, RuntimeError, ValueError) as error:  # torch's are RuntimeErrors
        reason = _first_line(error)
    raise kind(f"{sentence} ({reason})")


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
