"""Interfaces, neighbours, echoes and changes as a real kernel has them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

import msgspec
import pytest

from mingled.cli.interfaces import Shown
from mingled.cli.neighbors import Shown as ShownNeighbor
from mingled.cli.ping import Shown as ShownPing
from mingled.core.events import Address
from mingled.errors import MingleError
from mingled.lab import Node, available
from mingled.lab.tools import tool

from .conftest import MakeLan
from .helpers import NOBODY, STAY, Running, daemons_on, python, start, wait

MINGLE = (sys.executable, "-m", "mingled.cli.mingle")
DOCKER0 = (
    "link add docker0 type bridge",
    "addr add 172.17.0.1/16 dev docker0",
    "link set docker0 up",
)
A_CONTAINER = (  # what docker makes of one: a cable with an end in docker0
    "link add vethab12cd3 type veth peer name inside",
    "link set vethab12cd3 master docker0 up",
    "link set inside up",
)
CANDIDATES = """
import msgspec, sys
from mingled.net.interfaces import candidates
exact, *only = sys.argv[1:]
print(msgspec.json.encode(candidates(only, exact=exact == "exact")).decode())
"""
APART = """
import asyncio, msgspec, sys
from mingled.net.apart import exact_candidates
print(msgspec.json.encode(asyncio.run(exact_candidates())).decode())
assert "pyroute2" not in sys.modules
"""
CONNECT = """
import asyncio, sys
from mingled.net.dialing import connect
from mingled.net.interfaces import candidates
address, *only = sys.argv[1:]
async def main():
    with await asyncio.wait_for(connect(address, 9, candidates(only) if only else ()), 30):
        print("connected")
try:
    asyncio.run(main())
except ConnectionRefusedError:
    print("refused")
except OSError as error:
    print(error)
"""
LISTED = """
from mingled.net import quick
found = quick.addresses()
module = quick.netifaces()  # each by itself
for name in set(quick.names()) - {"tun9"}:  # which has nothing to be asked for
    alone = module.ifaddresses(name)
    entries = [*alone.get(module.AF_INET, ()), *alone.get(module.AF_INET6, ())]
    assert [a.address for a in found[name]] == [e["addr"].partition("%")[0] for e in entries]
