"""`mingle ping` and `mingle neighbors`: what they make of answers. Real packets: tests/lan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import msgspec
import pytest
from click.testing import CliRunner, Result

from mingled.cli import blocks, neighbors, ping
from mingled.core import local
from mingled.edges import presence
from mingled.errors import BadInput, MingleError
from mingled.net import neighbors as net_neighbors
from mingled.net import ping as net_ping
from mingled.net.neighbors import Neighbor
from mingled.net.ping import Outcome, PingForbidden, Reply, _outcome
from mingled.net.resolve import Resolved, Resolver
from tests.core.samples import NODE, REPLIES

from .running import BIN, Running

(REPORT,) = [reply for reply in REPLIES if isinstance(reply, local.Report)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were pinged; each answers once and is lost once."""
    found: list[str] = []

    def fake(address: str, **options: object) -> Outcome:
        found.append(address)
        answered = Reply(sequence=1, what="answered", rtt_ms=1.5, source=address)
        lost = Reply(sequence=2, what="lost", said="no answer within 4 s")
        told = options["told"]
        assert callable(told)
        told(answered)
        told(lost)
        return _outcome(address, [answered, lost])

    monkeypatch.setattr(ping, "ping", fake)
    monkeypatch.setattr(ping, "_known_nodes", lambda: {"gpu2": ("fe80::2", "10.77.0.2")})
    return found


async def census(within_s: float, peers: Sequence[str] = (), *, port: int = 0) -> presence.Census:
    found = presence.Found(
        node=NODE, host="gpu3", addresses=("10.77.0.3",), port=29_490, rungs=("mdns",)
    )
    return presence.Census(nodes=(found,), troubles=())


def run(*words: str) -> Result:
    return CliRunner().invoke(ping.command, words)


def test_an_address(asked: list[str]) -> None:
    said = run("10.77.0.2")
    assert (said.exit_code, said.stderr) == (0, "")
    assert said.stdout.splitlines() == [
        "1: 10.77.0.2 answered in 1.5 ms",
        "2: 10.77.0.2: no answer within 4 s",
        "10.77.0.2 is active",
        "2 sent, 1 received, 50% lost",
        "round trip: min 1.5 ms, avg 1.5 ms, max 1.5 ms",
    ]


def test_json(asked: list[str]) -> None:
    shown = msgspec.json.decode(run("10.77.0.2", "--json").stdout, type=ping.Shown)
    assert (shown.target, shown.known_by, shown.activity) == ("10.77.0.2", "address", "active")
    assert (shown.sent, shown.received, shown.lost_percent, shown.rtt_avg_ms) == (2, 1, 50.0, 1.5)


def test_a_node_that_only_the_daemon_knows(asked: list[str]) -> None:
    said = run("gpu2")
    assert asked == ["10.77.0.2"]
    assert "gpu2 is 10.77.0.2, as the daemon here knows it" in said.stderr
    assert "gpu2 also has fe80::2" in said.stderr


def test_a_name_that_the_resolver_knows(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(self: Resolver, name: str) -> Resolved:
        return Resolved(("10.9.9.9",) if name == "there" else (), "does not resolve")

    monkeypatch.setattr(Resolver, "resolve", resolve)
    monkeypatch.setattr(presence, "find_nodes", census)
    assert "there is 10.9.9.9, as the resolver says" in run("there").stderr
    assert asked == ["10.9.9.9"]
    failed = run("elsewhere").exception
    assert isinstance(failed, MingleError)
    assert "elsewhere does not resolve, and no job on" in str(failed)
    assert "gpu3 is 10.77.0.3, as its daemon says" in run("gpu3").stderr
    assert asked == ["10.9.9.9", "10.77.0.3"]


def test_brackets_of_a_url_are_no_part_of_an_address(asked: list[str]) -> None:
    assert run("[fd77::2]").exit_code == 0
    assert asked == ["fd77::2"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("", "'' is no host or address"),
        ("a\nb", "is no host or address"),
        ("x" * 300, "is no host or address"),
        ("10.77.0.2/24", "'10.77.0.2/24' is no host or address"),
        ("10.77.0.2:29490", "is no host or address"),
        ("[fd77::2]:80", "is no host or address"),
        ("http://gpu2", "is no host or address"),
        ("a..b", "is no host or address"),
        ("ü" * 70, "is no host or address"),
        ("127.255.255.255", "is the broadcast address of 127.0.0.0/8 on lo"),
        ("fe80::1%nope", "there is no interface nope on "),
        ("fe80::1%99999", "there is no interface 99999 on "),
        ("224.0.0.1", "not the address of one host"),
        ("0.0.0.0", "not the address of one host"),
        ("255.255.255.255", "not the address of one host"),
        ("fe80::1", "fe80::1 is link-local, and every link has such addresses"),
    ],
)
def test_impossible_targets(asked: list[str], target: str, said: str) -> None:
    failed = run(target).exception
    assert isinstance(failed, BadInput)
    assert said in str(failed)
    assert asked == []


