"""Twelve faults planted on real LANs, each found by its name; and no false alarm on a healthy one.
docs/doctor.md lists them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from mingled.doctor.model import Finding, worst
from mingled.doctor.run import CHECKS
from mingled.lab import Lan, Node

from .conftest import MakeLan
from .helpers import BIN, NOBODY, READY, SHOW, SOCKET, daemons_on, over, python, start, wait

MINGLE = str(BIN / "mingle")

SOUND = frozenset({"pass", "skipped"})


class Exam:
    """What doctor said on one node."""

    def __init__(self, node: Node, *words: str, env: dict[str, str] | None = None) -> None:
        done = node.run([MINGLE, "doctor", "--json", *words], env=env)
        assert done.stdout, done.stderr
        self.code = done.returncode
        self.findings = msgspec.json.decode(done.stdout, type=list[Finding])

    def result(self, check: str) -> str:
        return worst(self.of(check))

    def of(self, check: str) -> list[Finding]:
        found = [finding for finding in self.findings if finding.check == check]
        assert found, f"no {check} in {self.findings}"
        return found

    def said(self, check: str) -> str:
        return "\n".join(finding.measured for finding in self.of(check))

    @property
    def troubles(self) -> dict[str, str]:
        """Each check that is not sound, with its words."""
        return {f.check: self.said(f.check) for f in self.findings if f.result not in SOUND}


@pytest.fixture
def machines(lan: MakeLan, tmp_path: Path) -> MakeLan:
    """LANs whose nodes have a machine-id each; they share this machine's disk."""

    def make(nodes: int = 3, **options: object) -> Lan:
        made = lan(nodes=nodes, **options)
        for node in made.nodes:
            over(node, tmp_path, "/etc/machine-id", f"{node.number:032x}\n")
        return made

    return make


def others(lan: Lan) -> Sequence[Node]:
    return lan.nodes[1:]


# ---------------------------------------------------------------- healthy


def test_a_healthy_lan_passes_every_check(machines: MakeLan) -> None:
    net = machines(nodes=3)
    daemons_on(net.nodes)
    exam = Exam(net.node(1))
    assert exam.troubles == {}
    assert exam.code == 0
    assert {finding.check for finding in exam.findings} == set(CHECKS)
    assert exam.said("nodes") == "2 others: gpu2, gpu3"
    for check in ("multicast", "mdns", "broadcast", "link-port", "master-ports", "mtu"):
        assert exam.result(check) == "pass", check
        assert "gpu2, gpu3" in exam.said(check)


def test_a_healthy_lan_of_ipv6_alone_passes(machines: MakeLan) -> None:
    net = machines(nodes=2, ipv4=False, ipv6="fd77::/64")
    daemons_on(net.nodes)
    exam = Exam(net.node(1))
    assert exam.troubles == {}
    assert "gpu2" in exam.said("broadcast")


def test_a_healthy_lan_of_link_local_addresses_alone_passes(machines: MakeLan) -> None:
    net = machines(nodes=2, ipv4=False, ipv6=True)
    daemons_on(net.nodes)
    exam = Exam(net.node(1))
    assert exam.troubles == {}
    assert "gpu2" in exam.said("multicast")
    assert "gpu2" in exam.said("ephemeral-ports")


def test_without_a_daemon_here_it_starts_none_and_tests_what_it_can(machines: MakeLan) -> None:
    net = machines(nodes=2)
    daemons_on(others(net))
    exam = Exam(net.node(1))
    assert exam.troubles == {}
    assert exam.result("daemon") == "skipped"
    assert "a daemon here" in exam.said("link-port")
    assert "gpu2" in exam.said("master-ports")
    assert net.node(1).run(["sh", "-c", "ls /run/mingled /tmp/mingled-*"]).stdout == ""


def test_alone_it_says_so(machines: MakeLan) -> None:
    net = machines(nodes=1)
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"nodes"}
    assert exam.code == 0


# ---------------------------------------------------------------- the twelve


