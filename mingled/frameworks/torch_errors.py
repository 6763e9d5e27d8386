"""Our errors as torch's, where torch is the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mingled.errors import BadInput, DaemonError, JoinTimeout, Lost, MingleError


@contextmanager
def as_torch() -> Iterator[None]:
    """Raises what torch's own rendezvous of that kind raises, with our sentence in it and our error
    as its cause: `ValueError` for arguments that cannot work, `DistStoreError` for others that do
    not come in time, `DistNetworkError` for what cannot be reached, and `DistError` for the rest.
    """
    try:
        yield
    except MingleError as error:
        from torch import distributed as dist

        kind = dist.DistError
        if isinstance(error, BadInput):
            kind = ValueError
        elif isinstance(error, JoinTimeout):
            kind = dist.DistStoreError
        elif isinstance(error, DaemonError | Lost):
            kind = dist.DistNetworkError
        raise kind(
            f"Error initializing torch.distributed using mingle:// rendezvous: {error}"
        ) from error