@pytest.mark.parametrize(
    "words", [("--count", "0"), ("--interval", "0"), ("--timeout", "-1"), ("--count", "70000")]
)
def test_impossible_options(asked: list[str], words: tuple[str, ...]) -> None:
    assert run("10.77.0.2", *words).exit_code == 2
    assert asked == []


def test_the_nodes_of_a_report() -> None:
    member = local.RoundMember(rank=1, host="gpu9", address="10.0.0.9", nproc=1, state="running")
    round_ = local.Round(
        round=1, since_s=1, master_addr="10.0.0.9", master_port=1, members=(member,)
    )
    job = msgspec.structs.replace(
        REPORT.jobs[0], rounds=(round_,), leader="gpu8", leader_address="10.0.0.8"
    )
    bad = msgspec.structs.replace(job, leader="gpu7", leader_address="not an address")
    report = msgspec.structs.replace(
        REPORT, host="gpu1", addresses=("10.0.0.1", "fd00::1"), jobs=(job, bad)
    )
    found = ping.nodes_of([report])
    assert found["gpu9"] == ("10.0.0.9",)
    assert found["gpu8"] == ("10.0.0.8",)
    assert found["gpu1"][:2] == ("10.0.0.1", "fd00::1")
    assert "gpu7" not in found


# ---------------------------------------------------------------- what became of packets


@pytest.mark.parametrize(
    ("replies", "activity", "why"),
    [
        ([Reply(sequence=1, what="lost", said="no answer")], "inactive", "no answer"),
        (
            [
                Reply(sequence=1, what="lost", said="no answer"),
                Reply(sequence=2, what="unreachable", said="host unreachable"),
            ],
            "inactive",
            "host unreachable",
        ),
        ([Reply(sequence=1, what="refused", said="it refuses")], "active", "it refuses"),
        ([Reply(sequence=1, what="error", said="a firewall")], "unknown", "a firewall"),
        ([], "unknown", "interrupted before an answer could come"),
        (
            [
                Reply(sequence=1, what="answered", rtt_ms=2.0),
                Reply(sequence=2, what="unreachable", said="gone"),
            ],
            "active",
            "",
        ),
    ],
)
def test_outcomes(replies: list[Reply], activity: str, why: str) -> None:
    outcome = _outcome("10.0.0.1", replies)
    assert (outcome.activity, outcome.why, outcome.sent) == (activity, why, len(replies))


def test_a_probe_ends_at_once_with_ctrl_c() -> None:
    code = """
import threading, time
from mingled.net import ping
def never(address, **options):
    time.sleep(0.5)  # the probe's own thread waits by then
    print("asked", flush=True)
    time.sleep(600)
ping.ping = never
ping.probe(["10.0.0.1"])
"""
    with Running(sys.executable, "-c", code) as probing:
        probing.until("asked")
        probing.process.send_signal(signal.SIGINT)
        assert probing.end() != 0
        assert "KeyboardInterrupt" in probing.err


def test_a_probe_tells_what_its_threads_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(address: str, **_: object) -> Outcome:
        if address == "10.0.0.9":
            raise PingForbidden("uid 7 may not ping")
        return _outcome(address, [])

    monkeypatch.setattr(net_ping, "ping", fake)
    assert net_ping.probe([]) == {}
    assert list(net_ping.probe(["10.0.0.2", "10.0.0.1", "10.0.0.2"])) == ["10.0.0.2", "10.0.0.1"]
    with pytest.raises(PingForbidden, match="uid 7"):
        net_ping.probe(["10.0.0.1", "10.0.0.9"])


