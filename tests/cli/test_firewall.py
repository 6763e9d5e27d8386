"""`mingle firewall`: what is printed. That a real nft takes it, and that a job then works, is
tested on LANs (tests/lan/test_nodes.py, tests/lan/test_roster_firewall.py)."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from mingled.cli import firewall, status
from mingled.core import local
from mingled.core.messages import Seen
from mingled.core.words import Form
from mingled.errors import BadInput, MingleError
from mingled.net.listening import ephemeral_ports
from tests.core.samples import REPLIES

(REPORT,) = [reply for reply in REPLIES if isinstance(reply, local.Report)]
(JOB,) = REPORT.jobs
SEAT = msgspec.structs.replace(JOB.seats[0], state="released", rank=1)
HIGH = f"{ephemeral_ports()[0]}-{ephemeral_ports()[-1]}"
LINK = REPORT.link_port


def rules(*words: str) -> list[str]:
    done = CliRunner().invoke(firewall.command, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return [line for line in done.output.splitlines() if not line.startswith("#")]


def test_ufw() -> None:
    high = ephemeral_ports()
    assert rules("--subnet", "10.0.0.0/24", "--format", "ufw") == [
        f"ufw allow from 10.0.0.0/24 to any port {ports} proto {protocol}"
        for ports, protocol in (
            ("5353", "udp"),
            ("29491", "udp"),
            ("29490", "tcp"),
            ("29491:29498", "tcp"),
            ("29500:29999", "tcp"),
            (f"{high[0]}:{high[-1]}", "tcp"),
        )
    ]


def test_nft_of_both_families() -> None:
    lines = rules("--subnet", "10.0.0.9/24", "--subnet", "fd00::/64", "--format", "nft")
    front = "insert rule inet filter input "
    assert f"{front}ip saddr {{ 10.0.0.0/24 }} tcp dport 29490 accept" in lines
    assert f"{front}ip6 saddr {{ fd00::/64, fe80::/10 }} udp dport 5353 accept" in lines
    assert sum("nd-neighbor-solicit" in line for line in lines) == 1
    allowed = re.compile(
        r"add (table inet filter|chain inet filter input)|"
        r"insert rule inet filter input [a-z0-9 ,:{}./-]+ accept"
    )
    assert all(allowed.fullmatch(line) for line in lines)


def test_each_port_says_why() -> None:
    done = CliRunner().invoke(firewall.command, ["--subnet", "10.0.0.0/8", "--format", "ufw"])
    assert "# MASTER_PORT, where rank 0's store listens\n" in done.output
    assert "Gloo and NCCL connect all nodes to each other" in done.output


def test_subnets_within_each_other_are_one() -> None:
    lines = rules("--subnet", "10.0.0.0/24", "--subnet", "10.0.0.0/8", "--format", "nft")
    assert not any("10.0.0.0/24" in line for line in lines)


@pytest.mark.parametrize(
    "text", ["10.0.0.0/33", "gpu1", "10.0.0.0/24; reboot", "0.0.0.0/0", "::/0"]
)
def test_what_is_no_subnet_of_nodes(text: str) -> None:
    words = ["--subnet", text, "--format", "nft"]
    assert isinstance(CliRunner().invoke(firewall.command, words).exception, BadInput)


# ---------------------------------------------------------------- of one job's round

Serve = Callable[..., None]


def sealed(*addresses: str, port: int = 29_512, master: str | None = None) -> local.Round:
    members = tuple(
        local.RoundMember(rank=n, host=f"gpu{n}", address=a, nproc=1, state="running")
        for n, a in enumerate(addresses)
    )
    return local.Round(
        round=2,
        since_s=1.0,
        master_addr=master or addresses[0],
        master_port=port,
        members=members,
    )


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """What this machine's daemon says of one job; `own`: the node's addresses."""

    def reports(*rounds: local.Round, own: tuple[str, ...] = (), **changes: Any) -> None:
        values = {"job": "bert", "rounds": rounds, "seats": (SEAT,)} | changes
        job = msgspec.structs.replace(JOB, **values)
        report = msgspec.structs.replace(REPORT, jobs=(job,), addresses=own)
        monkeypatch.setattr(status, "reports", lambda: [report])

    return reports


def of_job(*words: str, job: str = "bert") -> str:
    given = ["--job", job, *(words or ("--format", "nft"))]
    done = CliRunner().invoke(firewall.command, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(job: str = "bert") -> str:
    done = CliRunner().invoke(firewall.command, ["--job", job, "--format", "nft"])
    assert isinstance(done.exception, MingleError), done.exception
    assert done.stdout == ""
    return str(done.exception)


def test_the_rules_of_a_follower(serve: Serve) -> None:
    serve(sealed("10.0.0.10", "10.0.0.9"))
    lines = [line.strip() for line in of_job().splitlines()]
    assert "elements = { 10.0.0.9, 10.0.0.10 }" in lines
    assert f"tcp dport {{ {LINK}, {HIGH} }} drop" in lines
    assert not any("29512" in line for line in lines)  # rank 0's port is elsewhere
    (table,) = {line for line in lines if line.startswith("delete table")}
    assert f"#     remove:  sudo nft {table}" in lines


def test_the_rules_of_rank_0(serve: Serve) -> None:
    serve(sealed("10.0.0.1", "fd00::2"), seats=(msgspec.structs.replace(SEAT, rank=0),))
    lines = [line.strip() for line in of_job().splitlines()]
    first = lines.index("ip saddr @members_ipv4 tcp dport 29512 accept")
    assert lines[first + 1 : first + 3] == [
        "ip6 saddr @members_ipv6 tcp dport 29512 accept",
        "tcp dport 29512 drop",
    ]


def test_a_follower_that_reaches_rank_0_by_another_address(serve: Serve) -> None:
    serve(sealed("10.0.0.1", "10.1.0.2", master="10.1.0.1"))
    assert "elements = { 10.0.0.1, 10.1.0.1, 10.1.0.2 }" in of_job()


@pytest.mark.parametrize("scope", ["", "%eth1"])
def test_link_local_addresses_are_of_one_interface(serve: Serve, scope: str) -> None:
    near = sealed(f"fe80::1{scope}", f"fe80::2{scope}")
    serve(near, own=("eth0 10.0.0.2", "eth1 fe80::2"))
    assert 'iifname "eth1" ip6 saddr @neighbors tcp dport' in of_job()
    assert "ufw prepend allow in on eth1 from fe80::1 to any port" in of_job("--format", "ufw")


@pytest.mark.parametrize("name", ["", 'e"; flush ruleset #', "$(reboot)"])
def test_an_interface_that_no_rule_can_name(serve: Serve, name: str) -> None:
    serve(sealed("fe80::1", "fe80::2"), own=(f"{name} fe80::2",) if name else ())
    assert "give the job --interface NAME" in refused()


def test_ufw_of_a_round(serve: Serve) -> None:
    serve(sealed("10.0.0.1", "10.0.0.2"), seats=(msgspec.structs.replace(SEAT, rank=0),))
    lines = [x for x in of_job("--format", "ufw").splitlines() if not x.startswith("#")]
    ports = [f"{LINK}", HIGH.replace("-", ":"), "29512"]
    allowed = [
        f"ufw prepend allow from 10.0.0.{n} to any port {port} proto tcp"
        for n in (1, 2)
        for port in ports
    ]
    denied = [f"ufw prepend deny proto tcp to any port {port}" for port in ports]
    assert [line.partition(" comment ")[0] for line in lines] == [*denied, *allowed]


def test_json_of_a_round(serve: Serve) -> None:
    serve(sealed("10.0.0.1", "10.0.0.2", "127.0.0.1"))
    said = json.loads(of_job("--json"))
    assert said["ipv4"] == ["10.0.0.1", "10.0.0.2"]  # nobody comes from 127.0.0.1
    assert (said["master_port"], said["link_port"], said["round"]) == (None, LINK, 2)


@pytest.mark.parametrize("name", ["$(reboot)", "`id`", 'a"; flush ruleset', "x\\", "\u0436\u2603"])
@pytest.mark.parametrize("kind", ["nft", "ufw"])
def test_a_jobs_name_is_a_comment_and_nothing_else(serve: Serve, name: str, kind: str) -> None:
    serve(sealed("10.0.0.1", "10.0.0.2"), job=name)
    text = of_job("--format", kind, job=name)
    assert text.isascii()
    (line,) = [line for line in text.splitlines() if json.dumps(name) in line]
    assert line.startswith("#")
    bare = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert all(re.fullmatch(r'[a-z0-9 _,:.@{}=;"-]*', line) for line in bare), bare
    if kind == "ufw":
        assert {shlex.split(line)[0] for line in bare} == {"ufw"}


def test_other_jobs_of_the_node_are_named(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(sealed("10.0.0.1", "10.0.0.2"))
    (report,) = status.reports()
    other = msgspec.structs.replace(report.jobs[0], job="gpt\x1b[2J")
    both = msgspec.structs.replace(report, jobs=(*report.jobs, other))
    monkeypatch.setattr(status, "reports", lambda: [both])
    done = CliRunner().invoke(firewall.command, ["--job", "bert", "--format", "nft"])
    assert "takes part in gpt\ufffd[2J as well" in done.stderr
    assert "gpt" not in done.stdout


def test_no_such_job(serve: Serve) -> None:
    serve(sealed("10.0.0.1"))
    assert "job gpt: nothing of yours takes part in it on " in refused("gpt")
    assert "shown to that user, and to root" in refused("gpt")


@pytest.mark.parametrize(
    ("nodes", "changes", "words"),
    [
        ((0, 3), {"here": 2}, "2 of 4 are here (gpu0, gpu3), ranks 1, 2 not yet; run this again"),
        ((0, None), {"here": 2}, "2 of 4 are here (gpu0, gpuNone), 2 more not yet"),
        ((0,), {"here": 4, "note": "TCP 29512: no answer"}, "TCP 29512: no answer; run this again"),
        ((), {"seats": (msgspec.structs.replace(SEAT, form=Form.PLAIN),)}, "give --nnodes or"),
    ],
)
def test_a_round_that_is_not_sealed(
    serve: Serve, nodes: tuple[int | None, ...], changes: dict[str, Any], words: str
) -> None:
    seen = tuple(Seen(host=f"gpu{rank}", rank=rank) for rank in nodes)
    waiting = msgspec.structs.replace(SEAT, state="waiting", form=Form.PROCESS)
    values = {"seats": (waiting,), "nodes": seen, "size_min": 4, "size_max": 4, "note": ""}
    serve(**(values | changes))
    assert words in refused()


def test_a_round_that_this_node_has_left(serve: Serve) -> None:
    serve(sealed("10.0.0.1", "10.0.0.2"), seats=())
    assert "takes no part in round 2 any more" in refused()


def test_an_address_that_is_none(serve: Serve) -> None:
    serve(sealed("10.0.0.1", "gpu2; flush ruleset"))
    assert "which is none; no rules are made" in refused()


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--format nft",
        "--job bert",
        "--job bert --subnet 10.0.0.0/8 --format nft",
        "--subnet 10.0.0.0/8",
        "--subnet 10.0.0.0/8 --json",
        "--job bert --format nft --json",
    ],
)
def test_usage(words: str) -> None:
    done = CliRunner().invoke(firewall.command, words.split())
    assert (done.exit_code, done.stdout) == (2, "")
