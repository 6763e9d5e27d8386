"""torch's process groups, with no address typed. Needs torch 2.6 or newer.

    import mingled.torch

    mingled.torch.init_process_group("gloo", job="bert", world_size=4)

or, where only a URL can be given:

    torch.distributed.init_process_group("gloo", init_method="mingle://bert?world_size=4")

Under an elastic torchrun, `with mingled.torch.hold_peer_loss(): train()` keeps the death of another
node from costing this one a restart.

Importing it makes `mingle://` known to torch, and raises `mingled.BadInput` where torch is missing
or too old.
"""

from __future__ import annotations

from mingled.frameworks.holding import hold_peer_loss
from mingled.frameworks.process_group import (
    destroy_process_group,
    init_process_group,
    register,
)

__all__ = ["destroy_process_group", "hold_peer_loss", "init_process_group"]

register()
