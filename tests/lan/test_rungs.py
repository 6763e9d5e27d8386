"""The ladder of discovery on real networks that drop what one rung or another needs."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mingled.lab import Lan, Node

from .conftest import MakeLan, absent
from .helpers import Running, python

LABEL = "abcdefghijklmnopqrstuvwxyz"

RUNGS = """
import asyncio, os, socket, sys
from mingled.core import events
from mingled.core.datagrams import Identity
from mingled.core.messages import Advert
from mingled.core.words import Label, NodeId, Nonce
from mingled.edges.broadcast import Broadcast
from mingled.edges.mdns import Mdns
from mingled.edges.presence import find_nodes
from mingled.edges.unicast import Unicast
from mingled.net.datagrams import Datagrams
from mingled.net.interfaces import candidates
from mingled.net.resolve import Resolver

label, peers = Label(sys.argv[1]), sys.argv[2:]
heard = {}

def say(*words):
    print(*words, flush=True)

def emit(event):
    match event:
        case events.AdvertHeard(advert=advert, rung=rung):
            heard[advert.claim] = advert
            say("heard", rung, advert.claim, ",".join(advert.addresses))
        case events.AdvertGone(claim=claim, rung=rung):
            say("gone", rung, claim)
        case events.DiscoveryNoted(sentence=sentence):
            say("noted", sentence)

async def main():
    loop = asyncio.get_running_loop()
    node = NodeId(os.urandom(16).hex())
    identity = Identity(node=node, host=socket.gethostname(), port=29490)
    datagrams = Datagrams(identity)
    rungs = [
        Mdns(emit, node, identity),
        Broadcast(emit, datagrams),
        Unicast(emit, datagrams, Resolver(), peers),
    ]
    six = any(":" in a.address for a in candidates())
    server = await asyncio.start_server(lambda r, w: w.close(), "::" if six else "0.0.0.0", 0)
    port = server.sockets[0].getsockname()[1]
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    addresses = candidates()
    await datagrams.start(addresses)
    for rung in rungs:
        await rung.start(addresses)
    say("ready")
    while words := (await lines.readline()).decode().split():
        match words:
            case ["lead", claim]:
                at = tuple(a.address for a in candidates())[:16]
                advert = Advert(version=1, key_id="none", label=label, claim=Nonce(claim),
                                port=port, addresses=at)
                for rung in rungs:
                    rung.advertise(advert, ())
            case ["withdraw", claim]:
                for rung in rungs:
                    rung.withdraw(label, Nonce(claim))
            case ["ask"]:
                for rung in rungs:
                    rung.ask(label, unicast=False, peers=())
            case ["connect", claim]:
                advert = heard[claim]
                _, writer = await asyncio.open_connection(advert.addresses[0], advert.port)
                say("connected", writer.get_extra_info("peername")[0])
                writer.close()
            case ["readdress"]:
                addresses = candidates()
                await datagrams.readdress(addresses)
                for rung in rungs:
                    await rung.readdress(addresses)
            case ["census"]:
                census = await find_nodes(2.0, peers)
                for found in census.nodes:
                    say("found", found.host, found.port, *found.rungs)
        for rung in rungs:
            say("state", rung.state)
        say("done", *words)
    for rung in rungs:
        await rung.close()
    await datagrams.close()
    server.close()
