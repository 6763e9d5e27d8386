"""Three booted machines for all tests below this directory, marked `machines`: mingled's wheel is
installed on each as an administrator does, and an ordinary user runs jobs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from mingled import __version__
from tests.lan.conftest import absent
from tests.wheels import build

from .image import VENV, forbidden, image, lacking, refused
from .machine import Machine, Site

MACHINES = 3

INSTALLED, UPGRADE = __version__, f"{__version__}.post1"
"""Releases of the two wheels: made of the same sources, with another number."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.machines)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of each release."""
    if importlib.util.find_spec("setuptools") is None:
        absent("setuptools is not installed")
    folder = tmp_path_factory.mktemp("wheels")
    for release in (INSTALLED, UPGRADE):
        build(folder, release)
    return folder


@pytest.fixture(scope="session")
def site(wheels: Path) -> Iterator[tuple[Machine, ...]]:
    """All machines, up, with the service installed."""
    reason = lacking()
    if reason:
        absent(reason)
    root = None
    reason = forbidden()
    if not reason:
        root = image()
        reason = refused(root)
    if root is None or reason:  # in CI as well: it runs these tests where it can
        pytest.skip(reason)
    shared = [wheels, Path(__file__).parent]
    packages = torch_packages()
    if packages is not None:
        shared.append(packages)
    booted = Site(MACHINES, root, shared)
    try:
        for machine in booted.machines:
            install(machine, wheels, INSTALLED)
            machine.root(f"{VENV}/bin/mingle", "service", "install")
        yield tuple(booted.machines)
    finally:
        booted.close()


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a failed test has left running is not the next one's business."""
    yield
    if "site" in request.fixturenames:
        for machine in request.getfixturevalue("site"):
            machine.end_all()


def install(machine: Machine, wheels: Path, release: str) -> None:
    """`pip install` that release of mingled."""
    (wheel,) = wheels.glob(f"mingled-{release}-*.whl")
    pip = f"{VENV}/bin/pip"
    machine.root(pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel))


def torch_packages() -> Path | None:
    """Of this Python, where torch is; None: there is none."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parents[1] if spec is not None and spec.origin else None
