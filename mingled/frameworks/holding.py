"""A worker that holds a peer's death back, so that it costs no restart.

When a node dies, the collectives of all others fail, and torch's agent sees failed workers of its
own before it hears that the members have changed. A failure costs one of `--max-restarts`, and ends
the job where none is left; a change of members costs nothing. So a worker whose peer is gone waits
to be stopped, for as long as a loss may take to be known.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from types import TracebackType

HOLD_S = 20.0
"""A host that has lost its power is known to be lost within this (`Settings.silence_sealed_s`, and
the fresh connections that decide)."""

LOOK_S = 0.2
"""Whether the agent is still there, is looked at so often."""

PEER_WORDS = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket timeout",
)
"""In the text of an error of torch's backends (`RuntimeError` of Gloo, torch 2.6 to 2.13): somebody
else has gone."""


class hold_peer_loss(contextlib.ContextDecorator):  # used as a function, as contextlib's own are
    """`with hold_peer_loss(): train()`, or as a decorator of the function that trains.

    Under torchrun, an error of a collective is held back for `hold_s` seconds: in that time the
    agent learns who was lost, stops this worker (SIGTERM) and starts it anew in the next round,
    from its checkpoint. If nothing of the sort happens the error goes on. Errors of the script
    itself go on at once, as everything does where no torchrun is above.
    """

    def __init__(self, hold_s: float = HOLD_S) -> None:
        self._hold_s = hold_s

    def __enter__(self) -> hold_peer_loss:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        job = os.environ.get("TORCHELASTIC_RUN_ID")
        if job is None or error is None or not of_a_peer(error):
            return
        rank = os.environ.get("RANK", "?")
        from mingled.wording import clean

        first = str(error).strip().partition("\n")[0][:300]
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a closed stderr, or none
            sentence = (
                f"mingle: job {job}: rank {rank}: a peer is gone ({first}); waits up to "
                f"{self._hold_s:g} s to be started anew"
            )
            sys.stderr.write(clean(sentence) + "\n")
            sys.stderr.flush()
        wait_for_agent(self._hold_s)


def wait_for_agent(hold_s: float) -> None:
    """Until it stops this worker, ends itself, or the time is over."""
    agent, until = os.getppid(), time.monotonic() + hold_s
    while time.monotonic() < until and os.getppid() == agent:
        time.sleep(LOOK_S)


def of_a_peer(error: BaseException) -> bool:
    """Does it say that somebody else has gone?"""
    if not isinstance(error, RuntimeError):  # torch's DistError is one, too
        return False
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error).lower()
    return "DistError" in kinds or any(word in text for word in PEER_WORDS)