asyncio.run(main())
"""


class Daemon:
    """The rungs of one daemon on a node."""

    def __init__(self, node: Node, *peers: str) -> None:
        self.running: Running = python(node, RUNGS, LABEL, *peers)
        self.running.until("ready\n", kind="out")
        self._orders = 0

    def do(self, *words: str) -> None:
        """Back when it is done (or begun, where the network is waited for)."""
        line = " ".join(words)
        before = self.said.count(f"done {line}\n")
        stdin = self.running.process.stdin
        assert stdin is not None
        stdin.write(f"{line}\n")
        stdin.flush()
        self.until(f"done {line}\n", times=before + 1)

    @property
    def said(self) -> str:
        return self.running.out

    def until(self, *texts: str, times: int = 1) -> None:
        self.running.until(*texts, kind="out", times=times)

    def end(self) -> None:
        done = self.running.finish()
        assert done.code == 0, done


@pytest.fixture
def claims() -> Iterator[str]:
    return iter(lambda: secrets.token_hex(16), "")


NO_MULTICAST = "meta pkttype multicast"
NO_BROADCAST = "meta pkttype broadcast udp dport 29491"


def without(lan: Lan, *matches: str) -> None:
    for node in lan.nodes:
        for match in matches:
            node.drop(match)


# ---------------------------------------------------------------- the ladder


def test_all_rungs_work_on_a_plain_lan(lan: MakeLan, claims: Iterator[str]) -> None:
    both = lan(nodes=2)
    leader, follower = Daemon(both.node(1)), Daemon(both.node(2), both.node(1).address)
    claim = next(claims)
    leader.do("lead", claim)
    follower.do("ask")
    follower.until(
        *(f"heard {rung} {claim} 10.77.0.1\n" for rung in ("mdns", "broadcast", "peers"))
    )
    leader.do("withdraw", claim)
    follower.until(*(f"gone {rung} {claim}\n" for rung in ("mdns", "broadcast", "peers")))
    for line in (
        "state mdns: browsing _mingle._tcp.local. on eth0 10.77.0.2\n",
        "state broadcast: UDP 29491 on eth0 10.77.0.255\n",
        "state peers: 10.77.0.1\n",
    ):
        assert line in follower.said
    leader.end()
    follower.end()


def test_fault_26_without_multicast_broadcast_carries_adverts(
    lan: MakeLan, claims: Iterator[str]
) -> None:
    three = lan(nodes=3)
    without(three, NO_MULTICAST)
    leader, early = Daemon(three.node(1)), Daemon(three.node(2))
    claim = next(claims)
    leader.do("lead", claim)
    early.until(f"heard broadcast {claim} 10.77.0.1\n")
    late = Daemon(three.node(3))
    late.do("ask")
    late.until(f"heard broadcast {claim} 10.77.0.1\n")
    leader.end()  # says goodbye
    for daemon in (early, late):
        daemon.until(f"gone broadcast {claim}\n")
        assert "mdns " not in daemon.said
        daemon.end()


def test_fault_27_without_broadcast_too_named_peers_do(lan: MakeLan, claims: Iterator[str]) -> None:
    three = lan(nodes=3)
    without(three, NO_MULTICAST, NO_BROADCAST)
    leader = Daemon(three.node(1))
    asker = Daemon(three.node(2), "10.77.0.1")
    here = (asker, Daemon(three.node(2)), Daemon(three.node(2)))
    claim = next(claims)
    asker.do("ask")  # it is remembered
    leader.do("lead", claim)
    for daemon in here:  # whichever of them the kernel gave it to
        daemon.until(f"heard peers {claim} 10.77.0.1\n")
    far = Daemon(three.node(3), "10.77.0.2")
    for daemon in here:  # whichever of them is asked, the one that leads answers
        claim = next(claims)
        daemon.do("lead", claim)
        far.do("ask")
        far.until(f"heard peers {claim} 10.77.0.2\n")
        daemon.do("withdraw", claim)
        far.until(f"gone peers {claim}\n")
    for daemon in (leader, *here, far):
        daemon.end()
        assert "heard broadcast" not in daemon.said
        assert "heard mdns" not in daemon.said


def test_peers_on_one_side_join_two_routed_subnets(lan: MakeLan, claims: Iterator[str]) -> None:
    three = lan(nodes=3, networks=2)
    first, router, second = three.nodes
    first.configure(["link set eth1 down", "route add 10.78.0.0/24 via 10.77.0.2"])
    second.configure(["link set eth0 down", "route add 10.77.0.0/24 via 10.78.0.2"])
    router.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], check=True)
    one, two = Daemon(first, "10.78.0.3"), Daemon(second)
    claim = next(claims)
    one.do("lead", claim)  # tells its peer, which has named nobody
    two.until(f"heard peers {claim} 10.77.0.1")
    claim = next(claims)
    two.do("lead", claim)
    one.do("ask")
    one.until(f"heard peers {claim} ")
    for daemon in (one, two):
        daemon.end()
        assert "heard mdns" not in daemon.said


ECHO = """
import asyncio, os, sys
from mingled.core.datagrams import Echo, Echoed
from mingled.net.datagrams import Datagrams
from mingled.net.interfaces import candidates