def test_1_fault_26_multicast_dropped(machines: MakeLan) -> None:
    net = machines(nodes=3)
    daemons_on(net.nodes)
    for node in others(net):
        node.drop("ip daddr 224.0.0.251")
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"multicast", "igmp-snooping"}
    assert "gpu2, gpu3 did not hear our multicast" in exam.said("multicast")
    assert exam.result("mdns") == "skipped"
    assert exam.result("broadcast") == "pass"


def test_2_broadcast_dropped(machines: MakeLan) -> None:
    net = machines(nodes=3)
    daemons_on(net.nodes)
    for node in others(net):
        node.drop("meta pkttype broadcast udp dport 29491")
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"broadcast"}
    assert "gpu2, gpu3 did not hear our broadcast; multicast works" in exam.said("broadcast")


def test_3_udp_5353_firewalled_there(machines: MakeLan) -> None:
    net = machines(nodes=3)
    daemons_on(net.nodes)
    net.node(2).drop("udp dport 5353")
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"mdns"}
    assert "gpu2 did not answer on UDP 5353, though multicast passes" in exam.said("mdns")


def test_3_udp_5353_firewalled_here(machines: MakeLan) -> None:
    net = machines(nodes=2)
    daemons_on(net.nodes)
    net.node(1).drop("udp dport 5353")
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"mdns", "firewall"}
    assert "this machine's firewall drops UDP 5353" in exam.said("mdns")
    assert "UDP 5353" in exam.said("firewall")
    assert "29491" not in exam.said("firewall")


def test_4_master_ports_firewalled(machines: MakeLan) -> None:
    net = machines(nodes=3)
    daemons_on(net.nodes)
    net.node(3).drop("tcp dport 29500-29999")
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"master-ports"}
    assert "of gpu3 (10.77.0.3; a port of rank 0's range): no answer" in exam.said("master-ports")
    assert exam.code == 1
    back = Exam(net.node(3))
    assert set(back.troubles) == {"master-ports", "firewall"}
    assert re.search("gpu1 does not reach TCP 295.. here", back.said("master-ports"))


def test_5_ephemeral_ports_firewalled(machines: MakeLan) -> None:
    net = machines(nodes=2)
    daemons_on(net.nodes)
    net.node(2).drop("ct state new tcp dport 32768-60999")
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"ephemeral-ports"}
    assert "as Gloo and NCCL use): no answer" in exam.said("ephemeral-ports")


def test_6_link_port_firewalled_one_way(machines: MakeLan) -> None:
    net = machines(nodes=2)
    daemons_on(net.nodes)
    net.node(1).drop("tcp dport 29490")
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"link-port", "firewall"}
    assert "gpu2 does not reach TCP 29490 here" in exam.said("link-port")
    there = Exam(net.node(2))
    assert set(there.troubles) == {"link-port"}
    assert "TCP 29490 of gpu1 (10.77.0.1; the daemons' link)" in there.said("link-port")
    nodes = net.node(2).run([MINGLE, "nodes"]).stdout
    assert "gpu1  heard, but not reached" in nodes


_ONE_SEGMENT_A_PACKET = """
import array, fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    for command in (0x1F, 0x24, 0x2C):  # ETHTOOL_STSO, _SGSO, _SGRO
        value = array.array("B", struct.pack("=II", command, 0))
        request = struct.pack("16sP", b"eth0", value.buffer_info()[0])
        fcntl.ioctl(sock, 0x8946, request)  # SIOCETHTOOL
"""
"""A veth passes on what it is to cut up itself, whatever its size."""


def test_7_jumbo_frames_that_do_not_get_through(machines: MakeLan) -> None:
    net = machines(nodes=2)
    daemons_on(net.nodes)
    for node in net.nodes:
        node.configure(["link set eth0 mtu 9000"])  # and the switch's ports stay at 1500
        assert python(node, _ONE_SEGMENT_A_PACKET).end().code == 0
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"mtu"}
    assert "large packets to gpu2 vanish, small ones arrive (MTU 9000 here" in exam.said("mtu")


