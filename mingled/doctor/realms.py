"""The realms that whoever runs this command is in: by the cluster key that it may read, if any."""

from __future__ import annotations

import functools
from typing import NamedTuple

from mingled import keys
from mingled.core.secrets import label_of, node_realms_of
from mingled.core.words import JobId, Label
from mingled.errors import MingleError
from mingled.net.tls import Pass


class Held(NamedTuple):
    keys: tuple[bytes, ...]
    trouble: str  #: why there is none although there could be; empty otherwise


@functools.cache
def held() -> Held:
    """Read once."""
    try:
        return Held(keys.load(keys.find()), "")
    except MingleError as error:
        return Held((), str(error))


@functools.cache
def passes() -> tuple[Pass, ...]:
    """For questions about nodes, which belong to no job: under each key."""
    return tuple(Pass(realm) for realm in node_realms_of(held().keys))


def labels_of(job: JobId) -> tuple[Label, ...]:
    """Under which a job may be known, unless it has a secret of its own."""
    return tuple(label_of(job, key) for key in held().keys or (b"",))
