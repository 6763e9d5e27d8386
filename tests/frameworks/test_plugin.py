"""torch finds mingled's backend, and nobody pays for it who does not ask for it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest

from mingled.frameworks import plugin
from mingled.frameworks.parameters import BACKEND


def parameters(**changes: Any) -> Any:
    """As torchrun makes them."""
    api = pytest.importorskip("torch.distributed.elastic.rendezvous.api")
    values: dict[str, Any] = {
        "backend": BACKEND,
        "endpoint": "",
        "run_id": "bert",
        "min_nodes": 2,
        "max_nodes": 2,
        "local_addr": None,
        "timeout": 900,
    }
    return api.RendezvousParameters(**(values | changes))


def test_the_entry_point_loads() -> None:
    (found,) = entry_points(group="torchrun.handlers", name=BACKEND)
    assert found.load() is plugin.handlers


def test_loading_it_imports_nothing_else() -> None:
    """Whoever uses torchrun loads it, also without mingled."""
    script = (
        "import sys\n"
        "import mingled\n"  # the package's own names come when they are asked for
        "before = set(sys.modules)\n"
        "from mingled.frameworks import plugin\n"
        "plugin.handlers()\n"
        "print(*sorted(set(sys.modules) - before))\n"
        "assert not {'torch', 'msgspec', 'mingled.client'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env={"PYTHONPATH": ":".join(sys.path[1:])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["mingled.frameworks", "mingled.frameworks.plugin"]


@pytest.mark.torch
def test_torchs_own_registry_makes_the_handler() -> None:
    registry = pytest.importorskip("torch.distributed.elastic.rendezvous.registry")
    handler = registry.get_rendezvous_handler(parameters(rank="1", join_timeout="60"))
    assert handler.get_backend() == BACKEND == "mingle"
    assert handler.get_run_id() == "bert"
    assert handler.use_agent_store
    assert not handler.is_closed()
    assert handler.num_nodes_waiting() == 0
    assert handler.shutdown()


@pytest.mark.torch
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"run_id": "none"}, "needs a run id, the same on every machine"),
        ({"endpoint": "gpu1:29400"}, "job bert: --rdzv-endpoint gpu1:29400 is for torch's own"),
        ({"rank": "7"}, "job bert: "),
        ({"last_cal": "3"}, "job bert: --rdzv-conf last_cal"),
    ],
)
def test_what_cannot_work_is_torchs_own_error(wrong: dict[str, Any], sentence: str) -> None:
    """As for torch's own backends: a ValueError, before anything is asked of anybody."""
    registry = pytest.importorskip("torch.distributed.elastic.rendezvous.registry")
    with pytest.raises(ValueError, match=sentence):
        registry.get_rendezvous_handler(parameters(**wrong))


@pytest.mark.torch
def test_remarks_are_made_when_the_handler_is(capsys: pytest.CaptureFixture[str]) -> None:
    registry = pytest.importorskip("torch.distributed.elastic.rendezvous.registry")
    registry.get_rendezvous_handler(parameters(min_nodes=1, max_nodes=1))
    assert "mingle: job bert: one node, which trains alone" in capsys.readouterr().err
