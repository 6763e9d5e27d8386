"""Another mDNS responder on the same machines (fault 24), as every Debian desktop has one."""

from __future__ import annotations

import shutil
import sys
import time

import pytest

from mingled.lab import Node

from .conftest import MakeLan, absent
from .helpers import PATIENCE_S, STAY, Running, one_round, start, variables, wait

AVAHI = shutil.which("avahi-daemon", path="/usr/sbin:/usr/bin") or ""

CONFIGURATION = """
[server]
use-ipv4=yes
use-ipv6=no
enable-dbus=no
[publish]
publish-workstation=yes
"""

RESOLVE = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect("/run/avahi-daemon/socket")
    sock.sendall(f"RESOLVE-HOSTNAME-IPV4 {sys.argv[1]}\\n".encode())
    print(sock.makefile().readline().strip())
"""
"""What nss-mdns says and hears: `+ INTERFACE PROTOCOL NAME ADDRESS`, or `-` and an error."""


def resolved(node: Node, name: str) -> str:
    """The address that this machine's programs get for a name; else what avahi has to say."""
    said = node.run([sys.executable, "-c", RESOLVE, name], check=True).stdout.split()
    return said[-1] if said[0] == "+" else " ".join(said)


def until_unknown(node: Node, name: str) -> None:
    """Ask again and again until nobody has that name: caches keep it for a second."""
    until_s = time.monotonic() + PATIENCE_S
    while not (said := resolved(node, name)).startswith("-15 "):  # a timeout of avahi's
        assert time.monotonic() < until_s, said


def avahi(node: Node) -> Running:
    """One that has its host name announced."""
    if not AVAHI:
        absent("avahi-daemon is not installed: apt-get install avahi-daemon")
    node.run(
        ["sh", "-c", "mkdir -p /run/avahi-daemon; cat > /tmp/avahi.conf"],
        input=CONFIGURATION,
        check=True,
    )
    flags = ("--no-drop-root", "--no-chroot", "--no-rlimits", "-f", "/tmp/avahi.conf")
    running = start(node, AVAHI, *flags)
    running.until("Server startup complete")
    return running


@pytest.mark.parametrize("order", ["avahi first", "mingled first"])
def test_fault_24_avahi_shares_the_port(lan: MakeLan, order: str) -> None:
    """It may receive what is meant for us alone: so everybody is asked when nothing comes."""
    three = lan(nodes=3)
    for node in three.nodes:
        node.drop("udp dport 29491")  # mDNS alone is to find them
    responders = [avahi(node) for node in three.nodes] if order == "avahi first" else []
    leader = wait(three.node(1), "bert", "--nnodes", "3", "--node-rank", "0")
    leader.until("1/3 here")
    responders = responders or [avahi(node) for node in three.nodes]
    others = [wait(three.node(n), "bert", "--nnodes", "3") for n in (2, 3)]
    told = {n: r.well().env for n, r in enumerate([leader, *others], 1)}
    assert one_round(three, told) == 1
    for responder in responders:
        assert not responder.over, responder.err


def test_the_names_of_sing_resolve_until_the_lease_ends(lan: MakeLan) -> None:
    """On a machine of the job, beside its avahi, and on another one."""
    three = lan(nodes=3)
    witnesses = [three.node(1), three.node(3)]
    responders = [avahi(node) for node in witnesses]
    flags = ("--world-size", "2", "--for", "sing")
    runs = [wait(three.node(n), "bert", *flags, cmd=STAY) for n in (1, 2)]
    envs = [variables(running.until("SING_HOST_ADDR", kind="out")) for running in runs]
    for running, env in zip(runs, envs, strict=True):
        assert f"{env['SING_HOST_ADDR']} is answered by mDNS" in running.err
    places = {env["SING_HOST_ADDR"]: env["MINGLE_ADDRESS"] for env in envs}
    assert sorted(places) == ["bert-0.local", "bert-1.local"]
    for node in witnesses:
        assert {name: resolved(node, name) for name in places} == places
    for running in runs:
        assert running.finish().code == 0
    for node in witnesses:
        until_unknown(node, "bert-0.local")
    for responder in responders:
        assert not responder.over, responder.err


def test_a_name_that_another_machine_has_is_left_to_it(lan: MakeLan) -> None:
    """avahi answers for its host's own name."""
    two = lan(nodes=2, hostname="bert-{n}")
    responder = avahi(two.node(2))
    responder.until("Host name is bert-2.local")
    flags = ("--world-size", "3", "--for", "sing")
    runs = [wait(two.node(1), "bert", *flags, cmd=STAY) for _ in range(3)]
    said = [running.until("SING_RANK", kind="out") for running in runs]
    (third,) = [r for r, text in zip(runs, said, strict=True) if "SING_RANK=2" in text]
    third.until("bert-2.local is not answered: that is the name of 10.77.0.2, which keeps it")
    for running in runs:
        assert running.finish().code == 0
