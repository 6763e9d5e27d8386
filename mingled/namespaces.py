"""Which of Linux's namespaces this process lives in. Apart, since every client asks."""

from __future__ import annotations

import os


def network_namespace() -> int | None:
    """The inode that names this process's network namespace; None where there is no such thing."""
    return _namespace("net")


def pid_namespace() -> int | None:
    """The same for its pid namespace: a pid means nothing in another one."""
    return _namespace("pid")


def _namespace(kind: str) -> int | None:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return None
