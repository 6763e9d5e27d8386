"""`mingle nodes` on daemons made up; real ones are met in tests/lan/test_nodes.py."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from click.testing import CliRunner, Result

from mingled.cli import nodes
from mingled.core.words import Label
from mingled.doctor.here import Daemons
from mingled.doctor.nodes import Nodes, Seen
from mingled.doctor.ports import Ports
from mingled.errors import BadInput
from tests.doctor.samples import PRESENCE, SEEN


def found(*seen: Seen, troubles: tuple[str, ...] = ()) -> Nodes:
    return Nodes(seen=seen, local=Daemons(), troubles=troubles)


def say(monkeypatch: pytest.MonkeyPatch, answer: Nodes, *words: str) -> Result:
    async def survey(
        within_s: float, peers: tuple[str, ...], labels: tuple[Label, ...], *, ports: Ports
    ) -> Nodes:
        return answer

    monkeypatch.setattr(nodes, "survey", survey)
    monkeypatch.delenv("COLUMNS", raising=False)
    return CliRunner().invoke(nodes.command, words)


def test_a_block_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = msgspec.structs.replace(
        SEEN, presence=msgspec.structs.replace(PRESENCE, jobs=2, release="1.2.3")
    )
    done = say(monkeypatch, found(busy))
    assert done.stdout == (
        "gpu2  reached\n"
        "  address   10.0.0.2\n"
        "  gpus      8 x NVIDIA H200\n"
        "  jobs      2 others\n"
        "  mingled   1.2.3, up 1m, link port 29490\n"
        "  answered  in 10 ms\n"
        "  found by  broadcast, mdns\n"
    )


def test_one_that_was_only_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = msgspec.structs.replace(
        SEEN, presence=None, why="10.0.0.2 port 29490: no answer", answered_s=None
    )
    text = say(monkeypatch, found(heard)).stdout
    assert text.startswith("gpu2  heard, but not reached\n")
    assert "  not reached  10.0.0.2 port 29490: no answer\n" in text
    (shown,) = msgspec.json.decode(
        say(monkeypatch, found(heard), "--json").stdout, type=list[nodes.Shown]
    )
    assert (shown.reached, shown.gpus, shown.jobs, shown.release) == (False, None, None, None)


def test_troubles_and_nobody_are_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    done = say(monkeypatch, found(troubles=("mdns: does not\x1b work",)))
    assert done.stdout == ""
    assert "mdns: does not\ufffd work" in done.stderr
    assert "no daemon answered; mingle doctor says" in done.stderr
    assert say(monkeypatch, found(), "--json").stdout == "[]\n"


def test_addresses_once_and_ipv4_first(monkeypatch: pytest.MonkeyPatch) -> None:
    card = msgspec.structs.replace(
        PRESENCE.node, addresses=("10.0.0.2", "10.1.0.2", "fd00::2", "fe80::2")
    )
    many = msgspec.structs.replace(
        SEEN,
        presence=msgspec.structs.replace(PRESENCE, node=card),
        addresses=("fe80::2%eth0", "fd00::2", "10.1.0.2", "10.0.0.2", "fe80::2"),
    )
    text = say(monkeypatch, found(many)).stdout
    assert "  address   10.0.0.2, 10.1.0.2, fd00::2, fe80::2%eth0\n" in text


def test_a_time_to_listen_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("none", "61s", "0"):
        said = str(say(monkeypatch, found(), "--within", text).exception)
        assert said == f"--within {text!r}: want a time as in 1.5s: more than 0, at most 60s"
    assert "at most 60s" in say(monkeypatch, found(), "--help").stdout


@pytest.mark.parametrize("how", [">/dev/full", ">&-"])
@pytest.mark.parametrize(
    "words", ["firewall --subnet 10.0.0.0/24 --format ufw", "nodes --within 0.01s --json"]
)
def test_an_output_that_cannot_be_written_is_one_sentence(how: str, words: str) -> None:
    line = f"{sys.executable} -m mingled.cli.mingle {words} {how}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode not in (0, 120)
    assert "stdout" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_fault_38_a_hosts_name_cannot_paint(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = msgspec.structs.replace(SEEN, host="gpu\x1b[2J")
    assert "\x1b" not in say(monkeypatch, found(evil)).stdout


@pytest.mark.parametrize("words", [("--within", "soon"), ("--within", "0s"), ("--peers", "a;b")])
def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    assert isinstance(say(monkeypatch, found(), *words).exception, BadInput)
