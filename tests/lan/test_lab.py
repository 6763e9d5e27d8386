"""The lab itself: nodes are machines of their own, cables and packets do as they are told."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mingled.errors import BadInput, MingleError
from mingled.lab import Lan, Node, Process, available, missing
from mingled.lab.namespaces import child_of

from .conftest import MakeLan, absent

SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(int(sys.argv[2])):
    s.sendto(str(n).encode(), (sys.argv[1], 9999))
"""
COUNT = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 9999))
print("bound", flush=True)
input()
s.settimeout(0.5)  # what is still on its way through the kernel
n = 0
try:
    while s.recv(100): n += 1
except TimeoutError:
    print(n)
"""
LISTEN = """
import socket
s = socket.create_server(("", 29500)); print("listening", flush=True)
open = []
while True: open.append(s.accept()[0]); open[-1].sendall(b"hello")
"""
CONNECT = """
import socket, sys
print(socket.create_connection((sys.argv[1], 29500), timeout=float(sys.argv[2])).recv(9).decode())
"""
MULTICAST_RECEIVE = """
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 5353))
group = socket.inet_aton("224.0.0.251") + bytes(4)
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
print("joined", flush=True)
print(*s.recvfrom(99)[1])
"""
MULTICAST_SEND = """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("224.0.0.251", 5353))
"""


def python(node: Node, script: str, *arguments: object, user: int | None = None) -> Process:
    """Started, and past its first line of output."""
    process = node.popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        user=user,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def reaches(node: Node, address: str, wait_s: float = 20) -> bool:
    return node.run(["ping", "-c1", f"-W{wait_s}", address]).returncode == 0


def received(lan: Lan, count: int = 200) -> int:
    """How many of `count` datagrams get from node 1 to node 2."""
    counter = python(lan.node(2), COUNT)
    lan.node(1).run([sys.executable, "-c", SEND, lan.node(2).address, str(count)], check=True)
    return int(counter.communicate("end\n", timeout=20)[0])


def test_nodes_are_machines_of_their_own(lan: MakeLan) -> None:
    three = lan(nodes=3)
    second = three.node(2)
    assert (second.name, second.address, second.interface) == ("gpu2", "10.77.0.2", "eth0")
    assert second.run(["hostname"], check=True).stdout == "gpu2\n"
    assert socket.gethostname() != "gpu2"
    assert reaches(second, three.node(1).address)
    assert reaches(second, three.node(3).address)
    assert os.listdir("/sys/class/net") != ["eth0", "lo"]
    processes = second.run(["sh", "-c", "echo $$ /proc/[0-9]*"], check=True).stdout.split()
    assert len(processes) == 3  # its own number, process 1 and itself


def test_temporary_directories_are_private_and_the_rest_is_shared(
    lan: MakeLan, tmp_path: Path
) -> None:
    both = lan(nodes=2)
    first, second = both.nodes
    assert first.run(["ls", "/run", "/dev/shm"], check=True).stdout == "/dev/shm:\n\n/run:\n"
    assert first.run(["sh", "-c", "echo 1 > /tmp/own; echo 1 > /run/own"]).returncode == 0
    assert second.run(["sh", "-c", "ls /tmp/own /run/own"]).returncode != 0
    assert not Path("/tmp/own").exists()
    (tmp_path / "script").write_text("here")
    assert second.run(["cat", "script"], cwd=tmp_path, check=True).stdout == "here"
    assert second.run(["pwd"], check=True).stdout.strip() == os.getcwd()


def test_the_environment_is_the_callers_but_not_its_machine(
    lan: MakeLan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    monkeypatch.setenv("MINGLE_SOCKET", "/nowhere")
    monkeypatch.setenv("MY_SETTING", "1")
    node = lan(nodes=1).node(1)
    show = ["sh", "-c", 'echo "$XDG_RUNTIME_DIR,$MINGLE_SOCKET,$MY_SETTING,$MORE"']
    assert node.run(show).stdout == ",,1,\n"
    changed = {"MINGLE_SOCKET": "/run/s", "MY_SETTING": None, "MORE": "2"}
    assert node.run(show, env=changed).stdout == ",/run/s,,2\n"


def test_multicast_arrives(lan: MakeLan) -> None:
    both = lan(nodes=2)
    receiver = python(both.node(2), MULTICAST_RECEIVE)
    both.node(1).run([sys.executable, "-c", MULTICAST_SEND], check=True)
    assert receiver.communicate(timeout=20)[0].startswith("10.77.0.1 ")


def test_signals_reach_the_command(lan: MakeLan) -> None:
    node = lan(nodes=1).node(1)
    script = "import signal; print(1, flush=True); print(signal.sigwait([signal.SIGUSR1]))"
    waiting = python(node, f"import signal; signal.pthread_sigmask(0, [10]); {script}")
    assert Path(f"/proc/{waiting.pid}/cmdline").read_text().startswith(sys.executable)
    os.kill(waiting.pid, signal.SIGUSR1)
    assert waiting.communicate(timeout=20)[0] == f"{signal.SIGUSR1.value}\n"
    stopped = python(node, script)
    stopped.send_signal(signal.SIGSTOP)
    stopped.kill()
    assert stopped.wait(timeout=20) == -signal.SIGKILL


def test_a_command_past_its_time_is_ended(lan: MakeLan) -> None:
    node = lan(nodes=1).node(1)
    with pytest.raises(subprocess.TimeoutExpired):
        node.run(["sleep", "1000"], timeout_s=0.1)
    assert "sleep" not in node.run(["sh", "-c", "cat /proc/[0-9]*/comm"]).stdout


def test_a_cut_cable_is_silent_and_heals(lan: MakeLan) -> None:
    three = lan(nodes=3)
    python(three.node(2), LISTEN)
    three.cut(2)
    assert not reaches(three.node(1), three.node(2).address, wait_s=0.3)
    assert reaches(three.node(1), three.node(3).address)
    connect = [sys.executable, "-c", CONNECT, three.node(2).address]
    assert "refused" not in three.node(1).run([*connect, "0.5"]).stderr
    three.heal(2)
    assert three.node(1).run([*connect, "20"], check=True).stdout == "hello\n"


def test_loss_loses_its_share(lan: MakeLan) -> None:
    both = lan(nodes=2)
    assert received(both) == 200
    both.loss(30)
    assert 88 < received(both) < 192  # 8 standard deviations
    both.loss(100, node=1, direction="in")
    both.loss(0, node=2)
    assert received(both) == 200
    both.loss(100, node=1, direction="out")
    assert received(both) == 0
    both.loss(0)
    assert received(both) == 200


def test_dropped_packets_are_dropped_without_a_word(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    python(second, LISTEN)
    second.drop("tcp dport 29500")
    connect = [sys.executable, "-c", CONNECT, second.address]
    assert "TimeoutError" in first.run([*connect, "0.3"]).stderr
    assert second.run([*connect, "20"], check=True).stdout == "hello\n"  # its own are let in
    assert reaches(first, second.address)
    with pytest.raises(BadInput, match="gpu2"):
        second.drop("tcp dport nonsense")
    second.undrop()
    assert first.run([*connect, "20"], check=True).stdout == "hello\n"


def test_a_capture_has_every_packet(lan: MakeLan) -> None:
    if reason := missing("tcpdump"):
        absent(reason)
    both = lan(nodes=2)
    with both.capture(node=2, filter="udp port 9999") as packets:
        both.node(1).run([sys.executable, "-c", SEND, both.node(2).address, "500"], check=True)
    assert len(packets) == 500
    assert "10.77.0.1" in packets[0].text
    with pytest.raises(BadInput, match="nonsense"), both.capture(1, "nonsense"):
        pass


def test_two_networks(lan: MakeLan) -> None:
    both = lan(nodes=2, networks=2)
    first, second = both.nodes
    assert second.interfaces == ("eth0", "eth1")
    assert second.addresses == ("10.77.0.2", "10.78.0.2")
    both.cut(2, "eth0")
    assert reaches(first, "10.78.0.2")
    assert not reaches(first, "10.77.0.2", wait_s=0.3)


def test_other_names_subnet_and_ipv6(lan: MakeLan) -> None:
    node = lan(nodes=2, hostname="box-{n}", subnet="192.168.9.0/24", ipv6=True).node(2)
    assert (node.name, node.address) == ("box-2", "192.168.9.2")
    assert "fe80::" in node.run(["ip", "-6", "addr"]).stdout
    assert "fe80::" not in lan(nodes=1).node(1).run(["ip", "-6", "addr"]).stdout


def test_ipv6_subnets_one_for_each_network(lan: MakeLan) -> None:
    first, second = lan(nodes=2, networks=2, ipv6="fd77::/64").nodes
    assert second.addresses == ("10.77.0.2", "10.78.0.2")
    assert second.addresses6 == ("fd77::2", "fd77:0:0:1::2")
    assert second.link_locals == ("fe80::4d:47ff:fe00:2", "fe80::4d:47ff:fe00:102")
    for network, address in enumerate(second.addresses6):
        assert reaches(first, address)
        assert reaches(first, f"{second.link_locals[network]}%eth{network}")


def test_nodes_without_ipv4(lan: MakeLan) -> None:
    first, second = lan(nodes=2, ipv4=False, ipv6="fd77::/64").nodes
    assert (second.address, second.addresses) == ("fd77::2", ("fd77::2",))
    assert reaches(first, second.address)
    assert " 10.77." not in first.run(["ip", "addr"], check=True).stdout
    bare = lan(nodes=2, ipv4=False, ipv6=True)
    assert bare.node(2).address == "fe80::4d:47ff:fe00:2"
    assert reaches(bare.node(1), f"{bare.node(2).address}%eth0")
    bare.node(2).kill()
    bare.node(2).boot()
    assert reaches(bare.node(1), f"{bare.node(2).address}%eth0")


def test_a_node_is_configured_as_by_its_root(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    lines = [
        "link add docker0 type bridge",
        "addr add 172.17.0.1/16 dev docker0",
        "link set docker0 up",
        "addr add 10.77.0.99/24 dev eth0",
    ]
    second.configure(lines)
    assert "172.17.0.1/16" in second.run(["ip", "addr"], check=True).stdout
    assert "docker0" not in first.run(["ip", "addr"], check=True).stdout
    assert reaches(first, "10.77.0.99")
    second.configure(["addr del 10.77.0.99/24 dev eth0"])
    assert not reaches(first, "10.77.0.99", wait_s=0.3)
    with pytest.raises(MingleError, match="failed on gpu2"):
        second.configure(["link set no-such-card up"])
    second.kill()
    with pytest.raises(MingleError, match="gpu2 has no power"):
        second.configure(["link set eth0 up"])


def test_power_loss_ends_everything_and_nobody_is_told(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    server = python(second, LISTEN)
    daemon = orphan(second)
    client = python(
        first,
        "import socket; s = socket.create_connection(('10.77.0.2', 29500)); print(s.recv(9), "
        "flush=True); input(); s.settimeout(0.3); s.recv(9)",
    )
    second.kill()
    assert not second.alive
    assert has_ended(daemon)
    assert server.wait(timeout=20) == -signal.SIGKILL
    assert "TimeoutError" in client.communicate("\n", timeout=20)[1]
    with pytest.raises(MingleError, match="gpu2 has no power"):
        second.run(["true"])
    second.boot()
    assert reaches(first, second.address)


HOLD = """
import sys
from mingled.lab import Lan, available
from mingled.lab.namespaces import child_of
with Lan(nodes=2) as lan:
    first, second = lan.nodes
    first.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"], check=True)
    second.run(["ping", "-c1", "-W20", first.address], check=True)
    name = first.run(["hostname"], check=True).stdout.strip()
    pids = [first.holder.pid, second.holder.pid, child_of(first.holder.pid)]
    print(available().kind, name, *pids, flush=True)
    sys.stdin.read()