async def main():
    datagrams = Datagrams(None)
    def arrived(arrival):
        if isinstance(arrival.datagram, Echoed):
            e = arrival.datagram
            came = (e.token, e.by, e.sent_by, arrival.means)
            print(*came, e.host, e.interface, e.address, flush=True)
    datagrams.subscribe(arrived)
    await datagrams.start(candidates())
    failed = {}
    for token, by in enumerate(("multicast", "broadcast", "unicast")):
        echo = Echo(node=datagrams.node, token=str(token), by=by, back=True, pad="x" * 800)
        if by == "unicast":
            failed[by] = datagrams.send(echo, sys.argv[1])
        else:
            failed |= getattr(datagrams, by)(echo)
    print("sent", {k: v for k, v in failed.items() if v}, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("family", [4, 6])
def test_echoes_come_back_by_the_means_they_went(lan: MakeLan, family: int) -> None:
    both = lan(nodes=2) if family == 4 else lan(nodes=2, ipv4=False, ipv6="fd77::/64")
    first, second = both.nodes
    address = "10.77.0.1" if family == 4 else "fd77::1"
    daemon, asker = Daemon(first), python(second, ECHO, address)
    asker.until("sent {}\n", kind="out")
    for token, by in (("0", "multicast"), ("1", "broadcast")):
        asker.until(f"{token} {by} unicast unicast gpu1 eth0", kind="out")
        asker.until(f"{token} {by} {by} {by} gpu1 eth0", kind="out")
    asker.until(f"2 unicast unicast unicast gpu1 eth0 {address}\n", kind="out")
    daemon.end()


# ---------------------------------------------------------------- names


def resolv_conf(node: Node, folder: Path, server: str) -> None:
    """The node asks that DNS server from now on."""
    conf = folder / f"resolv-{node.name}.conf"
    conf.write_text(f"nameserver {server}\n")
    node.run(["mount", "--bind", str(conf), "/etc/resolv.conf"], check=True)


def test_a_headless_service_names_all_nodes(
    lan: MakeLan, claims: Iterator[str], tmp_path: Path
) -> None:
    if shutil.which("dnsmasq", path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
        absent("The command `dnsmasq` is missing: install it with `apt install dnsmasq-base`.")
    three = lan(nodes=3)
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"10.77.0.{n} head.lab.svc\n" for n in range(1, 31)))
    without(three, NO_MULTICAST, NO_BROADCAST)
    options = (*("-k", "-C", "/dev/null", "--no-resolv", "--no-hosts"), f"--addn-hosts={hosts}")
    unrooted = ("--user=root", "--group=root", "--pid-file=", "--log-facility=-", "--log-queries")
    three.node(1).popen(["/usr/sbin/dnsmasq", *options, *unrooted])
    asker, leader = three.node(2), Daemon(three.node(3))
    resolv_conf(asker, tmp_path, "10.77.0.1")
    claim = next(claims)
    leader.do("lead", claim)
    daemon = Daemon(asker, "head.lab.svc", "nobody.lab.svc")
    while "heard" not in daemon.said:  # until dnsmasq is up
        daemon.do("ask")
        daemon.until("state peers: ")
        asker.run(["sleep", "0.2"], check=True)
    daemon.until(f"heard peers {claim} 10.77.0.3\n")
    daemon.do("ask")
    daemon.until(
        "state peers: head.lab.svc (30 addresses), nobody.lab.svc ", "noted peer nobody.lab"
    )
    daemon.end()
    leader.end()


def test_a_dns_server_that_never_answers_is_named(
    lan: MakeLan, claims: Iterator[str], tmp_path: Path
) -> None:
    both = lan(nodes=2)
    first, second = both.nodes
    first.drop("meta l4proto { tcp, udp } th dport 53")
    resolv_conf(second, tmp_path, first.address)
    daemon, leader = Daemon(second, "head.lab.svc"), Daemon(first)
    daemon.do("ask")
    claim = next(claims)
    leader.do("lead", claim)
    daemon.until(f"heard mdns {claim}", f"heard broadcast {claim}")  # the others go on
    daemon.until(
        "noted peer head.lab.svc cannot be looked up: the DNS server 10.77.0.1 does not answer "
        "within 5 s (on gpu2); correct --peers"
    )
    daemon.do("ask")
    daemon.end()  # although the look-up still hangs
    leader.end()


# ---------------------------------------------------------------- IPv6


@pytest.mark.parametrize("subnet", [True, "fd77::/64"])
def test_a_lan_of_ipv6_only(lan: MakeLan, claims: Iterator[str], subnet: bool | str) -> None:
    both = lan(nodes=2, ipv4=False, ipv6=subnet)
    leader, follower = Daemon(both.node(1)), Daemon(both.node(2))
    claim = next(claims)
    leader.do("lead", claim)
    follower.do("ask")
    follower.until(f"heard mdns {claim} ", f"heard broadcast {claim} ")
    follower.do("connect", claim)
    assert "connected f" in follower.said
    if subnet is True:
        assert "%eth0" in follower.said.partition(f"heard mdns {claim} ")[2].partition("\n")[0]
        assert "%eth0" in follower.said.partition(f"heard broadcast {claim} ")[2].partition("\n")[0]
    assert "state broadcast: UDP 29491 on eth0 ff02::1\n" in follower.said
    leader.do("withdraw", claim)
    follower.until(f"gone mdns {claim}", f"gone broadcast {claim}")
    leader.end()
    follower.end()


