"""Two LANs, and the one that a library would take by itself is the wrong one: what real torch and
real NCCL do with our variables, and without them. The cards' own counters tell where bytes went.

Both nodes have eth10 (10.77.0.n, where the node's name and its default route point) and eth1
(10.78.0.n, the one to use): a prefix "eth1" matches both.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import msgspec
import pytest

from mingled.frameworks.environment import environment
from mingled.lab import Lan, Node
from tests.frameworks.test_environment import launcher

from .conftest import MakeLan, absent
from .helpers import Running, python, wait

PAYLOAD_BYTES = 4_000_000
OTHER_BYTES_MAX = 200_000
"""What the link between daemons, the store and ARP may come to; far below the payload."""

COUNT = """
import json, os, sys
from datetime import timedelta
import torch, torch.distributed as dist
payload = torch.ones(int(sys.argv[1]) // 4)
def sent():
    lines = open("/proc/net/dev").read().splitlines()[2:]
    fields = (line.replace(":", " ").split() for line in lines)
    return {words[0]: int(words[9]) for words in fields}
def report(before, value):
    deltas = {name: count - before[name] for name, count in sent().items()}
    names = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    os.write(1, json.dumps({"sent": deltas, "value": value,
        "env": {name: os.environ.get(name) for name in names}}).encode() + b"\\n")
"""

GLOO = """
before = sent()
dist.all_reduce(payload)
dist.barrier()
report(before, payload[0].item())
dist.barrier()
dist.destroy_process_group()
"""

BY_ENV = f"""{COUNT}
dist.init_process_group("gloo", timeout=timedelta(seconds=50))
{GLOO}"""

BY_URL = f"""{COUNT}
import mingled.torch
url = "mingle://bert?world_size=2&interface=eth1"
dist.init_process_group("gloo", init_method=url, timeout=timedelta(seconds=50))
{GLOO}"""

RPC = f"""{COUNT}
import torch.distributed.rpc as rpc
rank = int(os.environ["RANK"])
before = sent()
rpc.init_rpc(f"worker{{rank}}", rank=rank, world_size=2)
value = rpc.rpc_sync(f"worker{{1 - rank}}", torch.add, args=(payload, 1))[0].item()
rpc.shutdown()
report(before, value)
"""

ONE_ADDRESS = f"""{COUNT}
import mingled.torch
cfg = mingled.torch.init_process_group("gloo", job="bert", world_size=2, interface="eth1",
    rank=int(sys.argv[2]), store_interface_only=sys.argv[3] == "only")
print(f"at {{cfg.master_addr}} {{cfg.master_port}}", flush=True)
sys.stdin.readline()
{GLOO}"""

KNOCK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20).close()
except ConnectionRefusedError:
    print("refused")
else:
    print("in")
"""

OURS = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

BOOTSTRAP = """
import ctypes, sys
nccl = ctypes.CDLL(sys.argv[1])
nccl.ncclGetUniqueId(ctypes.create_string_buffer(128))
"""
"""What rank 0 does first; it needs an interface, and no GPU."""


class Sent(msgspec.Struct):
    """What a process says in the end."""

    sent: dict[str, int]  #: bytes, by interface
    value: float
    env: dict[str, str | None]


@pytest.fixture
def _needs_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        absent("torch is not installed")


@pytest.fixture
def two(lan: MakeLan, tmp_path: Path) -> Lan:
    both = lan(nodes=2, networks=2)
    lines = [f"{node.address} {node.name}" for node in both.nodes]
    hosts = tmp_path / "hosts"
    hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    no_dns = tmp_path / "resolv.conf"  # torch asks for names, and would wait for a server
    no_dns.touch()
    for node in both.nodes:
        rename(node)
        for file in (hosts, no_dns):
            node.run(["mount", "--bind", str(file), f"/etc/{file.name}"], check=True)
    return both


def rename(node: Node) -> None:
    """eth0 becomes eth10, and where everything goes that has no other way."""
    lines = ("set eth0 down", "set eth0 name eth10", "set eth10 up")
    node.configure([*(f"link {line}" for line in lines), "route add default dev eth10"])


def run(both: Lan, script: str, *flags: str, without: tuple[str, ...] = ()) -> list[Running]:
    """`script` under mingle-wait on each, `without` some variables that it sets."""
    unset = [word for name in without for word in ("-u", name)]
    cmd = ["env", *unset, sys.executable, "-c", script, str(PAYLOAD_BYTES)]
    return [wait(node, "bert", "--world-size", "2", *flags, cmd=cmd) for node in both.nodes]


def said(running: list[Running]) -> list[Sent]:
    lines = [r.well().out.splitlines()[-1] for r in running]
    return [msgspec.json.decode(line, type=Sent) for line in lines]


def went_over(told: list[Sent], interface: str, other: str, value: float) -> None:
    assert [one.value for one in told] == [value, value]
    for one in told:
        assert one.sent[interface] > PAYLOAD_BYTES // 2, told
        assert one.sent[other] < OTHER_BYTES_MAX, told


# ---------------------------------------------------------------- gloo


@pytest.mark.torch
@pytest.mark.usefixtures("_needs_torch")
def test_gloo_takes_the_interface_that_was_asked_for(two: Lan) -> None:
    told = said(run(two, BY_ENV, "--interface", "eth1"))
    assert {one.env["GLOO_SOCKET_IFNAME"] for one in told} == {"eth1"}
    went_over(told, "eth1", "eth10", 2)


@pytest.mark.torch
@pytest.mark.usefixtures("_needs_torch")
def test_gloo_takes_the_other_one_without_our_variable(two: Lan) -> None:
    """Else the test above would show nothing: both LANs work."""
    told = said(run(two, BY_ENV, "--interface", "eth1", without=OURS))
    went_over(told, "eth10", "eth1", 2)


@pytest.mark.torch
@pytest.mark.usefixtures("_needs_torch")
def test_gloo_where_the_first_lan_is_dead(two: Lan) -> None:
    """Its cards are up and have addresses, and nothing passes: nobody names an interface."""
    for node in two.nodes:
        two.cut(node.number, "eth0")  # the socket in the wall is still called so
    went_over(said(run(two, BY_ENV)), "eth1", "eth10", 2)


@pytest.mark.torch
@pytest.mark.usefixtures("_needs_torch")
def test_a_url_sets_the_variables_before_the_group_is_made(two: Lan) -> None:
    running = [python(node, BY_URL, str(PAYLOAD_BYTES)) for node in two.nodes]
    told = said(running)
    assert {one.env["NCCL_SOCKET_IFNAME"] for one in told} == {"=eth1"}
    went_over(told, "eth1", "eth10", 2)


# ---------------------------------------------------------------- the store's door


@pytest.mark.torch
@pytest.mark.usefixtures("_needs_torch")
@pytest.mark.parametrize("only", [True, False], ids=["one address", "all addresses"])
def test_the_store_listens_on_the_jobs_address_alone(two: Lan, only: bool) -> None:
    """Without the opt-in, too: else it would show nothing."""
    word = "only" if only else "all"
    head, other = two.nodes
    running = [
        python(node, ONE_ADDRESS, str(PAYLOAD_BYTES), str(rank), word)
        for rank, node in enumerate(two.nodes)
    ]
    _, address, port = running[0].until("\n", kind="out").split()
    assert address == head.addresses[1]
    running[1].until("\n", kind="out")
    listening = head.run(["ss", "-Hltn", f"sport = :{port}"], check=True).stdout.split()
    assert listening[3] == (f"{address}:{port}" if only else f"*:{port}")
    knocks = {
        to: other.run([sys.executable, "-c", KNOCK, to, port], check=True).stdout.strip()
        for to in head.addresses
    }
    assert knocks == {head.addresses[0]: "refused" if only else "in", address: "in"}
    for one in running:
        one.go()
    went_over(said(running), "eth1", "eth10", 2)


# ---------------------------------------------------------------- TensorPipe


@pytest.mark.torch
@pytest.mark.usefixtures("_needs_torch")
@pytest.mark.parametrize("ours", [True, False])
def test_tensorpipe(two: Lan, ours: bool) -> None:
    told = said(run(two, RPC, "--interface", "eth1", without=() if ours else OURS))
    went_over(told, *(("eth1", "eth10") if ours else ("eth10", "eth1")), value=2)


# ---------------------------------------------------------------- NCCL


def libnccl() -> str:
    try:
        found = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        found = None
    if found is None or not found.submodule_search_locations:
        pytest.skip("NCCL is not installed: pip install --no-deps nvidia-nccl-cu12")
    return str(Path(found.submodule_search_locations[0], "lib", "libnccl.so.2"))


def bootstrap(node: Node, library: str, **env: str) -> str:
    """The interface and address that NCCL takes there."""
    words = [sys.executable, "-c", BOOTSTRAP, library]
    done = node.run(words, env=env | {"NCCL_DEBUG": "INFO"}, check=True)
    found = re.search(r"Bootstrap: Using (\S+)<0>", done.stdout)
    assert found, done.stdout
    return found[1]


def test_nccl_reads_exact_names_and_prefixes(lan: MakeLan) -> None:
    library = libnccl()
    node = lan(nodes=1, networks=2, ipv6="fd77::/64").node(1)
    rename(node)
    assert bootstrap(node, library) == "eth10:10.77.0.1"
    assert bootstrap(node, library, NCCL_SOCKET_IFNAME="eth1") == "eth10:10.77.0.1"  # a prefix
    for address, taken in (("10.78.0.1", "10.78.0.1"), ("fd77:0:0:1::1", "fd77:0:0:1::1")):
        config = msgspec.structs.replace(launcher(), interface="eth1", address=address)
        values = environment(config, present={}).values
        ours = {name: value for name, value in values.items() if name.startswith("NCCL_")}
        assert bootstrap(node, library, **ours) == f"eth1:{taken}"


def test_mingle_wait_sets_what_nccl_reads(two: Lan) -> None:
    library = libnccl()
    cmd = [sys.executable, "-c", BOOTSTRAP, library]
    running = [
        wait(
            node,
            "bert",
            *("--nnodes", "2", "--interface", "eth1"),
            cmd=["env", "NCCL_DEBUG=INFO", *cmd],
        )
        for node in two.nodes
    ]
    for node, one in zip(two.nodes, running, strict=True):
        assert f"Bootstrap: Using eth1:{node.addresses[1]}<0>" in one.well().out