assert found["tun9"] == () != found["eth0"]
print(len(quick.facts().links))
"""
MONITOR = """
import asyncio, sys
from mingled.net.monitor import Monitor, snapshot
async def main():
    said = [snapshot()]
    def changed():
        said.append(snapshot())
        print("change", len(said) - 1, "another" if said[-1] != said[-2] else "same", flush=True)
    monitor = Monitor(changed)
    assert monitor.start()
    print("started", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    monitor.close()
    print("changes:", len(said) - 1, flush=True)
asyncio.run(main())
"""


def mingle(node: Node, *words: str, columns: int | None = None) -> subprocess.CompletedProcess[str]:
    return node.run([*MINGLE, *words], env={"COLUMNS": str(columns) if columns else None})


def interfaces(node: Node, *words: str) -> dict[str, Shown]:
    shown = mingle(node, "interfaces", "--json", *words).stdout
    return {one.name: one for one in msgspec.json.decode(shown, type=list[Shown])}


def candidates(node: Node, *only: str, exact: bool = True) -> list[str]:
    word = "exact" if exact else "quick"
    shown = node.run([sys.executable, "-c", CANDIDATES, word, *only], check=True).stdout
    return [a.address for a in msgspec.json.decode(shown, type=list[Address])]


def configured(node: Node, lines: Sequence[str], needs: str) -> None:
    """Skips where this kernel has no such interfaces."""
    try:
        node.configure(lines)
    except MingleError as error:
        if "Unknown device type" not in str(error):
            raise
        pytest.skip(f"this kernel has no {needs}")


# ---------------------------------------------------------------- kinds and order


def test_a_container_host(lan: MakeLan) -> None:
    node = lan(nodes=1, networks=2).node(1)
    node.configure([*DOCKER0, *A_CONTAINER])
    found = interfaces(node)
    assert {name: (one.kind, one.used) for name, one in found.items()} == {
        "eth0": ("veth", True),
        "eth1": ("veth", True),
        "docker0": ("docker", True),
        "lo": ("loopback", False),
        "vethab12cd3": ("veth", False),
        "inside": ("veth", False),
    }
    assert [found[name].place for name in ("eth0", "eth1", "docker0")] == [1, 2, 3]
    assert found["vethab12cd3"].why == "it is a port of docker0, which has the addresses"
    assert found["eth0"].mac == "02:4d:47:00:00:01"
    assert (found["eth0"].hardware, found["eth0"].mtu_bytes) == (False, 1500)
    assert candidates(node) == ["10.77.0.1", "10.78.0.1", "172.17.0.1"]
    assert candidates(node, exact=False) == candidates(node)
    node.configure(["link set vethab12cd3 nomaster"])
    for exact in (False, True):  # docker0 has no carrier now
        assert candidates(node, exact=exact) == ["10.77.0.1", "10.78.0.1"]
    assert candidates(node, "docker0") == ["172.17.0.1"]
    assert candidates(node, "docker0", exact=False) == ["172.17.0.1"]


def test_a_kvm_host_has_its_address_on_a_bridge(lan: MakeLan) -> None:
    node = lan(nodes=2).node(1)
    lines = (
        "link add virbr0 type bridge",
        "addr flush dev eth0",
        "link set eth0 master virbr0",
        "link set virbr0 up",
        "addr add 10.77.0.1/24 dev virbr0",
    )
    node.configure(lines)
    assert interfaces(node)["virbr0"].why.startswith("virtual")
    node.configure(["route add default via 10.77.0.2"])
    found = interfaces(node)
    assert found["virbr0"].why.startswith("wired")
    assert found["virbr0"].gateways == ("10.77.0.2",)
    assert found["eth0"].why == "it is a port of virbr0, which has the addresses"


@pytest.mark.parametrize(
    ("kind", "lines", "why"),
    [
        ("vlan", ("link add link eth0 name new type vlan id 5",), "wired"),
        ("bond", ("link add new type bond",), "it has no carrier"),
        ("dummy", ("link add new type dummy",), "virtual"),
        ("wireguard", ("link add new type wireguard",), "a tunnel"),
        ("macvlan", ("link add new link eth0 type macvlan",), "wired"),
        ("macvtap", ("link add new link eth0 type macvtap",), "virtual"),
        ("ipvlan", ("link add new link eth0 type ipvlan",), "wired"),
        ("vxlan", ("link add new type vxlan id 5 dev eth0 dstport 4789",), "virtual"),
        ("tun", ("tuntap add new mode tun",), "it has no carrier"),
        ("tap", ("tuntap add new mode tap",), "it has no carrier"),
        ("tunnel", ("link add new type gre local 10.77.0.1 remote 10.77.0.2",), "a tunnel"),
        ("veth", ("link add new type veth peer name other", "link set other up"), "virtual"),
    ],
)
def test_every_kind_that_this_kernel_has(
    lan: MakeLan, kind: str, lines: tuple[str, ...], why: str
) -> None:
    node = lan(nodes=1).node(1)
    configured(node, [*lines, "addr add 10.5.0.1/24 dev new", "link set new up"], kind)
    new = interfaces(node)["new"]
    assert (new.kind, new.hardware, new.up) == (kind, False, True)
    assert new.why.startswith(why)
    assert [a.address for a in new.addresses] == ["10.5.0.1"]
    assert new.index_hex == hex(new.index)


def test_a_child_tells_what_names_hide(lan: MakeLan) -> None:
    node = lan(nodes=1).node(1)
    node.configure(["link add en5 type veth peer name en6", "link set en6 up", "link set en5 up"])
    node.configure(["addr add 10.5.0.1/24 dev en5"])
    script = node.run([sys.executable, "-c", APART], check=True).stdout
    apart = msgspec.json.decode(script, type=list[Address])
    assert [(a.interface, a.virtual) for a in apart] == [("eth0", False), ("en5", True)]
    quick = node.run([sys.executable, "-c", CANDIDATES, "quick"], check=True).stdout
    by_name = msgspec.json.decode(quick, type=list[Address])
    assert [(a.interface, a.virtual) for a in by_name] == [("en5", False), ("eth0", False)]


def test_down_and_without_carrier(lan: MakeLan) -> None:
    both = lan(nodes=1, networks=2)
    node = both.node(1)
    node.configure(["link set eth1 down"])
    both.cut(1, "eth0")
    found = interfaces(node)
    assert (found["eth1"].up, found["eth1"].carrier) == (False, None)
    assert found["eth1"].why == "it is down"
    assert (found["eth0"].up, found["eth0"].carrier) == (True, False)
    assert found["eth0"].why.startswith("it has no carrier (no cable")
    for exact in (True, False):
        assert candidates(node, exact=exact) == ["127.0.0.1"]
    both.heal(1, "eth0")
    for exact in (True, False):
        assert candidates(node, exact=exact) == ["10.77.0.1"]


def test_static_and_dynamic_addresses_and_the_gateway(lan: MakeLan) -> None:
    node = lan(nodes=2, ipv6="fd77::/64").node(1)
    lines = [
        "addr add 10.77.0.50/24 dev eth0 valid_lft 600 preferred_lft 300",
        "addr add fd77::50/64 dev eth0 valid_lft 600 preferred_lft 300",
        "addr add fd77::51/64 dev eth0 preferred_lft 0",
        "route add default via 10.77.0.2",
        "route add default via fe80::1 dev eth0",
    ]
    node.configure(lines)
    eth0 = interfaces(node)["eth0"]
    assert {a.address: (a.prefix, a.reach, a.origin, a.state) for a in eth0.addresses} == {
        "10.77.0.1": (24, "private", "static", "ok"),
        "10.77.0.50": (24, "private", "dynamic", "ok"),
        "fd77::1": (64, "private", "static", "ok"),
        "fd77::50": (64, "private", "dynamic", "ok"),
        "fd77::51": (64, "private", "static", "deprecated"),
        node.link_locals[0]: (64, "link-local", "automatic", "ok"),
    }
    assert eth0.gateways == ("10.77.0.2", "fe80::1")
    assert [a for a in candidates(node) if ":" in a][-2:] == ["fd77::51", node.link_locals[0]]


def test_ipv6_only(lan: MakeLan) -> None:
    node = lan(nodes=1, ipv4=False, ipv6="fd77::/64").node(1)
    for exact in (True, False):
        assert candidates(node, exact=exact) == ["fd77::1", node.link_locals[0]]
    bare = lan(nodes=1, ipv4=False, ipv6=True).node(1)
    assert candidates(bare) == [bare.address]


def test_a_duplicate_address_is_not_used(lan: MakeLan) -> None:
    first, second = lan(nodes=2, ipv6="fd77::/64").nodes
    accept = "echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_dad"
    second.run(["sh", "-c", accept], check=True)
    second.configure(["addr add fd77::1/64 dev eth0"])
    start(second, "sh", "-c", UNTIL_FAILED).until("failed", kind="out")
    states = {a.address: a.state for a in interfaces(second)["eth0"].addresses}
    assert states["fd77::1"] == "duplicate"
    assert "fd77::1" not in candidates(second)
    assert "fd77::1" in candidates(first)


UNTIL_FAILED = "until ip -6 addr show dev eth0 dadfailed | grep -q fd77; do :; done; echo failed"


def test_sys_of_another_namespace_is_not_believed(lan: MakeLan) -> None:
    """`nsenter --net` leaves /sys mounted: it shows the interfaces of where we came from."""
    if available().kind == "rootless":
        pytest.skip("only root enters a network namespace alone")
    node = lan(nodes=1).node(1)
    node.configure(["link add filler type bridge", "link add lo9 type bridge"])
    alone = [tool("nsenter"), "--target", str(node.holder.pid), "--net", "--"]
    script = "from mingled.net import ioctls; print(ioctls.index('lo9'), ioctls.sysfs('lo9'))"
    done = subprocess.run(
        [*alone, sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    index, folder = done.stdout.split()
    assert (int(index) > 0, folder) == (True, "None")
    listed = subprocess.run(
        [*alone, *MINGLE, "interfaces", "--json"], capture_output=True, text=True, check=True
    )
    shown = msgspec.json.decode(listed.stdout, type=list[Shown])
    assert {one.name for one in shown} == {"eth0", "lo", "filler", "lo9"}


# ---------------------------------------------------------------- the command


def test_the_command_in_forty_columns_and_in_a_pipe(lan: MakeLan) -> None:
    node = lan(nodes=1, ipv6="fd77::/64").node(1)
    node.configure([*DOCKER0, *A_CONTAINER])
    piped = mingle(node, "interfaces").stdout
    narrow = mingle(node, "interfaces", columns=40).stdout
    assert max(map(len, narrow.splitlines())) <= 40
    assert "\x1b" not in piped
    assert narrow.split() == piped.split()
    assert "eth0  used, place 1: wired, 10 Gbit/s\n" in piped
    assert f"  address  {node.link_locals[0]}/64 link-local, automatic\n" in piped


def test_restrictions_and_same_subnet(lan: MakeLan) -> None:
    node = lan(nodes=1).node(1)
    node.configure(DOCKER0)
    assert [n for n, one in interfaces(node, "--interface", "docker0").items() if one.used] == [
        "docker0"
    ]
    refused = mingle(node, "interfaces", "--interface", "eth7")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        "mingle: gpu1 has no interface eth7; it has eth0 10.77.0.1/24, docker0 172.17.0.1/16, "
        "lo 127.0.0.1/8: correct --interface\n"
    )
    for pair, code, said in (
        (("10.77.0.1", "10.77.0.9"), 0, "yes: both are in 10.77.0.0/24 of eth0"),
        (("10.77.0.1", "172.17.0.9"), 1, "no: 10.77.0.1 is in 10.77.0.0/24 of eth0, but"),
        (("10.77.0.1", "gpu2"), 2, ""),
    ):
        done = mingle(node, "interfaces", "--same-subnet", *pair)
        assert (done.returncode, done.stdout.startswith(said)) == (code, True)


# ---------------------------------------------------------------- neighbours and echoes


def test_neighbors(lan: MakeLan) -> None:
    node = lan(nodes=2, ipv6="fd77::/64").node(1)
    said = mingle(node, "neighbors")
    assert said.returncode == 0
    node.configure(["neigh add 10.77.0.99 lladdr 02:00:00:00:00:99 dev eth0"])
    for address in ("10.77.0.2", "fd77::2", "10.77.0.9"):
        mingle(node, "ping", address, "--count", "1")
    shown = msgspec.json.decode(
        mingle(node, "neighbors", "--ping", "--json").stdout, type=list[ShownNeighbor]
    )
    found = {one.address: one for one in shown}
    assert found["10.77.0.2"].mac == "02:4d:47:00:00:02"
    assert {a: (one.entry, one.activity) for a, one in found.items() if a[:2] != "fe"} == {
        "10.77.0.2": ("dynamic", "active"),
        "10.77.0.9": ("dynamic", "inactive"),
        "10.77.0.99": ("static", "inactive"),
        "fd77::2": ("dynamic", "active"),
    }
    assert found["10.77.0.99"].state == "permanent"
    assert found["10.77.0.9"].state in ("failed", "incomplete")
    narrow = mingle(node, "neighbors", "--ping", columns=40).stdout
    assert max(map(len, narrow.splitlines())) <= 40
    assert "\n  10.77.0.99\n    02:00:00:00:00:99 static; inactive\n    (no answer" in narrow


@pytest.mark.parametrize("user", ["root", "nobody"])
@pytest.mark.parametrize(
    ("target", "own"),
    [("10.77.0.9", "10.77.0.1"), ("fd77::9", "fd77::1")],
)
def test_unreachable_is_what_the_own_machine_says(
    lan: MakeLan, user: str, target: str, own: str
) -> None:
    node = lan(nodes=2, ipv6="fd77::/64").node(1)
    become = _become(node, user)
    done = node.run([*become, *MINGLE, "ping", target, "--count", "2", "--interval", "0.2"])
    words = f"destination host unreachable, says this machine itself ({own}): nobody there answers"
    assert done.returncode == 1, done.stderr
    assert f"1: {target}: {words}\n" in done.stdout
    assert f"{target} is inactive: {words}\n2 sent, 0 received, 100% lost\n" in done.stdout


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_answers(lan: MakeLan, user: str) -> None:
    first, second = lan(nodes=2, ipv6="fd77::/64").nodes
    become = _become(first, user)
    for target in ("10.77.0.2", "fd77::2", f"{second.link_locals[0]}%eth0", "10.77.0.1", "::1"):
        words = ["ping", target, "--count", "3", "--interval", "0.01", "--json"]
        done = first.run([*become, *MINGLE, *words])
        assert done.returncode == 0, done.stderr
        shown = msgspec.json.decode(done.stdout, type=ShownPing)
        assert (shown.sent, shown.received, shown.lost_percent) == (3, 3, 0.0)
        assert shown.rtt_min_ms is not None
        assert shown.rtt_avg_ms is not None
        assert shown.rtt_max_ms is not None
        assert 0 < shown.rtt_min_ms <= shown.rtt_avg_ms <= shown.rtt_max_ms


def test_a_node_of_a_job_has_a_name_without_dns(lan: MakeLan) -> None:
    both = lan(nodes=2)
    first, second = both.nodes
    daemons_on(both.nodes)
    waits = [wait(node, "named", "--nnodes", "2", cmd=STAY) for node in both.nodes]
    for one in waits:
        one.until("MASTER_ADDR", kind="out")
    done = mingle(first, "ping", second.name, "--count", "1", "--json")
    assert done.returncode == 0, done.stderr
    shown = msgspec.json.decode(done.stdout, type=ShownPing)
    assert (shown.address, shown.known_by) == (second.address, "daemon")
    unknown = mingle(first, "ping", "gpu9", "--count", "1")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert (
        "no job on gpu1 has a node of that name, nor does a daemon of that name answer: give"
        in unknown.stderr
    )
    for one in waits:
        one.finish()


def test_silence_no_route_and_refusal(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    second.drop("icmp type echo-request")
    silent = mingle(first, "ping", second.address, "--count", "2", "--timeout", "0.2")
    assert silent.returncode == 1
    assert f"{second.address} is inactive: no answer within 0.2 s" in silent.stdout
    second.undrop()
    nowhere = mingle(first, "ping", "192.0.2.1", "--count", "1")
    assert nowhere.returncode == 1
    assert "network unreachable: there is no route to 192.0.2.1" in nowhere.stdout
    rules = (
        "table inet t { chain c { type filter hook input priority 0; "
        "icmp type echo-request reject with icmp type admin-prohibited;\n}\n}\n"
    )
    second.holder.configure("nft", "-f", "-", script=rules)
    refused = mingle(first, "ping", second.address, "--count", "1")
    assert refused.returncode == 1
    assert "is active: 10.77.0.2 is there, but refuses to be pinged" in refused.stdout


def test_a_lossy_network_is_counted(lan: MakeLan) -> None:
    both = lan(nodes=2)
    both.node(1).run(["ping", "-c1", both.node(2).address], check=True)
    both.node(2).drop("icmp type echo-request numgen inc mod 2 0")
    words = ["ping", both.node(2).address, "--count", "4", "--interval", "0.01"]
    done = mingle(both.node(1), *words, "--timeout", "0.5", "--json")
    shown = msgspec.json.decode(done.stdout, type=ShownPing)
    assert (shown.sent, shown.received, shown.lost_percent) == (4, 2, 50.0)
    assert (done.returncode, shown.activity) == (0, "active")


def test_who_may_not_ping_is_told_how_to(lan: MakeLan) -> None:
    if available().kind == "rootless":
        pytest.skip("a rootless LAN has one user only")
    node = lan(nodes=2).node(1)
    mingle(node, "ping", "10.77.0.2", "--count", "1")
    denied = node.run([*NOBODY, *MINGLE, "ping", "10.77.0.2"])
    assert (denied.returncode, denied.stdout) == (1, "")
    assert "uid 65534 may not ping on gpu1 (net.ipv4.ping_group_range is 1 to 0)" in denied.stderr
    assert "sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'" in denied.stderr
    listed = node.run([*NOBODY, *MINGLE, "neighbors", "--ping"])
    assert listed.returncode == 0
    assert "uid 65534 may not ping" in listed.stderr
    assert "; unknown\n" in listed.stdout


def _become(node: Node, user: str) -> tuple[str, ...]:
    """As nobody, with the kernel's ping sockets open to all."""
    if user == "root":
        return ()
    if available().kind == "rootless":
        pytest.skip("a rootless LAN has one user only")
    allow = "echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range"
    node.run(["sh", "-c", allow], check=True)
    return NOBODY


# ---------------------------------------------------------------- where connections come from


@pytest.mark.parametrize("gateway", ["known", "unknown"])
def test_a_node_with_two_interfaces_connects_where_the_route_leads(
    lan: MakeLan, gateway: str
) -> None:
    both = lan(nodes=2, networks=2)
    here, there = both.nodes
    there.configure(["addr add 10.99.0.1/32 dev lo"])
    # An address is answered for on its own interface only, as on separate networks.
    there.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore"], check=True)
    way = f"10.99.0.0/24 via {there.addresses[1]} dev eth1"
    here.configure(
        [f"route add {way}"]
        if gateway == "known"
        # The kernel would come from an address that is not allowed.
        else ["addr add 10.78.0.99/24 dev eth1", f"route add {way} src 10.78.0.99"]
    )
    for restriction in ([], ["eth0", here.addresses[1]]):
        said = here.run([sys.executable, "-c", CONNECT, "10.99.0.1", *restriction]).stdout
        assert said == "refused\n"  # so it was there


def test_an_address_on_loopback_is_a_source(lan: MakeLan) -> None:
    """Of a router: every way leads to it."""
    here, there = lan(nodes=2).nodes
    here.configure(["addr add 10.99.0.7/32 dev lo"])
    there.configure([f"route add 10.99.0.7 via {here.address}"])
    said = here.run([sys.executable, "-c", CONNECT, there.address, "10.99.0.7"]).stdout
    assert said == "refused\n"


def test_every_interface_is_listed_with_what_it_has(lan: MakeLan) -> None:
    node = lan(nodes=1, ipv6="fd77::/64").node(1)
    configured(node, ["tuntap add dev tun9 mode tun"], "tun")
    node.configure([f"link add v{n} type veth peer name w{n}" for n in range(30)])
    assert node.run([sys.executable, "-c", LISTED], check=True).stdout == "63\n"


# ---------------------------------------------------------------- changes


def monitor(node: Node) -> Running:
    started = python(node, MONITOR)
    started.until("started", kind="out")
    return started


def end(watching: Running) -> int:
    """How often it was called."""
    done = watching.finish()
    assert (done.code, done.err) == (0, "")
    return int(done.out.rpartition("changes: ")[2])


def test_changes_are_told(lan: MakeLan) -> None:
    both = lan(nodes=2, ipv6="fd77::/64")
    node = both.node(1)
    watching = monitor(node)
    steps = (
        "addr add 10.77.0.50/24 dev eth0",
        "addr del 10.77.0.50/24 dev eth0",
        "addr add fd77::50/64 dev eth0 nodad",
        "link add later type bridge",
        "route add default via 10.77.0.2",
    )
    for number, line in enumerate(steps, 1):
        node.configure([line])
        watching.until(f"change {number} another", kind="out")
    both.cut(1)
    watching.until(f"change {len(steps) + 1} another", kind="out")
    end(watching)


def test_an_interface_made_again_is_another_one(lan: MakeLan) -> None:
    node = lan(nodes=1).node(1)
    make = ["link add br5 type bridge", "addr add 10.5.0.1/24 dev br5", "link set br5 up"]
    node.configure(make)
    watching = monitor(node)
    node.configure(["link del br5", *make])
    watching.until("change 1 another", kind="out")
    end(watching)


def test_loopback_is_noise(lan: MakeLan) -> None:
    node = lan(nodes=1).node(1)
    watching = monitor(node)
    node.configure(["addr add 127.0.0.9/8 dev lo", "addr del 127.0.0.9/8 dev lo"])
    node.configure(["addr add 10.77.0.50/24 dev eth0"])
    watching.until("change 1 another", kind="out")
    assert end(watching) == 1


def test_fault_17_flapping_is_damped(lan: MakeLan) -> None:
    node = lan(nodes=1).node(1)
    watching = monitor(node)
    flaps = 100
    node.configure(["link set eth0 down", "link set eth0 up"] * flaps)
    watching.until("change 1 ", kind="out")
    # Each flap is several messages. 20 calls would take over a minute.
    assert 1 <= end(watching) < 20


def test_a_flood_of_messages_is_a_change(lan: MakeLan) -> None:
    """More than the socket holds: the kernel drops some, and says ENOBUFS."""
    node = lan(nodes=1).node(1)
    watching = monitor(node)
    watching.process.send_signal(signal.SIGSTOP)
    add = [f"addr add 10.{n >> 8}.{n & 255}.1/24 dev eth0" for n in range(2000)]
    node.configure(add)
    watching.process.send_signal(signal.SIGCONT)
    watching.until("change 1 another", kind="out")
    assert 1 <= end(watching) < 20
