"""Rank 0's store, opened before its round is sealed, and the way to it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

CONNECT_S = 60.0
"""For a client to reach rank 0's store: its path was proven a moment ago."""


def open_store(address: str) -> Any:
    """A new `torch.distributed.TCPStore` that listens on all addresses of this node; its `port` is
    the real one. `address` is a literal one of this node, at which the others will come."""
    from torch.distributed import TCPStore

    return TCPStore(address, 0, is_master=True, multi_tenant=True, wait_for_workers=False)


def connect_store(address: str, port: int, timeout_s: float = CONNECT_S) -> Any:
    """A client of it. Blocks in C++, so that an interrupt is heard late: for up to `timeout_s`, and
    longer where the server is stopped."""
    from torch.distributed import TCPStore

    timeout = timedelta(seconds=timeout_s)
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
