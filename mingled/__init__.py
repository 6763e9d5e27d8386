"""mingled: start distributed training with no address typed.

    cfg = mingled.join("bert", nnodes=4)        # the same line on every machine
    cfg.apply()                                 # MASTER_ADDR and the rest, in os.environ

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # typing costs more than all the rest of this file; checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from mingled.errors import (
        BadInput,
        Cancelled,
        Closed,
        Conflict,
        DaemonError,
        Indeterminate,
        JoinTimeout,
        MingleError,
        NotPermitted,
        Refused,
        VersionSkew,
    )
    from mingled.frameworks.ddp import DdpConfig, join

_HOMES = {
    "DdpConfig": "mingled.frameworks.ddp",
    "join": "mingled.frameworks.ddp",
    "BadInput": "mingled.errors",
    "Cancelled": "mingled.errors",
    "Closed": "mingled.errors",
    "Conflict": "mingled.errors",
    "DaemonError": "mingled.errors",
    "Indeterminate": "mingled.errors",
    "JoinTimeout": "mingled.errors",
    "MingleError": "mingled.errors",
    "NotPermitted": "mingled.errors",
    "Refused": "mingled.errors",
    "VersionSkew": "mingled.errors",
}

__all__ = [
    "BadInput",
    "Cancelled",
    "Closed",
    "Conflict",
    "DaemonError",
    "DdpConfig",
    "Indeterminate",
    "JoinTimeout",
    "MingleError",
    "NotPermitted",
    "Refused",
    "VersionSkew",
    "__version__",
    "join",
]


def __getattr__(name: str) -> Any:
    """PEP 562: names are fetched from their modules at first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mingled' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
