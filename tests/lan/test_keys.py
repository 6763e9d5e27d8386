"""Cluster keys on real machines: who meets whom, keys that change meanwhile, forged adverts."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from mingled import keys
from mingled.core.secrets import key_id_of
from mingled.lab import Node

from .conftest import MakeLan
from .helpers import (
    BIN,
    PATIENCE_S,
    READY,
    SHOW,
    SOCKET,
    STAY,
    WAIT,
    Running,
    fates,
    one_round,
    python,
    start,
    status,
    until_fates,
    variables,
    wait,
)

OLD, NEW = bytes(range(32)), bytes(range(32, 64))

FORGER = """
import asyncio, socket, sys
from zeroconf import DNSAddress, DNSOutgoing, DNSPointer, DNSService, ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf
from zeroconf.const import (
    _CLASS_IN, _CLASS_UNIQUE, _FLAGS_AA, _FLAGS_QR_RESPONSE, _TYPE_A, _TYPE_PTR, _TYPE_SRV
)
TYPE, MINE = "_mingle._tcp.local.", sys.argv[1]

async def main():
    zeroconf = AsyncZeroconf(interfaces=[MINE])
    found = asyncio.Queue()
    def changed(zeroconf, service_type, name, state_change):
        if state_change is ServiceStateChange.Added:
            found.put_nowait(name)
    browser = AsyncServiceBrowser(zeroconf.zeroconf, TYPE, handlers=[changed])
    name = await found.get()
    info = AsyncServiceInfo(TYPE, name)
    await info.async_request(zeroconf.zeroconf, 3000)
    print("heard", name, info.port, info.parsed_addresses(), flush=True)
    ours, unique = socket.inet_aton(MINE), _CLASS_IN | _CLASS_UNIQUE
    forged = {
        # RFC 6762, 10.1 and 10.2: goodbye, and a flush of what others have in their caches.
        "goodbye": [DNSPointer(TYPE, _TYPE_PTR, _CLASS_IN, 0, name),
                    DNSService(name, _TYPE_SRV, unique, 0, 0, 0, info.port, info.server)],
        "flush": [DNSAddress(info.server, _TYPE_A, unique, 4500, ours),
                  DNSService(name, _TYPE_SRV, unique, 4500, 0, 0, 9, info.server)],
        "replay": [DNSPointer(TYPE, _TYPE_PTR, _CLASS_IN, 4500, name),
                   DNSService(name, _TYPE_SRV, unique, 4500, 0, 0, info.port, info.server),
                   DNSAddress(info.server, _TYPE_A, unique, 4500, info.addresses[0])],
    }
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while word := (await reader.readline()).decode().strip():
        for _ in range(20):
            out = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
            for record in forged[word]:
                out.add_answer_at_time(record, 0)
            zeroconf.zeroconf.async_send(out)
            await asyncio.sleep(0.02)
        print("forged", word, flush=True)
    await browser.async_cancel()
    await zeroconf.async_close()
asyncio.run(main())
"""


def key_file(folder: Path, node: Node) -> Path:
    return folder / node.name / "key"


def keyed(folder: Path, node: Node, *has: bytes) -> Running:
    """A daemon with these keys."""
    path = key_file(folder, node)
    keys.write(path, has, new=True)
    running = start(node, str(BIN / "mingled"), "--socket", SOCKET, "--key-file", str(path))
    running.until(READY)
    return running


def until_keys(node: Node, *ids: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while (known := status(node)[0]["key_ids"]) != list(ids):
        assert time.monotonic() < until_s, f"{node.name} has {known}, not {ids}"


def test_fault_42_another_key_finds_joins_reads_and_delays_nothing(
    lan: MakeLan, tmp_path: Path
) -> None:
    net = lan(nodes=3)
    for number, key in ((1, OLD), (2, OLD), (3, NEW)):
        keyed(tmp_path, net.node(number), key)
    stranger = wait(net.node(3), "bert", "--nnodes", "2", "--node-rank", "1", timeout="13s")
    leader = wait(net.node(1), "bert", "--nnodes", "2", "--node-rank", "0")
    theirs, mine = key_id_of(OLD), key_id_of(NEW)
    said = stranger.until("Another cluster key is in use on this network")
    assert f"{net.node(1).address} has key {theirs}, gpu3 has key {mine}" in said
    member = wait(net.node(2), "bert", "--nnodes", "2").well()
    assert one_round(net, {1: leader.well().env, 2: member.env}) == 1
    ended = stranger.end()
    assert ended.code == 82
    nodes = net.node(3).run([str(BIN / "mingle"), "nodes", "--json"], check=True).stdout
    shown = {n["host"]: n for n in msgspec.json.decode(nodes)}
    assert shown["gpu1"]["key_id"] == theirs
    assert not shown["gpu1"]["reached"]
    assert "no such job, or another key" in shown["gpu1"]["why_not"]
    doctor = net.node(3).run(
        [str(BIN / "mingle"), "doctor"],
        env={"MINGLE_KEY_FILE": str(key_file(tmp_path, net.node(3)))},
    )
    assert f"gpu1 has key {theirs}" in doctor.stdout
    same = net.node(2).run(
        [str(BIN / "mingle"), "nodes", "--json"],
        env={"MINGLE_KEY_FILE": str(key_file(tmp_path, net.node(2)))},
        check=True,
    )
    shown = {n["host"]: n["reached"] for n in msgspec.json.decode(same.stdout)}
    assert shown == {"gpu1": True, "gpu2": True, "gpu3": False}


def test_fault_42_a_key_that_is_named_is_not_gone_on_without(lan: MakeLan, tmp_path: Path) -> None:
    """The machine's daemon has none; the user has one."""
    net = lan(nodes=1)
    running = start(net.node(1), str(BIN / "mingled"), "--socket", SOCKET)
    running.until(READY)
    path = key_file(tmp_path, net.node(1))
    keys.write(path, [OLD], new=True)
    done = wait(net.node(1), "bert", "--nnodes", "1", env={"MINGLE_KEY_FILE": str(path)}).end()
    assert done.code == 81
    assert f"its daemon presents no key, your key file has key {key_id_of(OLD)}" in done.err
    done = wait(net.node(1), "bert", "--nnodes", "1", env={"MINGLE_KEY_FILE": "none"}).well()
    path.chmod(0o644)
    done = wait(net.node(1), "bert", "--nnodes", "1", env={"MINGLE_KEY_FILE": str(path)}).end()
    assert done.code == 85
    assert "lets others read or change it" in done.err