# ---------------------------------------------------------------- stdout that cannot be written to


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("mingle interfaces >/dev/full", 1, "mingle: stdout cannot be written to: No space left"),
        ("mingle interfaces --json >/dev/full", 1, "mingle: stdout cannot be written to: No"),
        ("mingle interfaces >&-", 1, "mingle: stdout cannot be written to: it is closed"),
        ("mingle interfaces --json >&-", 1, "mingle: stdout cannot be written to: it is closed"),
        ("mingle --help >/dev/full", 1, "mingle: stdout cannot be written to: No space left"),
        ("mingle interfaces --json | true; exit ${PIPESTATUS[0]}", (0, 141), ""),
    ],
)
def test_stdout_that_cannot_be_written_to(
    command: str, code: int | tuple[int, ...], said: str
) -> None:
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode in (code if isinstance(code, tuple) else (code,))
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == (1 if said else 0)


def test_a_reader_that_has_gone_is_no_lost_packet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        words = [str(BIN / "mingle"), "ping", "127.0.0.1", "--count", "2", "--interval", "0.01"]
        done = subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, check=False)
    if b"may not ping" not in done.stderr:
        assert (done.returncode, done.stderr) == (blocks.SIGPIPE_EXIT, b"")


# ---------------------------------------------------------------- neighbors

ENTRIES = (
    Neighbor(
        interface="eth0",
        index=2,
        address="10.77.0.2",
        mac="02:4d:47:00:00:02",
        entry="dynamic",
        state="reachable",
    ),
    Neighbor(
        interface="eth0", index=2, address="10.77.0.9", mac="", entry="dynamic", state="failed"
    ),
    Neighbor(
        interface="eth1",
        index=3,
        address="fe80::2",
        mac="02:4d:47:00:00:02",
        entry="static",
        state="permanent",
    ),
)


def test_the_table_and_its_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_neighbors, "neighbors", lambda: ENTRIES)
    said = CliRunner().invoke(neighbors.command, [])
    assert said.stdout.splitlines() == [
        "eth0  2 neighbours",
        "  10.77.0.2  02:4d:47:00:00:02 dynamic, reachable",
        "  10.77.0.9  no answer yet, dynamic, failed",
        "",
        "eth1  1 neighbour",
        "  fe80::2  02:4d:47:00:00:02 static",
    ]
    shown = msgspec.json.decode(CliRunner().invoke(neighbors.command, ["--json"]).stdout)
    assert [one["entry"] for one in shown] == ["dynamic", "dynamic", "static"]
    assert {one["activity"] for one in shown} == {None}


def test_each_is_asked_with_its_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(addresses: list[str]) -> dict[str, Outcome]:
        assert addresses == ["10.77.0.2", "10.77.0.9", "fe80::2%eth1"]
        lost = Reply(sequence=1, what="lost", said="no answer")
        answered = Reply(sequence=1, what="answered", rtt_ms=1.5)
        return {a: _outcome(a, [lost if a.endswith("9") else answered]) for a in addresses}

    monkeypatch.setattr(net_neighbors, "neighbors", lambda: ENTRIES)
    monkeypatch.setattr(neighbors, "probe", probe)
    said = CliRunner().invoke(neighbors.command, ["--ping"]).stdout
    assert "10.77.0.2  02:4d:47:00:00:02 dynamic, reachable; active (1.5 ms)" in said
    assert "no answer yet, dynamic, failed; inactive (no answer)" in said
    assert "static; active (1.5 ms)" in said


def test_where_nobody_may_ping_all_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(addresses: list[str]) -> dict[str, Outcome]:
        raise PingForbidden("uid 7 may not ping")

    monkeypatch.setattr(net_neighbors, "neighbors", lambda: ENTRIES)
    monkeypatch.setattr(neighbors, "probe", probe)
    said = CliRunner().invoke(neighbors.command, ["--ping"])
    assert said.stderr == "mingle neighbors: uid 7 may not ping\n"
    assert said.stdout.count("; unknown") == 3
    shown = msgspec.json.decode(CliRunner().invoke(neighbors.command, ["--ping", "--json"]).stdout)
    assert {one["why"] for one in shown} == {"uid 7 may not ping"}


def test_nobody_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_neighbors, "neighbors", lambda: ())
    said = CliRunner().invoke(neighbors.command, [])
    assert (said.exit_code, said.stdout) == (0, "")
    assert "has talked to nobody on its links lately" in said.stderr
