"""The judgments, each on made-up facts."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from pathlib import Path

import msgspec
import pytest

from mingled import __version__
from mingled.core import local
from mingled.core.events import Address
from mingled.core.messages import Nic
from mingled.core.secrets import label_of
from mingled.core.words import JobId
from mingled.doctor import checks_here, checks_job, gather_here, run
from mingled.doctor.gather_dns import Dns, Server
from mingled.doctor.gather_firewall import Ruleset
from mingled.doctor.gather_here import Bridge, Owner
from mingled.doctor.gather_job import Matrix, Pair
from mingled.doctor.gather_tcp import Attempt
from mingled.doctor.gathered import Beside, Gathered, Missing
from mingled.doctor.here import Daemons
from mingled.doctor.model import Finding, Result, worst
from mingled.doctor.ports import Ports, real
from mingled.edges.presence import Found
from mingled.net.facts import Facts, Link
from mingled.net.resolve import Resolved, Resolver
from tests.core.samples import REPLIES

from .samples import ETH0, HEALTHY, NIC, OURS, echoes, here, other, presence, seen, udp

REPORT = next(reply for reply in REPLIES if isinstance(reply, local.Report))


def troubles(gathered: Gathered) -> dict[str, Result]:
    """Every check that is not sound, whatever else was changed: no false alarms beside it."""
    findings = run.judge(gathered)
    assert all(f.mend for f in findings if f.result in ("warn", "fail"))
    names = dict.fromkeys(f.check for f in findings if f.result in ("warn", "fail"))
    return {name: worst(f for f in findings if f.check == name) for name in names}


def only(gathered: Gathered, check: str) -> Finding:
    (finding,) = [f for f in run.judge(gathered) if f.check == check]
    return finding


def test_health() -> None:
    assert troubles(HEALTHY) == {}
    assert {f.check for f in run.judge(HEALTHY)} == set(run.CHECKS)


def test_a_bug_in_one_check_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.CHECKS, "clock", lambda g: [][1])
    findings = run.judge(HEALTHY)
    assert {f.check for f in findings} == set(run.CHECKS)
    assert troubles(HEALTHY) == {"clock": "fail"}


# ---------------------------------------------------------------- UDP


def test_multicast_dropped_and_broadcast_not() -> None:
    deaf = echoes({"broadcast", "unicast"}, {"broadcast", "unicast"}, mdns_answered=frozenset())
    assert troubles(deaf) == {"multicast": "warn", "igmp-snooping": "warn"}
    assert only(deaf, "mdns").result == "skipped"


def test_neither_gets_through() -> None:
    deaf = echoes({"unicast"}, {"unicast"}, mdns_answered=frozenset())
    assert troubles(deaf) == {"multicast": "fail", "broadcast": "fail"}
    assert "--peers" in only(deaf, "multicast").mend[1]


def test_our_multicasts_are_heard_and_theirs_are_not() -> None:
    mute = echoes({"multicast", "broadcast"}, {"unicast", "broadcast"}, mdns_answered=frozenset())
    mute = msgspec.structs.replace(
        mute, udp=msgspec.structs.replace(mute.udp, mdns_answered_us=frozenset({"10.0.0.2"}))
    )
    assert troubles(mute) == {"multicast": "warn", "mdns": "warn"}
    assert "theirs does not get here" in only(mute, "multicast").measured
    assert "their multicasts do not get here" in only(mute, "mdns").measured


def test_5353_is_told_from_multicast() -> None:
    there = udp(mdns_answered=frozenset())
    assert troubles(there) == {"mdns": "warn"}
    assert "gpu2 did not answer on UDP 5353" in only(there, "mdns").measured
    local = udp(mdns_answered=frozenset(), mdns_self=frozenset())
    assert "this machine's firewall" in only(local, "mdns").measured


def test_a_daemon_that_is_not_to_speak_mdns_is_not_missed() -> None:
    quiet = presence(discovery=("broadcast: UDP 29491",))
    quiet = msgspec.structs.replace(
        quiet, udp=msgspec.structs.replace(quiet.udp, mdns_answered=frozenset())
    )
    assert troubles(quiet) == {}


def test_another_responder_is_no_trouble_and_an_exclusive_one_is() -> None:
    avahi = Owner(uid=105, pid=812, name="avahi-daemon")
    shared = here(mdns_owners=(avahi,))
    assert troubles(shared) == {}
    assert "shared with avahi-daemon (pid 812)" in only(shared, "mdns-port").measured
    held = here(mdns_owners=(Owner(uid=0),), mdns_held=True)
    assert troubles(held) == {"mdns-port": "warn"}
    assert "a program of uid 0" in only(held, "mdns-port").measured


def test_a_bridge_that_snoops_is_guilty_only_where_multicast_fails() -> None:
    bridge = Bridge(name="eth0", snooping=True, querier=False)
    assert troubles(here(bridges=(bridge,))) == {}
    deaf = echoes({"broadcast"}, {"broadcast"}, mdns_answered=frozenset())
    deaf = msgspec.structs.replace(deaf, here=msgspec.structs.replace(deaf.here, bridges=(bridge,)))
    assert troubles(deaf)["igmp-snooping"] == "fail"
    command = "sudo ip link set eth0 type bridge mcast_snooping 0"
    assert only(deaf, "igmp-snooping").mend == (command,)


def test_clients_that_an_access_point_keeps_apart() -> None:
    apart = seen(presence=None, why="no answer")
    apart = msgspec.structs.replace(
        apart,
        udp=msgspec.structs.replace(apart.udp, echoes=()),
        gateway_answers=True,
    )
    assert troubles(apart)["isolation"] == "fail"
    assert "isolation" not in troubles(msgspec.structs.replace(apart, gateway_answers=None))


def test_a_port_that_cannot_be_had() -> None:
    assert troubles(udp(trouble="held", echoes=())) == {"broadcast": "fail"}


# ---------------------------------------------------------------- TCP


@pytest.mark.parametrize("port", ["link", "master", "ephemeral"])
@pytest.mark.parametrize("back", [False, True])
def test_a_port_that_is_firewalled_one_way(port: str, back: bool) -> None:
    attempts = tuple(
        msgspec.structs.replace(a, reason="no answer") if (a.port, a.back) == (port, back) else a
        for a in HEALTHY.others[0].attempts
    )
    check = {"link": "link-port", "master": "master-ports", "ephemeral": "ephemeral-ports"}[port]
    shut = other(attempts=attempts)
    assert troubles(shut) == {check: "fail"}
    finding = only(shut, check)
    assert ("gpu2 does not reach TCP" in finding.measured) is back
    assert ("open it on gpu1" in finding.mend[0]) is back


def test_what_could_not_be_tried_is_skipped() -> None:
    alone = other(
        attempts=(Attempt(port="link", back=False, number=29_490, reason="Connection refused"),),
        large_there=None,
        large_back=None,
    )
    assert troubles(alone) == {"link-port": "fail"}
    assert only(alone, "master-ports").result == "skipped"
    assert only(alone, "mtu").result == "skipped"


def test_large_packets_that_vanish_either_way() -> None:
    assert "large packets to gpu2 vanish" in only(other(large_there="no"), "mtu").measured
    assert "large packets from gpu2 vanish" in only(other(large_back="no"), "mtu").measured
    assert troubles(other(large_back="no")) == {"mtu": "fail"}


def test_nat() -> None:
    assert troubles(presence(seen_address="192.168.1.5")) == {"nat": "fail"}


def test_a_container_with_a_network_of_its_own() -> None:
    veth = msgspec.structs.replace(ETH0, kind="veth", gateways=("10.0.0.254",))
    inside = here(containers=("/.dockerenv",), facts=Facts(links=(veth,), exact=True))
    assert troubles(inside) == {}  # others do connect to it
    alone = msgspec.structs.replace(inside, others=())
    assert troubles(alone) == {"nodes": "warn", "container": "warn"}
    hosts = here(containers=("/.dockerenv",))
    assert troubles(msgspec.structs.replace(hosts, others=())) == {"nodes": "warn"}


def test_firewall_rules_that_cannot_be_read() -> None:
    unread = msgspec.structs.replace(
        HEALTHY, rulesets=(Ruleset(tool="nft", why_not="Operation not permitted"),)
    )
    assert only(unread, "firewall").result == "skipped"
    dropping = "*filter\n:INPUT DROP [0:0]\n-A INPUT -p udp -j ACCEPT\nCOMMIT\n"
    drops = msgspec.structs.replace(
        HEALTHY, rulesets=(*unread.rulesets, Ruleset(tool="iptables", text=dropping))
    )
    assert troubles(drops) == {"firewall": "fail"}
    assert "TCP 29490 from 10.0.0.2 (iptables)" in only(drops, "firewall").measured
    assert "UDP" not in only(drops, "firewall").measured


# ---------------------------------------------------------------- the nodes


@pytest.mark.parametrize(("ahead_s", "said"), [(5.2, "5 s ahead"), (-61.0, "61 s behind")])
def test_clocks_apart(ahead_s: float, said: str) -> None:
    assert troubles(other(ahead_s=ahead_s)) == {"clock": "warn"}
    assert said in only(other(ahead_s=ahead_s), "clock").measured
    assert troubles(other(ahead_s=1.9)) == {}


def test_speeds_that_differ() -> None:
    slow = presence(nics=(msgspec.structs.replace(NIC, speed_mbps=100),))
    assert troubles(slow) == {"speed": "warn"}
    assert "gpu2 eth0 (100 Mbit/s)" in only(slow, "speed").measured


def test_wifi_here_and_there() -> None:
    wifi = Facts(links=(msgspec.structs.replace(ETH0, kind="wifi"),), exact=True)
    assert troubles(here(facts=wifi)) == {"wifi": "warn"}
    there = presence(nics=(msgspec.structs.replace(NIC, kind="wifi"),))
    assert troubles(there) == {"wifi": "warn"}


def test_versions_and_machine_ids() -> None:
    assert troubles(presence(release="0.0.1")) == {"version": "warn"}
    assert troubles(presence(machine="1" * 16)) == {"machine-id": "warn"}
    assert troubles(presence(machine="")) == {}


def test_an_address_that_both_have() -> None:
    docker0 = Link(
        name="docker0",
        kind="docker",
        addresses=(msgspec.structs.replace(ETH0.addresses[0], address="172.17.0.1"),),
    )
    theirs = Nic(
        name="docker0", kind="docker", speed_mbps=None, mtu=1500, addresses=("172.17.0.1/16",)
    )
    both = presence(nics=(NIC, theirs))
    both = msgspec.structs.replace(
        both,
        here=msgspec.structs.replace(both.here, facts=Facts(links=(ETH0, docker0), exact=True)),
    )
    assert troubles(both) == {}
    assert "172.17.0.1 on gpu1, gpu2" in only(both, "same-address").measured
    assert troubles(seen(addresses=("10.0.0.1",)))["same-address"] == "fail"


def test_no_shared_subnet() -> None:
    far = seen(addresses=("10.9.0.2",))
    assert troubles(far) == {"subnet": "warn"}
    assert "gpu2 10.9.0.2; here: 10.0.0.0/24" in only(far, "subnet").measured


def test_a_peer_that_does_not_answer_has_a_mend() -> None:
    missing = (
        Missing(said="nosuch cannot be looked up", known=False),
        Missing(said="10.0.0.9 did not answer"),
    )
    unknown, silent = [
        f
        for f in run.judge(msgspec.structs.replace(HEALTHY, missing=missing))
        if (f.check, f.result) == ("nodes", "fail")
    ]
    assert "--peer ADDRESS" in unknown.mend[0]
    assert "mingle firewall" in silent.mend[0]


@pytest.mark.parametrize(
    ("named", "host", "same"),
    [
        ("gpu2", "gpu2", True),
        ("GPU2.lab.", "gpu2", True),
        ("gpu2", "gpu20", False),
        ("gpu2.lab", "gpu2.home", False),
        ("", "", False),
    ],
)
def test_names_that_may_be_one_host(named: str, host: str, same: bool) -> None:
    assert run.same_host(named, host) is same


async def test_a_peer_that_discovery_knows_needs_no_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(self: Resolver, name: str) -> Resolved:
        return Resolved((), "cannot be looked up: no such name")

    monkeypatch.setattr(Resolver, "resolve", resolve)
    node = Found(node=HEALTHY.others[0].seen.node, host="gpu2", addresses=(), port=29_490, rungs=())
    more, missing = await run._named(["gpu2", "nosuch"], [node], (29_490,), 29_491)
    assert more == []
    assert [(m.said, m.known) for m in missing] == [
        ("nosuch cannot be looked up: no such name", False)
    ]


def test_nobody_there() -> None:
    assert troubles(msgspec.structs.replace(HEALTHY, others=())) == {"nodes": "warn"}


# ---------------------------------------------------------------- this machine


@pytest.mark.parametrize(
    ("hosts", "found"),
    [
        ("127.0.1.1 gpu1\n", "127.0.1.1"),
        ("127.0.0.1\tlocalhost gpu1.lan gpu1 # mine\n", "127.0.0.1"),
        ("::1 gpu1", "::1"),
        ("10.0.0.1 gpu1\n127.0.0.1 localhost\n", ""),
        ("# 127.0.1.1 gpu1\nnonsense gpu1\n\n", ""),
        ("127.0.1.1 gpu10\n", ""),
    ],
)
def test_the_own_name_in_the_hosts_file(hosts: str, found: str) -> None:
    assert checks_here.loopback_of(hosts, "gpu1") == found


def test_the_hosts_file_is_mended_and_localhost_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(
        "127.0.0.1\tlocalhost gpu1 other # gpu1\n127.0.1.1 gpu1.lan gpu1\n::1 localhost\n"
        "10.0.0.7 gpu10"
    )
    finding = only(here(hosts_file=file.read_text()), "hosts-file")
    assert finding.result == "warn"
    command = finding.mend[0].removeprefix("sudo ").replace("/etc/hosts", str(file))
    subprocess.run(command, shell=True, check=True)
    lines = file.read_text().splitlines()
    assert lines[0].startswith("127.0.0.1\tlocalhost other")
    assert lines[2:] == ["::1 localhost", "10.0.0.7 gpu10", "10.0.0.1 gpu1 gpu1.lan"]
    assert checks_here.loopback_of(file.read_text(), "gpu1") == ""


@pytest.mark.parametrize("host", ["", "localhost", "localhost.localdomain"])
def test_a_host_without_a_name_of_its_own_has_nothing_to_mend(host: str) -> None:
    file = "127.0.0.1 localhost localhost.localdomain\n"
    assert only(here(host=host, hosts_file=file), "hosts-file").result == "pass"


def test_where_no_command_is_safe_words_stand() -> None:
    for changes in ({"containers": ("/.dockerenv",)}, {"candidates": ()}):
        (mend,) = only(here(hosts_file="127.0.1.1 gpu1\n", **changes), "hosts-file").mend
        assert mend.startswith("in /etc/hosts, take this name (not localhost)")


def test_a_link_port_that_was_configured_is_no_trouble() -> None:
    def running(link_port: int, ports: Ports) -> Gathered:
        report = msgspec.structs.replace(
            REPORT, link_port=link_port, private=False, release=__version__
        )
        one = here(daemons=Daemons(reports=(report,)))
        return msgspec.structs.replace(one, ports=ports)

    assert only(running(31_000, Ports(link=31_000)), "daemon").result == "pass"
    assert only(running(31_000, Ports()), "daemon").result == "pass"
    busy = only(running(29_491, Ports()), "daemon")
    assert busy.result == "warn"
    assert "or this one was asked for" in busy.measured


def test_the_port_of_the_broadcast_is_the_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINGLE_BROADCAST_PORT", raising=False)
    line = "broadcast: UDP 31491 on eth0"
    report = msgspec.structs.replace(REPORT, discovery=("mdns: works", line))
    assert real(Ports(), (report,)) == Ports(broadcast=31_491)
    assert real(Ports(), ()) == Ports()
    monkeypatch.setenv("MINGLE_BROADCAST_PORT", "31492")
    assert real(Ports(broadcast=31_492), (report,)) == Ports(broadcast=31_492)


def test_systemd_is_named_only_where_it_has_a_unit(tmp_path: Path) -> None:
    assert only(here(), "daemon").mend == ("sudo mingled &",)
    assert only(here(unit=True), "daemon").mend == ("sudo systemctl start mingled",)
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / "mingled.service").touch()
    assert not gather_here.has_unit(tmp_path)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert gather_here.has_unit(tmp_path)


def test_whose_a_listening_port_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert gather_here.tcp_user(port) == pwd.getpwuid(os.getuid()).pw_name
    assert gather_here.tcp_user(port) == ""


@pytest.mark.parametrize(
    ("variable", "value", "result"),
    [
        ("NCCL_SOCKET_IFNAME", "ib0", "fail"),
        ("GLOO_SOCKET_IFNAME", "docker0", "warn"),
        ("NCCL_SOCKET_IFNAME", "eth", "pass"),
        ("MASTER_ADDR", "10.0.0.9", "warn"),
    ],
)
def test_variables_that_contradict(variable: str, value: str, result: Result) -> None:
    docker0 = Link(name="docker0", kind="docker")
    links = Facts(links=(ETH0, docker0), exact=True)
    set_ = here(environment={variable: value}, facts=links)
    assert only(set_, "environment").result == result


def test_dns_servers_that_are_silent_and_that_refuse() -> None:
    def served(server: Server, **more: object) -> Gathered:
        dns = Dns(servers=(server,), own=(), **more)  # type: ignore[arg-type]  # known fields
        return msgspec.structs.replace(HEALTHY, dns=dns)

    assert troubles(served(Server(address="10.0.0.53", silent=True))) == {"dns": "warn"}
    assert troubles(served(Server(address="10.0.0.53", reason="Connection refused"))) == {}
    silent_name = served(Server(address="10.0.0.53"), own_silent=True, own_trouble="says nothing")
    assert troubles(silent_name) == {"host-name": "warn"}


def test_sockets_of_a_port() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout"
        " inode ref pointer drops\n"
        " 12: 00000000:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000   105        0"
        " 18214 2 0000000000000000 0\n"
        " 13: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0"
        " 18215 2 0000000000000000 0\n"
    )
    assert gather_here.udp_inodes(table, 5353) == {"18214": 105}
    assert gather_here.udp_inodes("", 5353) == {}


def test_no_address_at_all() -> None:
    loopback = Address(address="127.0.0.1", interface="lo", prefix=8)
    down = Facts(links=(msgspec.structs.replace(ETH0, up=False, addresses=()),), exact=True)
    for candidates in ((), (loopback,)):
        finding = only(here(candidates=candidates, facts=down), "interfaces")
        assert finding.result == "fail"
        assert "eth0: " in finding.measured
        assert finding.mend
        assert only(here(candidates=candidates, facts=down), "wifi").result == "skipped"
    assert "environment" not in troubles(here(candidates=(loopback, OURS)))


# ---------------------------------------------------------------- a job


def test_a_job_that_nobody_here_knows() -> None:
    matrix = Matrix(job="bert", report=None, known=("Bert",))
    (finding,) = checks_job.job(HEALTHY, matrix)
    assert finding.result == "fail"
    assert "no daemon here that you may ask knows bert; known: Bert" in finding.measured
    assert finding.mend
    assert checks_job.job_paths(HEALTHY, matrix) == []


def test_a_job_that_others_have_and_one_of_another_user_here() -> None:
    matrix = Matrix(job="bert", report=None, labels=(label_of(JobId("bert")),))
    labelled = presence(labels=matrix.labels)
    twin = msgspec.structs.replace(
        labelled.others[0], seen=msgspec.structs.replace(labelled.others[0].seen, host="gpu3")
    )
    two = msgspec.structs.replace(labelled, others=(*labelled.others, twin))
    assert "gpu2, gpu3 have it" in checks_job.job(two, matrix)[0].measured
    assert "gpu2 has it" in checks_job.job(labelled, matrix)[0].measured
    theirs = msgspec.structs.replace(
        HEALTHY, beside=(Beside(seen=labelled.others[0].seen, user="ann"),)
    )
    (finding,) = checks_job.job(theirs, matrix)
    assert "bert is ann's on this machine" in finding.measured
    assert finding.mend == ("sudo -u ann mingle doctor --job bert",)


def test_pairs_that_do_not_reach_each_other_are_named() -> None:
    report = next(reply for reply in REPLIES if hasattr(reply, "jobs"))
    pair = Pair(source="gpu2", target="gpu3", address="10.0.0.3", port=40_000, reason="no answer")
    matrix = Matrix(
        job="bert", report=report.jobs[0], hosts=("gpu2", "gpu3"), failures=(pair,) * 20, tried=40
    )
    findings = checks_job.job_paths(HEALTHY, matrix)
    assert len(findings) == checks_job.PAIRS_SHOWN_MAX + 1
    said = "gpu2 does not reach gpu3 (10.0.0.3) on TCP 40000: no answer"
    assert findings[0].measured == said
    assert findings[-1].measured == "and 4 more pairs"
    well = msgspec.structs.replace(matrix, failures=())
    (finding,) = checks_job.job_paths(HEALTHY, well)
    assert finding.result == "pass"
