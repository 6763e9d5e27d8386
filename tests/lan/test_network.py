"""The network as it really is: many cards, container bridges, IPv6, NAT, addresses that change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mingled.lab import Lan, Node

from .conftest import MakeLan, absent
from .helpers import BIN, Running, daemons_on, launch, one_round, start, status, wait

NO_MULTICAST = "meta pkttype multicast"
ROUTER = "sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'"


def launchers(nodes: tuple[Node, ...], *flags: str) -> list[Running]:
    return [wait(node, "bert", "--nnodes", str(len(nodes)), *flags) for node in nodes]


def envs(running: list[Running]) -> list[dict[str, str]]:
    return [r.well().env for r in running]


def forwards(node: Node) -> None:
    node.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], check=True)


# ---------------------------------------------------------------- several cards


def test_a_leader_with_one_dead_subnet(lan: MakeLan) -> None:
    """Its first card is up, and leads nowhere."""
    both = lan(nodes=2, networks=2)
    leader, follower = both.nodes
    follower.configure(["link set eth0 down"])
    first = wait(leader, "bert", "--nnodes", "2", "--node-rank", "0")
    second = wait(follower, "bert", "--nnodes", "2")
    told = envs([first, second])
    assert {env["MASTER_ADDR"] for env in told} == {leader.addresses[1]}
    assert [env["GLOO_SOCKET_IFNAME"] for env in told] == ["eth1", "eth1"]
    assert told[0]["MINGLE_HOSTS"] == f"{leader.addresses[1]},{follower.addresses[1]}"


def test_three_nodes_and_the_one_subnet_that_they_share(lan: MakeLan) -> None:
    """gpu1 has all three networks, gpu2 and gpu3 two each, and only eth1 is common. A follower that
    came by another one is moved there."""
    three = lan(nodes=3, networks=3)
    one, two, three_ = three.nodes
    two.configure(["link set eth2 down"])
    three_.configure(["link set eth0 down"])
    running = [wait(one, "bert", "--nnodes", "3", "--node-rank", "0")]
    running[0].until("1/3 here")
    running += [wait(node, "bert", "--nnodes", "3") for node in (two, three_)]
    told = envs(running)
    assert {env["MASTER_ADDR"] for env in told} == {one.addresses[1]}
    assert {env["GLOO_SOCKET_IFNAME"] for env in told} == {"eth1"}
    shared = {node.addresses[1] for node in three.nodes}
    assert set(told[0]["MINGLE_HOSTS"].split(",")) == shared


def test_docker0_with_the_same_address_everywhere_is_never_chosen(lan: MakeLan) -> None:
    """Its first address sorts before all others, and whoever connects there reaches itself."""
    three = lan(nodes=3)
    for node in three.nodes:
        node.configure(
            [
                "link add docker0 type bridge",
                "link add veth1a type veth peer name veth1b",  # a container: docker0 has a carrier
                "link set veth1a master docker0 up",
                "link set veth1b up",
                "addr add 172.17.0.1/16 brd + dev docker0",
                "link set docker0 up",
            ]
        )
    daemons_on(three.nodes)
    for _ in range(3):
        running = launchers(three.nodes)
        told = {n: r.well().env for n, r in enumerate(running, 1)}
        one_round(three, told)
        assert {env["NCCL_SOCKET_IFNAME"] for env in told.values()} == {"=eth0"}
    (report,) = status(three.node(1))
    assert report["addresses"][0] == f"eth0 {three.node(1).address}"


def test_where_no_address_suits_all_the_subnets_are_named(lan: MakeLan) -> None:
    """gpu1 answers on each of its cards only to that card's own address, as many firewalls have
    it, and forwards between the subnets."""
    three = lan(nodes=3, networks=2)
    leader, second, third = three.nodes
    second.configure(["link set eth1 down", f"route add 10.78.0.0/24 via {leader.addresses[0]}"])
    third.configure(["link set eth0 down", f"route add 10.77.0.0/24 via {leader.addresses[1]}"])
    forwards(leader)
    leader.drop(f'iifname "eth0" ip daddr {leader.addresses[1]}')
    leader.drop(f'iifname "eth1" ip daddr {leader.addresses[0]}')
    running = [
        wait(node, "bert", "--nnodes", "3", "--node-rank", str(rank))
        for rank, node in enumerate(three.nodes)
    ]
    told = envs(running)
    assert [env["MASTER_ADDR"] for env in told] == [
        *(leader.addresses[0], leader.addresses[0], leader.addresses[1]),
    ]
    for one in running:
        assert "no address of gpu1 (10.77.0.1) is reached by everybody" in one.err
        assert "gpu3 by 10.78.0.1 (10.78.0.0/24)" in one.err


# ---------------------------------------------------------------- what a user says


def test_an_interface_or_a_subnet_that_the_user_names(lan: MakeLan) -> None:
    both = lan(nodes=2, networks=2)
    first = wait(both.node(1), "bert", "--nnodes", "2", "--interface", "eth1")
    second = wait(both.node(2), "bert", "--nnodes", "2", env={"MINGLE_SUBNET": "10.78.0.0/24"})
    told = envs([first, second])
    assert {env["MINGLE_INTERFACE"] for env in told} == {"eth1"}
    assert set(told[0]["MINGLE_HOSTS"].split(",")) == {n.addresses[1] for n in both.nodes}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--interface", "eth7"), "gpu1 has nothing for --interface eth7"),
        (("--subnet", "192.168.0.0/16"), "gpu1 has nothing for --subnet 192.168.0.0/16"),
        (("--subnet", "10.0.0.0/33"), "subnet '10.0.0.0/33' is none"),
        (("--peers", "a b;c"), "peer 'b;c' is no host"),
    ],
)
def test_what_this_node_lacks_is_refused(lan: MakeLan, flags: tuple[str, ...], words: str) -> None:
    node = lan(nodes=1).node(1)
    done = wait(node, "bert", "--nnodes", "2", *flags).end()
    assert done.code == 2
    assert f"job bert: {words}" in done.err
    if "has nothing" in words:
        assert "for a job it has eth0 10.77.0.1" in done.err


def test_a_daemon_with_a_configuration_file(lan: MakeLan) -> None:
    both = lan(nodes=2, networks=2)
    for node in both.nodes:
        node.run(["sh", "-c", "echo 'interface = \"eth1\"' > /tmp/mingled.toml"], check=True)
        config = ("--config", "/tmp/mingled.toml", "--socket", "/run/mingled/control.sock")
        start(node, str(BIN / "mingled"), *config).until("link port")
    told = envs(launchers(both.nodes))
    assert {env["GLOO_SOCKET_IFNAME"] for env in told} == {"eth1"}
    (report,) = status(both.node(1))
    assert report["addresses"] == [f"eth1 {both.node(1).addresses[1]}"]
    other = ("--interface", "eth7", "--socket", "/run/mingled/other.sock")
    wrong = start(both.node(1), str(BIN / "mingled"), *other).end()
    assert wrong.code == 80
    assert "eth7" in wrong.err
    assert "eth0 10.77.0.1/24" in wrong.err


# ---------------------------------------------------------------- IPv6


def test_ipv6_only(lan: MakeLan) -> None:
    three = lan(nodes=3, ipv4=False, ipv6="fd77::/64")
    told = {n: r.well().env for n, r in enumerate(launchers(three.nodes), 1)}
    one_round(three, told)


def test_link_local_only(lan: MakeLan) -> None:
    """Each node writes the same address with the scope of its own card."""
    both = lan(nodes=2, ipv4=False, ipv6=True)
    both.node(2).configure(["link set eth0 down", "link set eth0 name ib0", "link set ib0 up"])
    leader = wait(both.node(1), "bert", "--nnodes", "2", "--node-rank", "0")
    told = envs([leader, wait(both.node(2), "bert", "--nnodes", "2")])
    address = both.node(1).link_locals[0]
    assert [env["MASTER_ADDR"] for env in told] == [f"{address}%eth0", f"{address}%ib0"]
    assert [env["GLOO_SOCKET_IFNAME"] for env in told] == ["eth0", "ib0"]


@pytest.mark.parametrize(("dead", "alive"), [("ip", "IPv6"), ("ip6", "IPv4")])
def test_dual_stack_where_one_family_is_dead(lan: MakeLan, dead: str, alive: str) -> None:
    both = lan(nodes=2, ipv6="fd77::/64")
    for node in both.nodes:
        node.drop(f"{dead} version {6 if dead == 'ip6' else 4}")
    told = envs(launchers(both.nodes))
    assert {":" in env["MASTER_ADDR"] for env in told} == {alive == "IPv6"}


# ---------------------------------------------------------------- the ladder


def test_fault_26_multicast_is_dropped_and_broadcast_takes_over(lan: MakeLan) -> None:
    three = lan(nodes=3)
    for node in three.nodes:
        node.drop(NO_MULTICAST)
    told = {n: r.well().env for n, r in enumerate(launchers(three.nodes), 1)}
    one_round(three, told)


def test_two_routed_subnets_become_one_job_through_peers_alone(lan: MakeLan) -> None:
    """gpu2 is a router, and no daemon runs on it. gpu1 names gpu3; gpu3 names nobody."""
    three = lan(nodes=3, networks=2)
    one, router, other = three.nodes
    forwards(router)
    one.configure(["link set eth1 down", f"route add 10.78.0.0/24 via {router.addresses[0]}"])
    other.configure(["link set eth0 down", f"route add 10.77.0.0/24 via {router.addresses[1]}"])
    running = [
        wait(other, "bert", "--nnodes", "2", "--node-rank", "0"),
        wait(one, "bert", "--nnodes", "2", "--peers", other.addresses[1]),
    ]
    told = envs(running)
    assert {env["MASTER_ADDR"] for env in told} == {other.addresses[1]}
    again = [
        wait(other, "next", "--nnodes", "2", "--node-rank", "1"),
        wait(one, "next", "--nnodes", "2", "--node-rank", "0", "--peers", other.addresses[1]),
    ]
    assert {env["MASTER_ADDR"] for env in envs(again)} == {one.addresses[0]}


SERVICE = "test-service.demo-project.svc.cluster.local"


def test_a_headless_service_is_enough(lan: MakeLan, tmp_path: Path) -> None:
    """As on Kubernetes: neither multicast nor broadcast, and a DNS name that stands for all pods,
    some of which are not there."""
    if shutil.which("dnsmasq", path="/usr/sbin:/usr/bin") is None:
        absent("The command `dnsmasq` is missing: install it with `apt install dnsmasq-base`.")
    three = lan(nodes=3)
    names, resolv = tmp_path / "hosts", tmp_path / "resolv.conf"
    names.write_text("".join(f"10.77.0.{n} {SERVICE}\n" for n in range(1, 9)))
    resolv.write_text(f"nameserver {three.node(1).address}\n")
    for node in three.nodes:
        node.drop(NO_MULTICAST)
        node.drop("meta pkttype broadcast udp dport 29491")
        node.run(["mount", "--bind", str(resolv), "/etc/resolv.conf"], check=True)
    options = ("-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", f"--addn-hosts={names}")
    unrooted = ("--user=root", "--group=root", "--pid-file=", "--log-facility=-")
    start(three.node(1), "/usr/sbin/dnsmasq", *options, *unrooted).until("started")
    running = launchers(three.nodes, "--peers", SERVICE)
    one_round(three, {n: r.well().env for n, r in enumerate(running, 1)})


def test_a_peer_that_does_not_resolve_is_named(lan: MakeLan) -> None:
    node = lan(nodes=1).node(1)
    running = wait(node, "bert", "--nnodes", "2", "--peers", "nobody.invalid")
    said = running.until("nobody.invalid")
    assert "job bert: " in said
    running.process.terminate()
    assert running.end().code == 143


# ---------------------------------------------------------------- NAT


def test_a_node_behind_nat_is_named_on_both_sides(lan: MakeLan) -> None:
    """gpu2 stands between, as a Docker host does, and hides gpu3 behind its own address."""
    three = lan(nodes=3, networks=2)
    leader, host, hidden = three.nodes
    forwards(host)
    rules = 'table ip nat { chain post { type nat hook postrouting priority 100; oifname "eth0" masquerade; }; }'  # noqa: E501
    host.holder.configure("nft", "-f", "-", script=rules)
    leader.configure(["link set eth1 down"])
    hidden.configure(["link set eth0 down", f"route add 10.77.0.0/24 via {host.addresses[1]}"])
    first = wait(leader, "bert", "--nnodes", "2", "--node-rank", "0")
    first.until("1/2 here")
    second = wait(hidden, "bert", "--nnodes", "2", "--peers", leader.address)
    seen = f"gpu3 claims {hidden.addresses[1]}, we see {host.address}: behind NAT; Docker: "
    first.until(seen, "gpu1 (10.77.0.1) cannot reach gpu3, TCP 10.78.0.3", times=1)
    second.until(f"this node is {hidden.addresses[1]}, and gpu1 sees {host.address}: behind NAT")
    for running in (first, second):
        running.process.terminate()
        assert running.end().code == 143


# ---------------------------------------------------------------- change


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_fault_15_an_address_changes_while_everybody_waits(lan: MakeLan, who: str) -> None:
    """DHCP gave it another one; nobody is started anew, and no ghost is left."""
    three = lan(nodes=3)
    daemons_on(three.nodes)
    leader = wait(three.node(1), "bert", "--nnodes", "3", "--node-rank", "0")
    follower = wait(three.node(2), "bert", "--nnodes", "3", "--node-rank", "1")
    leader.until("2/3 here")
    follower.until("2/3 here")
    node = three.node(1 if who == "leader" else 2)
    new = "10.77.0.99"
    node.configure([f"addr del {node.address}/24 dev eth0", f"addr add {new}/24 brd + dev eth0"])
    last = wait(three.node(3), "bert", "--nnodes", "3", "--node-rank", "2")
    told = envs([leader, follower, last])
    hosts = told[2]["MINGLE_HOSTS"].split(",")
    assert new in hosts
    assert node.address not in hosts
    assert {env["MASTER_ADDR"] for env in told} == {new if who == "leader" else "10.77.0.1"}


def test_fault_18_an_interface_is_taken_away_and_made_again(lan: MakeLan) -> None:
    """With the same name and address: multicast is joined anew, else nobody would be heard."""
    both = lan(nodes=2, networks=2)
    one, two = both.nodes
    for node in both.nodes:
        node.configure(["link set eth0 down"])
        node.configure(["link add link eth1 name lan0 type macvlan mode bridge"])
        node.configure([f"addr add 10.99.0.{node.number}/24 brd + dev lan0", "link set lan0 up"])
        node.configure(["addr flush dev eth1"])
        node.drop("udp dport 29491")  # mDNS alone is to find them
    daemons_on(both.nodes)
    assert {env["MINGLE_INTERFACE"] for env in envs(launchers(both.nodes))} == {"lan0"}
    one.configure(["link del lan0", "link add link eth1 name lan0 type macvlan mode bridge"])
    one.configure(["addr add 10.99.0.1/24 brd + dev lan0", "link set lan0 up"])
    leader = wait(two, "next", "--nnodes", "2", "--node-rank", "0")
    leader.until("1/2 here")
    told = envs([leader, wait(one, "next", "--nnodes", "2")])
    assert {env["MASTER_ADDR"] for env in told} == {"10.99.0.2"}


def test_a_vpn_comes_up_and_nobody_is_disturbed(lan: MakeLan) -> None:
    both = lan(nodes=2)
    daemons = daemons_on(both.nodes)
    leader = wait(both.node(1), "bert", "--nnodes", "2", "--node-rank", "0")
    leader.until("1/2 here")
    both.node(1).configure(["link add vpn0 type veth peer name vpn1", "link set vpn1 up"])
    both.node(1).configure(["addr add 10.200.0.1/24 dev vpn0"])
    daemons[0].says_after(
        lambda: both.node(1).configure(["link set vpn0 up"]), "addresses are now: eth0 10.77.0.1"
    )
    told = envs([leader, wait(both.node(2), "bert", "--nnodes", "2")])
    assert {env["MASTER_ADDR"] for env in told} == {"10.77.0.1"}


def test_a_daemon_without_a_network_finds_one_later(lan: MakeLan) -> None:
    both = lan(nodes=2)
    one = both.node(1)
    one.configure(["addr flush dev eth0"])
    launched = launch(one)
    launched.until("link port")
    waiting = wait(one, "bert", "--nnodes", "2")
    waiting.until("1/2 here")
    one.configure([f"addr add {one.address}/24 brd + dev eth0"])
    told = envs([waiting, wait(both.node(2), "bert", "--nnodes", "2")])
    assert {env["MINGLE_INTERFACE"] for env in told} == {"eth0"}


# ---------------------------------------------------------------- names that lead nowhere


def test_the_own_host_name_maps_to_127_0_1_1(lan: MakeLan) -> None:
    """As Debian's installer writes it. Whoever asks the name gets an address that nobody else can
    use; mingled asks no name."""
    both = lan(nodes=2)
    for node in both.nodes:
        script = f"echo '127.0.1.1 {node.name}' > /tmp/hosts && mount --bind /tmp/hosts /etc/hosts"
        node.run(["sh", "-c", script], check=True)
        looked_up = node.run(["getent", "ahostsv4", node.name], check=True).stdout
        assert looked_up.startswith("127.0.1.1")
    told = {n: r.well().env for n, r in enumerate(launchers(both.nodes), 1)}
    one_round(both, told)


def test_fault_27_where_nothing_works_the_wait_says_what_to_do(lan: MakeLan) -> None:
    """What is dropped is dropped: else the tests above would prove nothing."""
    both: Lan = lan(nodes=2)
    for node in both.nodes:
        node.drop(NO_MULTICAST)
        node.drop("udp dport 29491")
    running = launchers(both.nodes, "--node-rank", "1", "--timeout", "11s")
    for one in running:
        one.until("job bert: nobody else was heard for 10 s", "eth0 10.77.0.")
        one.until("name one of them: --peers HOST", "mingle doctor --job bert")
    for one in running:
        done = one.end()
        assert (done.code, done.out) == (82, "")
        assert "no rank 0 was heard on eth0 10.77.0." in done.err.splitlines()[-1]
        assert "see mingle doctor" in done.err.splitlines()[-1]
