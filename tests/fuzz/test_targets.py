"""The fuzzer's targets without the fuzzer, so that they cannot rot: their samples, some hundred
inputs made from these, and what is larger than any limit."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mingled.core import codec, events, messages
from mingled.core.messages import FRAME_SIZE_BYTES_MAX
from mingled.edges.mdns import Mdns
from mingled.net.datagrams import Arrival, Datagrams
from tests.fuzz import __main__ as driver
from tests.fuzz import discovery, targets
from tests.fuzz.mutations import json_mutated, mutated
from tests.fuzz.targets import TARGETS

MUTATIONS = 300
"""Of each target: about a second and a half for all."""


@pytest.fixture(scope="module", autouse=True)
def _closed_at_last() -> Iterator[None]:
    yield
    targets.close()


def inputs(name: str) -> Iterator[bytes]:
    rng, target = random.Random(name), TARGETS[name]
    seeds = target.seeds()
    yield from seeds
    for _ in range(MUTATIONS):
        yield mutated(rng.choice(seeds), rng)[: target.bytes_max]


@pytest.mark.parametrize("name", TARGETS)
def test_samples_and_what_is_made_of_them(name: str) -> None:
    for data in inputs(name):
        TARGETS[name].run(data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=400))
def test_noise(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n" * 70_000,
        b"[" * 70_000,
        b'{"a":' * 14_000,
        b"L" + b'{"type":"ping","claim":"' + b"0" * 70_000,
        b'a = "' + b"x" * 70_000 + b'"',
        b"a = " + b"[" * 70_000,
        b"\xff" * 9_200,
        b"\xc0\x0c" * 4_500,
    ],
)
def test_what_is_too_much(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


def test_a_frame_as_large_as_any() -> None:
    frame = b'{"type":"dismiss","claim":"' + b"0" * 32 + b'","reason":"'
    frame += b"x" * (FRAME_SIZE_BYTES_MAX - len(frame) - 3) + b'"}\n'
    assert len(frame) == FRAME_SIZE_BYTES_MAX
    for place in (b"L", b"F", b"S"):
        TARGETS["peer-frame"].run(place + frame)


# ---------------------------------------------------------------- are the samples worth anything?


def test_samples_get_through_the_parsers() -> None:
    for seed in TARGETS["peer-frame"].seeds():
        for line in seed[1:].splitlines():
            messages.peer_decoder.decode(line)


def test_what_is_made_of_json_is_json() -> None:
    rng = random.Random(1)
    line = codec.encode(discovery.OURS)
    changed = {json_mutated(line * 2, rng) for _ in range(200)}
    assert len(changed) > 50
    for some in changed:
        assert some is not None
        assert all(msgspec.json.decode(one) for one in some.splitlines())
    assert json_mutated(b"none of it", rng) is None


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("mdns-text", {events.AdvertHeard, events.AdvertGone}),
        ("mdns-packet", {events.AdvertHeard, events.AdvertGone}),
        ("datagram", {events.AdvertHeard}),
    ],
)
def test_samples_get_through_discovery(
    name: str, kinds: set[type], monkeypatch: pytest.MonkeyPatch
) -> None:
    targets.close()  # a rung that lives already would tell whom it told before
    heard: list[events.Event] = []
    monkeypatch.setattr(discovery, "_check", heard.append)
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed)
    targets.close()
    assert {type(event) for event in heard} >= kinds


@pytest.mark.parametrize(
    ("name", "of", "method"),
    [
        ("mdns-text", Mdns, "_heard"),
        ("mdns-packet", Mdns, "_heard"),
        ("datagram", Datagrams, "_pass_on"),
    ],
)
def test_what_a_rung_raises_is_raised(
    name: str, of: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Arrival:
        raise KeyError(method)

    def all_samples() -> None:
        for seed in TARGETS[name].seeds():
            TARGETS[name].run(seed)

    monkeypatch.setattr(of, method, broken)
    with pytest.raises(KeyError, match=method):
        all_samples()


# ---------------------------------------------------------------- the driver


def test_the_driver_knows_every_target() -> None:
    assert tuple(TARGETS) == driver.NAMES


def test_one_input_again(tmp_path: Path) -> None:
    (tmp_path / "crash").write_bytes(b"L" + b'{"type":"listen"}\n')
    words = [sys.executable, "-m", "tests.fuzz", "peer-frame", str(tmp_path / "crash")]
    assert subprocess.run(words, check=False).returncode == 0


def test_a_short_run(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: scripts/bootstrap --with fuzz")
    words = [sys.executable, "-m", "tests.fuzz", "configuration", "--runs", "200"]
    words += ["--crashes", str(tmp_path), "--corpus", str(tmp_path / "corpus")]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "stat::number_of_executed_units: 200" in done.stderr
    assert [*Path(tmp_path, "corpus").iterdir()]
