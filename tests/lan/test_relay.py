"""Somebody without the key in the middle, or with a flood of forged adverts: labels and claims are
public, and an advert can lead anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from mingled.lab import Lan

from .conftest import MakeLan
from .helpers import STAY, Running, one_round, python, variables, wait
from .test_keys import OLD, keyed

RELAY = """
import asyncio, socket, sys
from mingled.core.datagrams import BROADCAST_PORT, Announce, encode
from mingled.core.messages import Advert
from mingled.core.words import Label, NodeId, Nonce
from zeroconf import ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

TYPE, MINE, MODE = "_mingle._tcp.local.", sys.argv[1], sys.argv[2]
subnet = MINE.rpartition(".")[0]

async def main():
    zeroconf, found = AsyncZeroconf(interfaces=[MINE]), asyncio.Queue()
    def changed(zeroconf, service_type, name, state_change):
        if state_change is ServiceStateChange.Added:
            found.put_nowait(name)
    browser = AsyncServiceBrowser(zeroconf.zeroconf, TYPE, handlers=[changed])
    name = await found.get()
    info = AsyncServiceInfo(TYPE, name)
    await info.async_request(zeroconf.zeroconf, 3000)
    label, _, claim = name.removesuffix("." + TYPE).partition("-")
    (real,), port = info.parsed_addresses(), info.port
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sender.bind((MINE, 0))

    def forge(claim, port, address):
        advert = Advert(version=1, key_id="none", label=Label(label), claim=Nonce(claim),
                        port=port, addresses=(address,))
        announce = Announce(node=NodeId("d" * 32), advert=advert)
        sender.sendto(encode(announce), (subnet + ".255", BROADCAST_PORT))

    async def pipe(reader, writer):
        try:
            while chunk := await reader.read(65_536):
                writer.write(chunk)
            writer.write_eof()
        except OSError:
            writer.close()

    async def relay(reader, writer):
        there, to = await asyncio.open_connection(real, port)
        print("relays", writer.get_extra_info("peername")[0], flush=True)
        await asyncio.gather(pipe(reader, to), pipe(there, writer))

    await asyncio.start_server(relay, MINE, port)
    print("begins", flush=True)
    number = 0
    while True:
        if MODE == "relay":
            forge(claim, port, MINE)
        else:  # an address that nobody has, and claims that sort before any other
            for _ in range(2):
                number += 1
                forge(f"{number:032x}", 5, subnet + ".251")
        await asyncio.sleep(0.1)

asyncio.run(main())
"""


def attacked(net: Lan, mode: str) -> Running:
    three = net.node(3)
    attacker = python(three, RELAY, three.address, mode)
    attacker.until("begins", kind="out")
    return attacker


@pytest.mark.parametrize("form", ["plain", "round"])
def test_fault_34_whoever_passes_on_every_byte_is_in_no_roster(
    lan: MakeLan, tmp_path: Path, form: str
) -> None:
    """TLS succeeds end to end; the addresses are what is false."""
    net = lan(nodes=3)
    for number in (1, 2):
        keyed(tmp_path, net.node(number), OLD)
    zero, one = ("--rank 0", "--rank 1")
    if form == "round":
        zero, one = ("--nnodes 2 --node-rank 0", "--nnodes 2 --node-rank 1")
    leader = wait(net.node(1), "bert", *zero.split(), cmd=STAY)
    attacker = attacked(net, "relay")
    follower = wait(net.node(2), "bert", *one.split(), cmd=STAY)
    follower.until("MINGLE_CLAIM", kind="out")
    told = variables(follower.out)
    assert told["MASTER_ADDR"] == net.node(1).address
    if form == "round":
        leader.until("MINGLE_CLAIM", kind="out")
        assert one_round(net, {1: variables(leader.out), 2: told}) == 1
    assert f"relays {net.node(2).address}" in attacker.out  # it did get in between, for a moment
    attacker.process.kill()
    for running in (leader, follower):
        assert running.finish().code == 0


def test_fault_34_a_flood_of_forged_claims_keeps_nobody_apart(lan: MakeLan, tmp_path: Path) -> None:
    """Twenty a second with the job's own label, each at an address that is silent."""
    net = lan(nodes=3)
    for number in (1, 2):
        keyed(tmp_path, net.node(number), OLD)
    leader = wait(net.node(1), "bert", "--nnodes", "2", "--node-rank", "0", cmd=STAY)
    attacked(net, "flood")
    follower = wait(net.node(2), "bert", "--nnodes", "2", "--node-rank", "1", cmd=STAY)
    plain = wait(net.node(1), "plain", "--rank", "0")
    envs = {}
    for number, running in ((1, leader), (2, follower)):
        running.until("MINGLE_CLAIM", kind="out")
        envs[number] = variables(running.out)
    assert one_round(net, envs) == 1
    plain.well()
    for running in (leader, follower):
        assert running.finish().code == 0