def test_keys_change_without_an_outage(lan: MakeLan, tmp_path: Path) -> None:
    """Install, use, remove, by command; one job runs meanwhile, one waits for somebody who comes
    when the old key is gone."""
    net = lan(nodes=2)
    for node in net.nodes:
        keyed(tmp_path, node, OLD)
    running = [wait(node, "runs", "--nnodes", "2", cmd=STAY) for node in net.nodes]
    for one in running:
        one.until("MINGLE_CLAIM", kind="out")
    early = wait(net.node(1), "later", "--nnodes", "2", "--node-rank", "0")
    early.until("1/2 here")
    old, new = key_id_of(OLD), key_id_of(NEW)

    def rotate(*words: str, stdin: str | None = None) -> None:
        for node in net.nodes:
            place = {"MINGLE_KEY_FILE": str(key_file(tmp_path, node))}
            node.run(
                [str(BIN / "mingle"), "key", "rotate", *words], env=place, input=stdin, check=True
            )

    rotate("install", "-", stdin=NEW.hex())
    for node in net.nodes:
        until_keys(node, old, new)
    rotate("use", new)
    for node in net.nodes:
        until_keys(node, new, old)
    rotate("remove", old)
    for node in net.nodes:
        until_keys(node, new)
    late = wait(net.node(2), "later", "--nnodes", "2").well()
    assert one_round(net, {1: early.well().env, 2: late.env}) == 1
    for node in net.nodes:
        assert fates(node, "runs") == ["running", "running"]
    for one in running:
        assert one.finish().code == 0


def test_a_jobs_own_secret(lan: MakeLan, tmp_path: Path) -> None:
    net = lan(nodes=3)
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text("correct horse battery staple\n")
    flags = ("--nnodes", "2", "--secret-file", str(secret))
    stranger = wait(net.node(3), "bert", "--nnodes", "2", "--node-rank", "1", timeout="5s")
    both = [wait(net.node(number), "bert", *flags, cmd=SHOW) for number in (1, 2)]
    one_round(net, {number: one.well().env for number, one in zip((1, 2), both, strict=True)})
    assert stranger.end().code == 82


def test_fault_34_and_fault_41_forged_and_replayed_records_change_nothing(lan: MakeLan) -> None:
    """While they wait, and while they run: a session exists, and adverts are hints."""
    net = lan(nodes=3)
    leader = wait(net.node(1), "bert", "--nnodes", "3", "--node-rank", "0", cmd=STAY)
    leader.until("1/3 here")
    forger = python(net.node(3), FORGER, net.node(3).address)
    forger.until("._mingle._tcp.local.", kind="out")
    follower = wait(net.node(2), "bert", "--nnodes", "3", "--node-rank", "1", cmd=STAY)
    follower.until("2/3 here")
    stdin = forger.process.stdin
    assert stdin is not None

    def forge() -> None:
        before = forger.out.count("forged")
        for count, word in enumerate(("goodbye", "flush", "replay", "goodbye"), 1):
            stdin.write(f"{word}\n")
            stdin.flush()
            forger.until("forged", kind="out", times=before + count)

    forge()
    last = wait(net.node(3), "bert", "--nnodes", "3", "--node-rank", "2", cmd=STAY)
    running = {1: leader, 2: follower, 3: last}
    for one in running.values():
        one.until("MINGLE_CLAIM", kind="out")
    assert one_round(net, {n: variables(one.out) for n, one in running.items()}) == 1
    assert "0 leads" not in follower.err
    forge()
    until_fates(net.node(2), "bert", ["running"] * 3)
    assert "lost" not in follower.err + leader.err
    last.process.kill()
    for one in (leader, follower):
        one.until("node rank 2) lost")
    for one in (leader, follower):
        assert one.finish().code == 0


def test_a_private_daemon_has_the_key_that_its_user_names(lan: MakeLan, tmp_path: Path) -> None:
    """Also by a relative path, though it does not run where the user is."""
    net = lan(nodes=2)
    keys.write(tmp_path / "key", [OLD], new=True)
    both = {}
    for node in net.nodes:
        line = f"cd {tmp_path} && exec {WAIT} --job bert --nnodes 2 --timeout 60s -- env -0"
        both[node.number] = start(node, "sh", "-c", line, env={"MINGLE_KEY_FILE": "key"})
    one_round(net, {number: running.well().env for number, running in both.items()})