def test_8_two_machines_with_one_machine_id(machines: MakeLan, tmp_path: Path) -> None:
    net = machines(nodes=3)
    over(net.node(3), tmp_path, "/etc/machine-id", f"{2:032x}\n")
    daemons_on(net.nodes)
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"machine-id"}
    assert "gpu2, gpu3: the same machine-id" in exam.said("machine-id")


def test_9_the_own_name_is_127_0_1_1(machines: MakeLan, tmp_path: Path) -> None:
    net = machines(nodes=2)
    over(net.node(1), tmp_path, "/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 gpu1\n")
    daemons_on(net.nodes)
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"hosts-file"}
    assert "maps gpu1 to 127.0.1.1" in exam.said("hosts-file")
    (finding,) = exam.of("hosts-file")
    assert "10.77.0.1 gpu1" in finding.mend[0]


def test_10_an_interface_that_is_not_there(machines: MakeLan) -> None:
    net = machines(nodes=2)
    daemons_on(net.nodes)
    exam = Exam(net.node(1), env={"NCCL_SOCKET_IFNAME": "ib0"})
    assert set(exam.troubles) == {"environment"}
    assert exam.result("environment") == "fail"
    assert "NCCL_SOCKET_IFNAME=ib0: this node has no interface" in exam.said("environment")


def test_11_a_dns_server_that_is_silent(machines: MakeLan, tmp_path: Path) -> None:
    net = machines(nodes=2)
    # No such host: packets to it vanish.
    over(net.node(1), tmp_path, "/etc/resolv.conf", "nameserver 10.77.0.99\n")
    daemons_on(net.nodes)
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"dns", "host-name"}
    assert "10.77.0.99 of /etc/resolv.conf does not answer" in exam.said("dns")


