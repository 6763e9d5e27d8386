"""`examples/docker-compose`: the file by its schema, and its containers' commands on one bridge."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.lan.conftest import MakeLan, absent
from tests.lan.helpers import BIN

from .containers import container
from .documented import EXAMPLES, commands, copy_of, needs

EXAMPLE = "docker-compose"
COMPOSE = EXAMPLES / EXAMPLE / "compose.yaml"


def compose() -> dict[str, Any]:
    needs("yaml")
    return msgspec.yaml.decode(COMPOSE.read_text(), type=dict[str, Any])


def test_the_schema_is_content() -> None:
    validator = BIN / "check-jsonschema"
    if not validator.exists():
        absent("check-jsonschema is not installed")
    done = subprocess.run(
        [validator, "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_builds_what_lies_beside_it() -> None:
    assert all(str(COMPOSE.relative_to(EXAMPLES.parent)) in c for c in commands(EXAMPLE, "docker"))
    for service in compose()["services"].values():
        build = service["build"]
        context = (COMPOSE.parent / build["context"]).resolve()
        assert context == EXAMPLES.parent
        assert (context / build["dockerfile"]).parent == COMPOSE.parent
        assert set(service["networks"]) <= compose()["networks"].keys()


@pytest.mark.lan
@pytest.mark.torch
def test_two_containers_train_together(lan: MakeLan, tmp_path: Path) -> None:
    needs("torch", "sklearn")
    folder = copy_of(EXAMPLE, tmp_path)
    services = compose()["services"].values()
    bridge = lan(nodes=len(services), hostname="node{n}", subnet="172.18.0.0/24")
    assert [service["hostname"] for service in services] == [node.name for node in bridge.nodes]
    running = [
        container(node, service["command"], folder, service.get("environment"))
        for node, service in zip(bridge.nodes, services, strict=True)
    ]
    outs = [one.well().out for one in running]
    (said,) = [out for out in outs if out]
    assert re.search(r"2 processes, rank 0 is node(\d) \(172\.18\.0\.\1\)", said)
    assert float(re.findall(r"test accuracy ([\d.]+)%", said)[0]) > 90
    assert not any("lost" in one.err for one in running)
