"""`mingle metrics`, of a daemon that serves this very process."""

from __future__ import annotations

from pathlib import Path

import mingled
from tests.test_metrics import parsed

from .running import JOB as ID
from .saying import Say


def test_a_daemon_tells(runtime: Path, say: Say) -> None:
    with mingled.join(ID, world_size=1):
        said = say("metrics")
    found = parsed(said.out)
    assert (said.code, found["mingled_joins_total", "process"]) == (0, 1)
    assert found["mingled_participants", "released"] == 1
    assert found["mingled_seals_total", "leader"] == 1
    assert found["mingled_build_info", mingled.__version__] == 1


def test_no_daemon_to_ask(runtime: Path, say: Say) -> None:
    said = say("metrics")
    assert (said.code, said.out) == (80, "")
    assert "no daemon runs here" in said.err
