"""Another mDNS responder on the same machines (fault 24), as every Debian desktop has one."""

from __future__ import annotations

import shutil

import pytest

from mingled.lab import Node

from .conftest import MakeLan, absent
from .helpers import Running, one_round, start, wait

AVAHI = shutil.which("avahi-daemon", path="/usr/sbin:/usr/bin") or ""

CONFIGURATION = """
[server]
use-ipv4=yes
use-ipv6=no
enable-dbus=no
[publish]
publish-workstation=yes
"""


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
def test_avahi_shares_the_port(lan: MakeLan, order: str) -> None:
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
