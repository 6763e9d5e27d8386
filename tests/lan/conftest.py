"""Real LANs for the tests below this directory: all of them are marked `lan`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mingled.lab import Lan, available

MakeLan = Callable[..., Lan]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lan)


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[MakeLan]:
    """`lan(nodes=3, ...)` opens a `Lan` until the end of the test; nodes see `tmp_path`.

    Skips where the machine forbids LANs, but fails in CI (MINGLED_CI=1).
    """
    possible = available()
    if possible.kind == "none":
        absent(possible.reason)
    with ExitStack() as stack:

        def make(nodes: int = 2, **options: Any) -> Lan:
            options["share"] = (*options.get("share", ()), tmp_path)
            return stack.enter_context(Lan(nodes, **options))

        yield make


def absent(reason: str) -> None:
    """Skip the test for want of something on this machine; in CI it must not be wanting."""
    if os.environ.get("MINGLED_CI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