"""


def test_nothing_survives_a_killed_maker(lan: MakeLan) -> None:
    maker, kind, pids = make_and_hold([])
    assert kind == available().kind
    left = [os.pidfd_open(pid) for pid in pids]
    maker.kill()
    maker.communicate()
    assert all(has_ended(pidfd) for pidfd in left)


def test_rootless_as_another_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("The other tests are rootless already.")
    maker, kind, pids = make_and_hold(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    )
    left = [os.pidfd_open(pid) for pid in pids]
    assert kind == "rootless"
    assert Path(f"/proc/{pids[2]}").stat().st_uid == 65534
    maker.communicate("")
    assert maker.returncode == 0
    assert all(has_ended(pidfd) for pidfd in left)


def make_and_hold(become: list[str]) -> tuple[subprocess.Popen[str], str, list[int]]:
    """A Python that holds a LAN until its stdin ends, how it did so, and what runs there."""
    maker = subprocess.Popen(
        [*become, sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert maker.stdout is not None
    kind, name, *pids = maker.stdout.readline().split() or ["", maker.communicate()[1]]
    assert name == "gpu1"
    return maker, kind, [int(pid) for pid in pids]


def orphan(node: Node) -> int:
    """A pidfd of a process that left its session and its parent."""
    node.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"], check=True)
    pid = child_of(node.holder.pid)
    assert pid is not None
    return os.pidfd_open(pid)


def has_ended(pidfd: int) -> bool:
    with open(pidfd):
        return bool(select.select([pidfd], [], [], 20)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"nodes": 0},
        {"nodes": 251},
        {"networks": 0},
        {"hostname": "gpu_{n}"},
        {"hostname": "{x}"},
        {"subnet": "10.77.0.1/24"},
        {"subnet": "10.77.0.0/30", "nodes": 3},
        {"ipv4": False},
        {"ipv6": "10.77.0.0/24"},
        {"ipv6": "fd77::1/64"},
        {"ipv6": "fd77::/127", "nodes": 3},
        {"share": ["/tmp/nothing here"]},
    ],
)
def test_impossible_lans_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Lan(**options)


def test_impossible_requests_are_refused(lan: MakeLan) -> None:
    one = lan(nodes=1)
    node = one.node(1)
    with pytest.raises(BadInput, match="nodes 1 to 1"):
        one.node(2)
    with pytest.raises(BadInput, match="101"):
        one.loss(101)
    with pytest.raises(BadInput, match="-1"):
        one.loss(-1, node=1)
    with pytest.raises(BadInput, match="eth7"):
        one.cut(1, "eth7")
    with pytest.raises(BadInput, match="no-such-command"):
        node.run(["no-such-command"])
    with pytest.raises(BadInput, match="running already"):
        node.boot()
    with pytest.raises(MingleError, match="not open"):
        Lan(nodes=1).node(1)


def test_commands_run_as_another_user(lan: MakeLan) -> None:
    node = lan(nodes=1).node(1)
    if available().kind == "rootless":
        with pytest.raises(BadInput, match="one user only"):
            node.run(["id", "-u"], user=1234)
    else:
        assert node.run(["id", "-u"], user=1234, cwd="/", check=True).stdout == "1234\n"
