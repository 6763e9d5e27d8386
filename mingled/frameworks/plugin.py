"""`torchrun --rdzv-backend mingle`: torch loads this whenever its rendezvous is imported.

The entry point of the group `torchrun.handlers` (torch 2.6 and newer,
`torch/distributed/elastic/rendezvous/registry.py`) is a factory without arguments that returns the
creator of handlers. Everybody who uses torchrun pays for the import of this file, also without
mingled: it imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing costs more than all the rest of this file; checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def handlers() -> Callable[[Any], Any]:
    """What torch calls to learn how handlers are made."""
    return _create


def _create(parameters: Any) -> Any:
    """The handler for one agent; `parameters` is torch's `RendezvousParameters`. Raises
    `ValueError`, as torch does for what cannot work, with a sentence."""
    from mingled.frameworks.handler import MingleRendezvousHandler

    return MingleRendezvousHandler.of(parameters)
