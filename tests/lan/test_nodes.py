"""`mingle nodes`, `hosts` and `firewall` on real LANs, and what reads their files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from mingled.cli.nodes import Shown
from mingled.lab import Node

from .conftest import MakeLan
from .helpers import BIN, SHOW, STAY, daemons_on, wait

MINGLE = str(BIN / "mingle")


def nodes_on(node: Node, *words: str) -> dict[str, Shown]:
    done = node.run([MINGLE, "nodes", "--json", *words], check=True)
    return {shown.host: shown for shown in msgspec.json.decode(done.stdout, type=list[Shown])}


def test_every_daemon_with_its_jobs(lan: MakeLan) -> None:
    net = lan(nodes=3)
    daemons_on(net.nodes)
    known = [wait(node, "bert", "--nnodes", "2", cmd=STAY) for node in net.nodes[:2]]
    other = wait(net.node(2), "secret", "--nnodes", "2", cmd=SHOW)
    for running in known:
        running.until("MINGLE_EXPORTED", kind="out")
    other.until("1/2 here")
    found = nodes_on(net.node(1))
    assert list(found) == ["gpu1", "gpu2", "gpu3"]
    assert all(shown.reached and shown.gpus == () for shown in found.values())
    assert [shown.own for shown in found.values()] == [True, False, False]
    assert found["gpu1"].jobs == ("bert",)
    assert (found["gpu2"].jobs, found["gpu2"].other_jobs) == (("bert",), 1)
    assert (found["gpu3"].jobs, found["gpu3"].other_jobs) == ((), 0)
    assert found["gpu2"].addresses == ("10.77.0.2",)
    assert {"mdns", "broadcast"} <= set(found["gpu2"].found_by)
    shown = net.node(1).run([MINGLE, "nodes"]).stdout
    assert "  jobs      bert, 1 other\n" in shown
    narrow = net.node(1).run([MINGLE, "nodes"], env={"COLUMNS": "40"}).stdout
    assert max(map(len, narrow.splitlines())) <= 40
    only = net.node(3).run([MINGLE, "hosts", "--format", "openmpi", "--job", "bert"], check=True)
    assert only.stdout == "10.77.0.1 slots=1\n10.77.0.2 slots=1\n"
    none = net.node(3).run([MINGLE, "hosts", "--format", "openmpi", "--job", "other"])
    assert (none.returncode, none.stdout) == (1, "")
    assert "no node with job other was reached" in none.stderr


def test_one_that_is_heard_and_not_reached(lan: MakeLan) -> None:
    net = lan(nodes=2)
    daemons_on(net.nodes)
    net.node(2).drop("tcp dport 29490")
    gone = nodes_on(net.node(1))["gpu2"]
    assert not gone.reached
    assert (gone.gpus, gone.jobs, gone.release) == (None, None, None)
    assert "10.77.0.2 port 29490: no answer within 3 s" in gone.why_not
    hosts = net.node(1).run([MINGLE, "hosts", "--format", "deepspeed"], check=True)
    assert hosts.stdout == "10.77.0.1 slots=1\n"
    assert "gpu2: left out: " in hosts.stderr


def test_a_named_peer_where_nothing_else_gets_through(lan: MakeLan) -> None:
    net = lan(nodes=2)
    daemons_on(net.nodes)
    for node in net.nodes:
        node.drop("meta pkttype { broadcast, multicast } meta l4proto udp")
    assert list(nodes_on(net.node(1))) == ["gpu1"]
    found = nodes_on(net.node(1), "--peers", "10.77.0.2")
    assert list(found) == ["gpu1", "gpu2"]
    assert found["gpu2"].reached


def test_without_a_daemon_here_the_others_are_shown(lan: MakeLan) -> None:
    net = lan(nodes=2)
    daemons_on(net.nodes[1:])
    assert list(nodes_on(net.node(1))) == ["gpu2"]
    alone = net.node(1).run([MINGLE, "nodes", "--json"], env={"PATH": "/usr/bin"})
    assert alone.returncode == 0


@pytest.mark.skipif(not shutil.which("ssh"), reason="no ssh")
def test_ssh_reads_the_file(lan: MakeLan, tmp_path: Path) -> None:
    net = lan(nodes=2)
    daemons_on(net.nodes)
    done = net.node(1).run(
        [MINGLE, "hosts", "--format", "ssh", "--user", "ann"],
        check=True,
    )
    file = tmp_path / "config"
    file.write_text(done.stdout)
    read = net.node(1).run(["ssh", "-G", "-F", str(file), "gpu2"], check=True).stdout.splitlines()
    assert "hostname 10.77.0.2" in read
    assert "user ann" in read


def test_link_local_addresses_alone(lan: MakeLan) -> None:
    net = lan(nodes=2, ipv4=False, ipv6=True)
    daemons_on(net.nodes)
    done = net.node(1).run([MINGLE, "hosts", "--format", "ssh"], check=True)
    assert len(re.findall(r"^    HostName fe80::[0-9a-f:]+%%eth0$", done.stdout, re.M)) == 2
    none = net.node(1).run([MINGLE, "hosts", "--format", "openmpi"])
    assert none.returncode == 1
    assert "gpu2: left out: it has link-local addresses alone" in none.stderr
    assert "no node was reached" not in none.stderr
    (address,) = nodes_on(net.node(1))["gpu2"].addresses
    assert address.endswith("%eth0")


def test_hostfiles_have_the_documented_syntax(lan: MakeLan) -> None:
    net = lan(nodes=2)
    daemons_on(net.nodes)
    for kind in ("openmpi", "deepspeed"):
        done = net.node(1).run([MINGLE, "hosts", "--format", kind, "--slots", "8"], check=True)
        lines = done.stdout.splitlines()
        assert lines == ["10.77.0.1 slots=8", "10.77.0.2 slots=8"]
        assert all(re.fullmatch(r"\S+ slots=\d+", line) for line in lines)
        named = net.node(1).run([MINGLE, "hosts", "--format", kind, "--names"], check=True)
        assert named.stdout == "gpu1 slots=1\ngpu2 slots=1\n"
        assert "gpu2 does not resolve to 10.77.0.2 on this machine" in named.stderr


STRICT = """
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname lo accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    }
}
"""
"""A firewall as distributions ship it."""


@pytest.mark.parametrize(
    ("subnet", "options"),
    [
        ("10.77.0.0/24", {}),
        ("fd77::/64", {"ipv4": False, "ipv6": "fd77::/64"}),
    ],
    ids=["ipv4", "ipv6"],
)
def test_a_job_works_behind_the_printed_rules_and_not_without(
    lan: MakeLan, subnet: str, options: dict[str, object]
) -> None:
    net = lan(nodes=2, **options)
    for node in net.nodes:
        node.run(["nft", "-f", "-"], input=STRICT, check=True)
    daemons_on(net.nodes)
    blocked = [wait(node, "bert", "--nnodes", "2", cmd=SHOW, timeout="4s") for node in net.nodes]
    assert [running.end().code for running in blocked] == [82, 82]
    doctor = net.node(1).run([MINGLE, "doctor", "--json"])
    assert '"check":"firewall","result":"fail"' in doctor.stdout
    for node in net.nodes:
        rules = node.run(
            [MINGLE, "firewall", "--subnet", subnet, "--format", "nft"], check=True
        ).stdout
        node.run(["nft", "-c", "-f", "-"], input=rules, check=True)
        node.run(["nft", "-f", "-"], input=rules, check=True)
    opened = [wait(node, "bert", "--nnodes", "2", cmd=SHOW) for node in net.nodes]
    for running in opened:
        running.well()
    after = net.node(1).run([MINGLE, "doctor", "--json"])
    assert '"check":"firewall","result":"pass"' in after.stdout
    assert '"check":"ephemeral-ports","result":"pass"' in after.stdout