_HOLD = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", 5353))
sys.stderr.write("held\\n")
sys.stdin.read()
"""


def test_12_fault_25_another_program_holds_5353(machines: MakeLan) -> None:
    net = machines(nodes=2)
    python(net.node(1), _HOLD).until("held")
    daemons_on(net.nodes)
    exam = Exam(net.node(1))
    assert set(exam.troubles) == {"mdns-port"}
    assert "held exclusively by python" in exam.said("mdns-port")
    assert exam.result("mdns") == "skipped"


# ---------------------------------------------------------------- more


def test_nodes_without_a_shared_subnet_are_named(machines: MakeLan) -> None:
    net = machines(nodes=2)
    net.node(2).configure(["addr flush dev eth0", "addr add 10.99.0.2/24 dev eth0"])
    net.node(2).configure(["route add 10.77.0.0/24 dev eth0"])
    net.node(1).configure(["route add 10.99.0.0/24 dev eth0"])
    daemons_on(net.nodes)
    exam = Exam(net.node(1), "--peer", "10.99.0.2")
    assert set(exam.troubles) == {"subnet"}
    assert "gpu2 10.99.0.2; here: 10.77.0.0/24" in exam.said("subnet")


def test_a_peer_that_is_not_there_fails(machines: MakeLan) -> None:
    net = machines(nodes=2)
    daemons_on(net.nodes)
    exam = Exam(net.node(1), "--peer", "10.77.0.2,10.77.0.9")
    assert set(exam.troubles) == {"nodes"}
    assert "10.77.0.9 did not answer over UDP 29491, and over TCP:" in exam.said("nodes")
    assert exam.code == 1


def test_a_peer_that_dns_does_not_know_and_discovery_does(
    machines: MakeLan, tmp_path: Path
) -> None:
    net = machines(nodes=2)
    over(net.node(1), tmp_path, "/etc/hosts", "127.0.0.1 localhost\n")
    daemons_on(net.nodes)
    exam = Exam(net.node(1), "--peer", "gpu2,nosuch")
    (failure,) = [finding for finding in exam.of("nodes") if finding.result == "fail"]
    assert failure.measured.startswith("nosuch ")
    assert "--peer ADDRESS" in failure.mend[0]


def test_without_a_network_it_fails_and_names_the_interfaces(machines: MakeLan) -> None:
    net = machines(nodes=2)
    net.node(1).configure(["link set eth0 down"])
    exam = Exam(net.node(1))
    assert exam.code == 1
    assert exam.result("interfaces") == "fail"
    assert "eth0: " in exam.said("interfaces")
    assert exam.result("wifi") == "skipped"
    assert all(f.mend for f in exam.findings if f.result not in SOUND)


def test_ports_that_were_configured(machines: MakeLan, tmp_path: Path) -> None:
    net = machines(nodes=2)
    file = tmp_path / "mingled.toml"
    file.write_text("link_port = 31490\nbroadcast_port = 31491\n")
    words = (str(BIN / "mingled"), "--socket", SOCKET, "--config", str(file))
    started = [start(node, *words) for node in net.nodes]
    for running in started:
        running.until(READY)
    for env in ({}, {"MINGLE_CONFIG": str(file)}):
        exam = Exam(net.node(1), "--peer", "10.77.0.2", env=env)
        assert exam.troubles == {}
        assert "link port 31490" in exam.said("daemon")
        assert exam.result("broadcast") == "pass"


def test_a_job_that_waits(machines: MakeLan) -> None:
    net = machines(nodes=3)
    daemons_on(net.nodes)
    first = wait(net.node(1), "bert", "--nnodes", "3", cmd=SHOW)
    first.until("1/3 here")
    second = wait(net.node(2), "bert", "--nnodes", "3", cmd=SHOW)
    second.until("2/3 here")
    net.node(2).drop("ct state new tcp dport 32768-60999")
    exam = Exam(net.node(1), "--job", "bert")
    assert exam.result("job") == "warn"
    assert "bert waits: 2 of 3 here" in exam.said("job")
    assert "missing: 1 more" in exam.said("job")
    (finding,) = exam.of("job")
    assert "gpu3: a daemon is there, but not this job" in finding.mend[0]
    assert exam.result("job-paths") == "fail"
    assert "gpu1 does not reach gpu2 (10.77.0.2) on TCP" in exam.said("job-paths")
    assert "gpu2 does not reach" not in exam.said("job-paths")
    net.node(2).undrop()
    assert Exam(net.node(1), "--job", "bert").result("job-paths") == "pass"
    third = wait(net.node(3), "bert", "--nnodes", "3", cmd=SHOW)
    for running in (first, second, third):
        running.well()


def test_a_user_without_privileges_is_told_what_needs_them(machines: MakeLan) -> None:
    net = machines(nodes=2)
    daemons_on(net.nodes)
    done = net.node(1).run([*NOBODY, MINGLE, "doctor", "--json"])
    findings = msgspec.json.decode(done.stdout, type=list[Finding])
    (firewall,) = [f for f in findings if f.check == "firewall"]
    assert firewall.result == "skipped"
    assert firewall.mend == ("sudo mingle doctor",)
    assert [f for f in findings if f.result not in SOUND] == []


def test_it_reads_well_in_a_pipe_and_in_40_columns(machines: MakeLan) -> None:
    net = machines(nodes=2)
    daemons_on(net.nodes)
    net.node(2).drop("tcp dport 29500-29999")
    piped = net.node(1).run([MINGLE, "doctor"])
    assert piped.returncode == 1
    assert "\x1b" not in piped.stdout
    (line,) = [one for one in piped.stdout.splitlines() if one.startswith("FAIL")]
    assert line.startswith("FAIL master-ports")
    assert line.endswith("no answer within 3 s")
    assert "\n     mend: open it on gpu2: mingle firewall --subnet 10.77.0.0/24" in piped.stdout
    assert piped.stdout.endswith("1 failed, 27 passed\n")
    narrow = net.node(1).run([MINGLE, "doctor"], env={"COLUMNS": "40"}).stdout
    assert max(map(len, narrow.splitlines())) <= 40
    # Nothing is cut off. (The port that is tried may be the next one, and clocks differ.)
    assert re.sub(r"\d", "", "".join(narrow.split())) == re.sub(
        r"\d", "", "".join(piped.stdout.split())
    )