def test_both_families_at_once(lan: MakeLan, claims: Iterator[str]) -> None:
    three = lan(nodes=3, ipv6="fd77::/64")
    three.node(3).configure(["addr del 10.77.0.3/24 dev eth0"])
    leader, dual, six = (Daemon(node) for node in three.nodes)
    six.do("ask")
    claim = next(claims)
    leader.do("lead", claim)
    for follower in (dual, six):
        follower.until(f"heard mdns {claim} ", f"heard broadcast {claim} ")
    for daemon in (leader, dual, six):
        daemon.end()


def test_a_host_of_ipv6_only_finds_one_of_both_families_by_broadcast(
    lan: MakeLan, claims: Iterator[str]
) -> None:
    both = lan(nodes=2, ipv6="fd77::/64")
    both.node(2).configure(["addr del 10.77.0.2/24 dev eth0"])
    without(both, "udp dport 5353")  # neighbor discovery is multicast, too
    dual, six = (Daemon(node) for node in both.nodes)
    claim = next(claims)
    dual.do("lead", claim)
    six.do("ask")  # what was said over IPv4 passed it by
    six.until(f"heard broadcast {claim} ")
    dual.do("withdraw", claim)
    six.until(f"gone broadcast {claim}\n")
    claim = next(claims)
    dual.do("lead", claim)  # it is known that somebody hears nothing else
    six.until(f"heard broadcast {claim} ")
    back = next(claims)
    six.do("lead", back)
    dual.until(f"heard broadcast {back} ")
    for daemon in (dual, six):
        daemon.end()
        assert "heard mdns" not in daemon.said


@pytest.mark.parametrize("family", [4, 6])
def test_mdns_alone_tells_addresses_in_the_leaders_order(
    lan: MakeLan, claims: Iterator[str], family: int
) -> None:
    both = lan(nodes=2, networks=2) if family == 4 else lan(nodes=2, ipv4=False, ipv6="fd77::/64")
    without(both, "udp dport 29491")
    follower, leader = Daemon(both.node(2)), Daemon(both.node(1))
    follower.do("ask")
    claim = next(claims)
    leader.do("lead", claim)  # a live announcement, not the answer to a question
    best = "10.77.0.1,10.78.0.1\n" if family == 4 else "fd77::1,fe80::"
    follower.until(f"heard mdns {claim} {best}")
    for daemon in (leader, follower):
        daemon.end()
        assert "heard broadcast" not in daemon.said


# ---------------------------------------------------------------- interfaces


def test_fault_18_an_interface_that_is_made_again_is_joined_again(
    lan: MakeLan, claims: Iterator[str]
) -> None:
    both = lan(nodes=2)
    first, second = both.nodes
    make = [
        *("link add lan0 type bridge mcast_snooping 0", "link set eth0 master lan0"),
        *("addr add 10.77.0.2/24 brd + dev lan0", "link set lan0 up"),
        "route add 224.0.0.0/4 dev lan0",
    ]
    second.configure(["addr del 10.77.0.2/24 dev eth0", *make])
    leader, follower = Daemon(first), Daemon(second)
    # More often than the kernel lets a socket be in groups: those of old must be left.
    for _ in range(23):
        second.configure(["link del lan0", *make])
        follower.do("readdress")
    claim = next(claims)
    leader.do("lead", claim)
    follower.until(f"heard mdns {claim} 10.77.0.1\n", f"heard broadcast {claim} 10.77.0.1\n")
    back = next(claims)
    follower.do("lead", back)
    leader.until(f"heard mdns {back} 10.77.0.2\n", f"heard broadcast {back} 10.77.0.2\n")
    leader.end()
    follower.end()
    assert "left out" not in follower.said


