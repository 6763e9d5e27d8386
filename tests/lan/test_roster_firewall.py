"""`mingle firewall --job` on real LANs: who gets in once a real nft has the printed rules."""

from __future__ import annotations

import importlib.util
import json
import re
import sys

import pytest

from mingled.core.reach import is_link_local_v6
from mingled.lab import Node

from .conftest import MakeLan, absent
from .helpers import BIN, STAY, Running, daemons_on, python, variables, wait

MINGLE = str(BIN / "mingle")

LISTEN = """
import socket, sys
port = int(sys.argv[1])
with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    sys.stdout.write(f"{server.getsockname()[1]}\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""

KNOCK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])).close()
except TimeoutError:
    print("silence")
else:
    print("in")
"""

REDUCE = """
import os, sys
import torch, torch.distributed as dist
import mingled.torch
mingled.torch.init_process_group("gloo", job="bert", world_size=2)
os.write(1, b"ready\\n")
sys.stdin.readline()
group = dist.new_group()  # new connections
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total, group=group)
os.write(1, f"sum {total.item()}\\n".encode())
dist.barrier()
mingled.torch.destroy_process_group()
"""


def rules(node: Node, job: str = "bert") -> str:
    done = node.run([MINGLE, "firewall", "--job", job, "--format", "nft"], check=True)
    return done.stdout


def apply(node: Node, text: str) -> None:
    node.run(["nft", "-f", "-"], input=text, check=True)


def listen(node: Node, port: int = 0) -> tuple[Running, int]:
    running = python(node, LISTEN, str(port))
    return running, int(running.until("\n", kind="out"))


def knocks(node: Node, target: Node, *ports: int, patience_s: float = 20) -> list[str]:
    """What becomes of a connection to each; who is to be dropped need not be patient."""
    address = target.address
    if is_link_local_v6(address):
        address += f"%{node.interface}"
    words = ([sys.executable, "-c", KNOCK, address, str(p), str(patience_s)] for p in ports)
    return [node.run(argv, check=True).stdout.strip() for argv in words]


@pytest.mark.parametrize(
    "options",
    [{}, {"ipv4": False, "ipv6": "fd77::/64"}, {"ipv4": False, "ipv6": True}],
    ids=["ipv4", "ipv6", "link-local"],
)
def test_members_get_in_and_a_stranger_does_not(lan: MakeLan, options: dict[str, object]) -> None:
    net = lan(nodes=3, **options)
    head, member, stranger = net.nodes
    daemons_on(net.nodes)
    told = []
    for rank, node in enumerate((head, member)):
        told.append(wait(node, "bert", "--world-size", "2", "--rank", str(rank), cmd=STAY))
    env = variables(told[0].until("MASTER_PORT=", "MINGLE_EXPORTED", kind="out"))
    told[1].until("MASTER_PORT=", kind="out")
    (_, store), (_, high) = listen(head, int(env["MASTER_PORT"])), listen(head)
    link = json.loads(head.run([MINGLE, "status", "--json"]).stdout)[0]["link_port"]
    ports = (store, high, link)
    assert knocks(stranger, head, *ports) == ["in"] * 3
    text = rules(head)
    apply(head, text)
    apply(head, text)  # replaces itself
    assert knocks(member, head, *ports) == ["in"] * 3
    assert knocks(stranger, head, *ports, patience_s=0.3) == ["silence"] * 3
    removal = re.search(r"remove:  sudo (nft delete table inet mingled-[0-9a-f]{12})$", text, re.M)
    assert removal
    head.run(removal[1].split(), check=True)
    assert knocks(stranger, head, *ports) == ["in"] * 3
    assert head.run(["nft", "list", "ruleset"]).stdout == ""


def test_two_jobs_of_one_node_stand_side_by_side(lan: MakeLan) -> None:
    net = lan(nodes=3)
    head = net.node(1)
    daemons_on(net.nodes)
    ports = []
    for job, other in (("bert", net.node(2)), ("gpt", net.node(3))):
        flags = ("--world-size", "2", "--rank")
        first = wait(head, job, *flags, "0", cmd=STAY)
        wait(other, job, *flags, "1", cmd=STAY).until("MASTER_PORT=", kind="out")
        env = variables(first.until("MASTER_PORT=", "MINGLE_EXPORTED", kind="out"))
        ports.append(listen(head, int(env["MASTER_PORT"]))[1])
    high = listen(head)[1]
    for job in ("bert", "gpt"):
        apply(head, rules(head, job))
    for number, own, others in ((2, ports[0], ports[1]), (3, ports[1], ports[0])):
        assert knocks(net.node(number), head, own, high) == ["in", "in"]
        assert knocks(net.node(number), head, others, patience_s=0.3) == ["silence"]


@pytest.mark.torch
def test_gloo_works_behind_the_rules(lan: MakeLan) -> None:
    if importlib.util.find_spec("torch") is None:
        absent("torch is not installed")
    both = lan(nodes=2)
    running = [python(node, REDUCE) for node in both.nodes]
    for one in running:
        one.until("ready", kind="out")
    for node in both.nodes:
        apply(node, rules(node))
    for one in running:
        one.go()
    for one in running:
        assert "sum 3" in one.well().out
