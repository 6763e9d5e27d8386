"""`mingle doctor`'s words and exit codes, on findings made up."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from mingled.cli import doctor
from mingled.core.words import JobId
from mingled.doctor import run
from mingled.doctor.model import Finding, failed, passed, skipped, warned
from mingled.doctor.ports import Ports
from mingled.errors import BadInput

PASSED = passed("clock", "at most 0.1 s apart")
WARNED = warned("dns", "10.0.0.53 does not answer", "correct /etc/resolv.conf")
FAILED = failed("link-port", "TCP 29490 of gpu2: no answer", "open it", "or another")
SKIPPED = skipped("firewall", "Operation not permitted", "sudo mingle doctor")


class Asked:
    peers: tuple[str, ...] = ()
    job: JobId | None = None
    ports: Ports = Ports()


@pytest.fixture
def asked() -> Asked:
    return Asked()


def say(
    monkeypatch: pytest.MonkeyPatch, asked: Asked, findings: list[Finding], *words: str
) -> Result:
    async def found(peers: tuple[str, ...], job: JobId | None, *, ports: Ports) -> list[Finding]:
        asked.peers, asked.job, asked.ports = peers, job, ports
        return findings

    monkeypatch.setattr(run, "run", found)
    monkeypatch.delenv("COLUMNS", raising=False)
    return CliRunner().invoke(doctor.command, words)


def test_a_line_for_each_with_what_mends_it(monkeypatch: pytest.MonkeyPatch, asked: Asked) -> None:
    done = say(monkeypatch, asked, [PASSED, WARNED, FAILED, SKIPPED])
    assert done.exit_code == 1
    assert done.output == (
        "ok   clock      at most 0.1 s apart\n"
        "warn dns        10.0.0.53 does not answer\n"
        "     mend: correct /etc/resolv.conf\n"
        "FAIL link-port  TCP 29490 of gpu2: no answer\n"
        "     mend: open it\n"
        "     mend: or another\n"
        "skip firewall   Operation not permitted\n"
        "     mend: sudo mingle doctor\n"
        "1 failed, 1 warned, 1 passed, 1 skipped\n"
    )


def test_warnings_alone_are_no_failure(monkeypatch: pytest.MonkeyPatch, asked: Asked) -> None:
    assert say(monkeypatch, asked, [PASSED, WARNED, SKIPPED]).exit_code == 0


def test_json(monkeypatch: pytest.MonkeyPatch, asked: Asked) -> None:
    done = say(monkeypatch, asked, [PASSED, FAILED], "--json")
    assert done.exit_code == 1
    assert msgspec.json.decode(done.output, type=list[Finding]) == [PASSED, FAILED]


def test_what_is_asked_for(monkeypatch: pytest.MonkeyPatch, asked: Asked) -> None:
    monkeypatch.setenv("MINGLE_PEERS", "gpu9")
    say(monkeypatch, asked, [PASSED], "--job", "bert", "--peer", "gpu2,gpu3", "--peer", "10.0.0.4")
    assert (asked.peers, asked.job) == (("gpu2", "gpu3", "10.0.0.4"), "bert")
    say(monkeypatch, asked, [PASSED])
    assert (asked.peers, asked.job) == (("gpu9",), None)


def test_the_ports_of_the_daemons_configuration(
    monkeypatch: pytest.MonkeyPatch, asked: Asked, tmp_path: Path
) -> None:
    file = tmp_path / "mingled.toml"
    file.write_text("link_port = 31490\nbroadcast_port = 31491\n")
    monkeypatch.setenv("MINGLE_CONFIG", str(file))
    say(monkeypatch, asked, [PASSED])
    assert asked.ports == Ports(link=31_490, broadcast=31_491)
    monkeypatch.setenv("MINGLE_BROADCAST_PORT", "31500")
    say(monkeypatch, asked, [PASSED])
    assert asked.ports == Ports(link=31_490, broadcast=31_500)
    monkeypatch.setenv("MINGLE_BROADCAST_PORT", "many")
    assert isinstance(say(monkeypatch, asked, [PASSED]).exception, BadInput)


def test_fault_38_nothing_from_elsewhere_paints_the_terminal(
    monkeypatch: pytest.MonkeyPatch, asked: Asked
) -> None:
    evil = failed("nodes", "gpu\x1b[2J2 is\nup", "run \x1b]0;x\x07 it")
    output = say(monkeypatch, asked, [evil]).output
    assert "\x1b" not in output
    assert "\x07" not in output
    assert len(output.splitlines()) == 3


@pytest.mark.parametrize("words", [("--peer", "a b;c"), ("--job", "")])
def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch, asked: Asked, words: list[str]) -> None:
    assert isinstance(say(monkeypatch, asked, [PASSED], *words).exception, BadInput)
