"""Job IDs for tests on this machine's own loopback, where another run of the tests may be heard."""

from __future__ import annotations

import secrets

_RUN = secrets.token_hex(4)


def job(name: str) -> str:
    """This run's own."""
    return f"{name}-{_RUN}"