def test_fault_19_more_interfaces_than_a_socket_can_join_on(
    lan: MakeLan, claims: Iterator[str]
) -> None:
    both = lan(nodes=2)
    lines = []
    for n in range(25):
        lines += [
            *(f"link add docker{n} type bridge", f"addr add 172.{n + 1}.0.1/16 dev docker{n}"),
            f"link set docker{n} up",
        ]
    both.node(2).configure(lines)
    leader, follower = Daemon(both.node(1)), Daemon(both.node(2))
    claim = next(claims)
    leader.do("lead", claim)
    follower.until(f"heard mdns {claim} 10.77.0.1\n", f"heard broadcast {claim} 10.77.0.1\n")
    follower.do("readdress")
    (state,) = {s for s in follower.said.splitlines() if s.startswith("state mdns")}
    assert state.startswith("state mdns: browsing _mingle._tcp.local. on eth0 10.77.0.2, ")
    assert state.endswith(" (igmp_max_memberships)")
    assert state.partition("left out: ")[2].count("docker") == 6
    assert follower.running.err.count("left out: docker") == 1
    leader.end()
    follower.end()


def test_a_machine_without_a_network_is_reached_once_it_has_one(
    lan: MakeLan, claims: Iterator[str]
) -> None:
    both = lan(nodes=2)
    first, second = both.nodes
    second.configure(["link set eth0 down", "link set lo down"])
    follower = Daemon(second)
    follower.do("ask")
    leader = Daemon(first)
    claim = next(claims)
    leader.do("lead", claim)
    second.configure(["link set lo up", "link set eth0 up", "route add 224.0.0.0/4 dev eth0"])
    follower.do("readdress")
    follower.do("ask")
    follower.until(f"heard mdns {claim} 10.77.0.1\n", f"heard broadcast {claim} 10.77.0.1\n")
    leader.end()
    follower.end()


# ---------------------------------------------------------------- other programs

HOLD = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", int(sys.argv[1])))
print("held", flush=True); sys.stdin.readline()
"""


def test_fault_25_ports_that_others_hold_leave_the_next_rung(
    lan: MakeLan, claims: Iterator[str]
) -> None:
    three = lan(nodes=3)
    holders = [python(three.node(n), HOLD, port) for n, port in ((2, "5353"), (3, "29491"))]
    for holder in holders:
        holder.until("held", kind="out")
    leader, second, third = (Daemon(node) for node in three.nodes)
    claim = next(claims)
    leader.do("lead", claim)
    second.until(f"heard broadcast {claim} 10.77.0.1\n")
    third.until(f"heard mdns {claim} 10.77.0.1\n")
    second.do("ask")
    third.do("ask")
    said = "does not work: another program holds UDP port"
    assert f"state mdns: {said} 5353 for itself alone\n" in second.said
    assert f"state broadcast: {said} 29491 for itself alone\n" in third.said
    assert f"state peers: {said} 29491 for itself alone\n" in third.said
    for daemon in (leader, second, third):
        daemon.end()


def test_a_firewall_that_forbids_sending_is_named(lan: MakeLan, claims: Iterator[str]) -> None:
    both = lan(nodes=2)
    rule = "chain output { type filter hook output priority 0; udp dport 29491 drop; }"
    both.node(2).holder.configure("nft", "-f", "-", script=f"table inet strict {{ {rule}; }}")
    leader, follower = Daemon(both.node(1)), Daemon(both.node(2), both.node(1).address)
    follower.do("ask")
    forbidden = "a firewall on this machine forbids UDP to"
    follower.until(
        f"noted peer 10.77.0.1 cannot be asked: {forbidden} 10.77.0.1 (on gpu2)",
        f"state broadcast: does not work: eth0 10.77.0.255: {forbidden} 10.77.0.255\n",
    )
    claim = next(claims)
    leader.do("lead", claim)
    follower.until(f"heard mdns {claim}", f"heard broadcast {claim}")
    leader.end()
    follower.end()


def test_an_idle_daemon_is_silent_and_answers_a_census(lan: MakeLan) -> None:
    three = lan(nodes=3)
    with (
        three.capture(1, "udp port 5353") as mdns,
        three.capture(1, "udp port 29491") as datagrams,
    ):
        first, second = Daemon(three.node(1)), Daemon(three.node(2))
        mdns.wait_for(2)  # both have asked for adverts
        assert not any("_mingle-node" in packet.text for packet in mdns)
        assert len(datagrams) == 0
        third = Daemon(three.node(3), "10.77.0.1")
        third.do("census")
        third.until(
            "found gpu1 29490 broadcast mdns peers\n",
            "found gpu2 29490 broadcast mdns\n",
            "found gpu3 29490 broadcast mdns\n",  # itself
        )
        mdns.wait_for(4)
        for daemon in (first, second, third):
            daemon.end()
    told = [packet.text for packet in mdns if "_mingle-node" in packet.text]
    assert told
    assert not any(" 0*- [0q] 0/" in text for text in told)
