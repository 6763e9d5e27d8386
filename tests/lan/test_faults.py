"""What goes wrong on real LANs: one clear sentence, an exit code, nothing left behind."""

from __future__ import annotations

import signal
import sys

import pytest

from mingled.lab import available

from .conftest import MakeLan
from .helpers import (
    BIN,
    SOCKET,
    STAY,
    daemon,
    job_on,
    kill_daemon,
    nothing_left,
    start,
    status,
    until_fates,
    variables,
    wait,
)

ASK = """
import os, socket, sys
os.setuid(65534)  # only now: Python and the checkout may lie where nobody else can read
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode() + b"\\n")
print(s.makefile().readline())
"""

# ---------------------------------------------------------------- they do not agree


def test_fault_08_sizes_differ(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    leader = wait(first, "bert", "--nnodes", "2", "--node-rank", "0")
    leader.until("1/2 here: gpu1")
    wrong = wait(second, "bert", "--nnodes", "3").end()
    assert (wrong.code, wrong.out) == (81, "")
    (sentence,) = [line for line in wrong.err.splitlines() if "--nnodes 3" in line]
    for word in ("job bert", "gpu1", first.address, "--nnodes 2", "gpu2", second.address):
        assert word in sentence
    other_form = wait(second, "bert", "--world-size", "2").end()
    assert other_form.code == 81
    assert "--world-size 2" in other_form.err
    right = wait(second, "bert", "--nnodes", "2").well()
    assert right.env["MASTER_ADDR"] == leader.well().env["MASTER_ADDR"]


def test_fault_06_one_rank_is_asked_for_twice(lan: MakeLan) -> None:
    three = lan(nodes=3)
    leader = wait(three.node(1), "bert", "--world-size", "3", "--rank", "0")
    early = wait(three.node(2), "bert", "--world-size", "3", "--rank", "1")
    leader.until("2/3 here")
    late = wait(three.node(3), "bert", "--world-size", "3", "--rank", "1").end()
    assert late.code == 81
    for word in ("job bert", "rank 1", "twice", "gpu2", three.node(2).address, "gpu3"):
        assert word in late.err
    same_node = wait(three.node(2), "bert", "--world-size", "3", "--rank", "1").end()
    assert same_node.code == 81
    assert "rank 1 is asked for twice: by pid " in same_node.err
    wait(three.node(3), "bert", "--world-size", "3", "--rank", "2").well()
    assert [leader.well().env["RANK"], early.well().env["RANK"]] == ["0", "1"]


@pytest.mark.parametrize("at_once", [True, False])
def test_fault_05_two_explicit_rank_0(lan: MakeLan, at_once: bool) -> None:
    three = lan(nodes=3)
    flags = ("--nnodes", "2", "--node-rank")
    rivals = {three.node(1).address: wait(three.node(1), "bert", *flags, "0", cmd=STAY)}
    if not at_once:
        rivals[three.node(1).address].until("1/2 here")
    rivals[three.node(2).address] = wait(three.node(2), "bert", *flags, "0", cmd=STAY)
    follower = wait(three.node(3), "bert", *flags, "1", cmd=STAY)
    follower.until("MINGLE_EXPORTED", kind="out")
    master = variables(follower.out)["MASTER_ADDR"]
    won = rivals.pop(master)
    (loser,) = rivals.values()
    lost = loser.end()
    assert lost.code in (81, 83)
    assert lost.out == ""
    sentence = lost.err.splitlines()[-1]
    leader = variables(follower.out)["MINGLE_LEADER_HOST"]
    for word in ("job bert", "rank 0", leader, master):
        assert word in sentence
    assert won.finish().env["MASTER_ADDR"] == master
    assert follower.finish().code == 0


def test_two_launchers_on_one_node_are_warned(lan: MakeLan) -> None:
    node = lan(nodes=1).node(1)
    first = wait(node, "bert", "--nnodes", "2")
    first.until("1/2 here")
    second = wait(node, "bert", "--nnodes", "2").well()
    for err in (first.well().err, second.err):
        assert "two launchers on gpu1, pid " in err


def test_fault_07_the_job_of_another_user(lan: MakeLan) -> None:
    if available().kind == "rootless":
        pytest.skip("a rootless LAN has one user only")
    node = lan(nodes=1).node(1)
    daemon(node)
    env = {"MINGLE_SOCKET": SOCKET}
    first = wait(node, "bert", "--world-size", "2", env=env)
    first.until("1/2 here")
    request = '{"type":"join","job":"bert","form":"process","size_min":2,"size_max":2}'
    other = node.run([sys.executable, "-c", ASK, SOCKET, request], check=True)
    assert '"code":"not-permitted"' in other.stdout
    assert "job bert on gpu1 belongs to root" in other.stdout
    assert job_on(node, "bert")["here"] == 1
    assert node.run([str(BIN / "mingle"), "leave", "bert"], env=env).returncode == 0
    ended = first.end()
    assert (ended.code, ended.out) == (87, "")
    assert "left on gpu1 before it started" in ended.err


# ---------------------------------------------------------------- somebody ends


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_signal_while_waiting_leaves(lan: MakeLan, number: int, code: int) -> None:
    three = lan(nodes=3)
    first = wait(three.node(1), "bert", "--nnodes", "3", "--node-rank", "0")
    second = wait(three.node(2), "bert", "--nnodes", "3", "--node-rank", "1", cmd=())
    first.until("2/3 here: gpu1, gpu2; waiting for node rank 2")
    second.process.send_signal(number)
    done = second.end()
    assert (done.code, done.out) == (code, f"(exit {code})\n")
    first.until("1/3 here: gpu1; waiting for node ranks 1, 2", times=2)
    first.process.send_signal(number)
    assert first.end().code == code
    nothing_left(three)


def test_fault_14_a_timeout_names_what_is_missing(lan: MakeLan) -> None:
    three = lan(nodes=3)
    follower = wait(three.node(2), "bert", "--nnodes", "4", "--node-rank", "1")
    follower.until("1/4 here: gpu2")
    leader = wait(three.node(1), "bert", "--nnodes", "4", "--node-rank", "0", timeout="3s")
    done = leader.end()
    assert done.code == 82
    sentence = done.err.splitlines()[-1]
    assert "job bert: no rendezvous on gpu1 within 3 s: 2 of 4 were here (gpu1, gpu2)" in sentence
    assert "node ranks 2, 3 never came" in sentence
    follower.until("no rank 0 yet", times=2)
    alone = wait(three.node(3), "other", "--rank", "1", timeout="0.1s").end()
    assert alone.code == 82
    assert "no rank 0 was heard on eth0" in alone.err
    assert "10.77.0.3" in alone.err


def test_fault_02_fault_03_rank_0_is_killed_before_and_after_the_seal(lan: MakeLan) -> None:
    three = lan(nodes=3)
    first = wait(three.node(1), "bert", "--nnodes", "3", "--node-rank", "0", cmd=STAY)
    rest = [wait(three.node(2), "bert", "--nnodes", "3", cmd=STAY)]
    rest[0].until("2/3 here: gpu1, gpu2")
    rest[0].says_after(first.process.kill, "1/3 here: gpu2; waiting for 2 more")
    first.end()
    again = wait(three.node(1), "bert", "--nnodes", "3", "--node-rank", "0", cmd=STAY)
    again.until("2/3 here")
    rest.append(wait(three.node(3), "bert", "--nnodes", "3", cmd=STAY))
    for running in (again, *rest):
        running.until("this is node rank")
    again.process.kill()  # CMD ends with its stdin
    for running in rest:
        running.until("gpu1 (10.77.0.1, node rank 0) lost just now in round 1: killed by signal 9")
    again.finish()
    for running in rest:
        assert running.finish().code == 0
    nothing_left(three)


@pytest.mark.parametrize("dies", ["rank 0", "rank 1"])
def test_fault_01_a_daemon_dies_while_clients_wait(lan: MakeLan, dies: str) -> None:
    three = lan(nodes=3)
    nodes = {"rank 0": three.node(1), "rank 1": three.node(2)}
    flags = {
        "rank 0": ("--nnodes", "3", "--node-rank", "0"),
        "rank 1": ("--nnodes", "3", "--node-rank", "1"),
    }
    waits = {name: wait(nodes[name], "bert", *flags[name]) for name in nodes}
    for running in waits.values():
        running.until("2/3 here")
    (stays,) = set(waits) - {dies}
    waits[stays].says_after(lambda: kill_daemon(nodes[dies]), "1/3 here")
    done = waits[dies].end()
    assert (done.code, done.out) == (80, "")
    assert "the daemon at /tmp/mingled-" in done.err
    assert f"on {nodes[dies].name}: it ended or hung up" in done.err
    again = wait(nodes[dies], "bert", *flags[dies])
    third = wait(three.node(3), "bert", "--nnodes", "3")
    ends = [waits[stays].well(), again.well(), third.well()]
    assert {end.env["MASTER_ADDR"] for end in ends} == {three.node(1).address}
    nothing_left(three)


def test_a_daemon_that_stops_makes_its_participants_unwatched_not_lost(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    watcher = daemon(second)
    leader = wait(first, "bert", "--nnodes", "2", "--node-rank", "0", cmd=STAY)
    env = {"MINGLE_SOCKET": SOCKET}
    follower = wait(second, "bert", "--nnodes", "2", cmd=("sh", "-c", "cat; exit 5"), env=env)
    leader.until("this is node rank 0")
    follower.until("this is node rank 1")
    watcher.process.terminate()
    assert watcher.end().code == 0
    leader.until(f"gpu2 ({second.address}, node rank 1) is no longer watched")
    assert follower.finish().code == 5
    assert "lost" not in leader.finish().err


def test_a_daemon_that_stops_tells_who_waits(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    watcher = daemon(first)
    waiting = wait(first, "bert", "--nnodes", "3", env={"MINGLE_SOCKET": SOCKET})
    other = wait(second, "bert", "--nnodes", "3", "--node-rank", "1")
    waiting.until("2/3 here")
    other.says_after(watcher.process.terminate, "no rank 0 yet")
    assert watcher.end().code == 0
    done = waiting.end()
    assert done.code == 80
    assert "job bert: mingled on gpu1 stops: SIGTERM" in done.err
    assert first.run(["find", "/run", "-type", "s", "-o", "-type", "f"]).stdout == ""


def test_fault_45_a_second_daemon_on_one_socket_is_refused(lan: MakeLan) -> None:
    node = lan(nodes=1).node(1)
    running = daemon(node)
    env = {"MINGLE_SOCKET": SOCKET}
    second = start(node, str(BIN / "mingled"), "--socket", SOCKET).end()
    assert second.code == 80
    assert f"another mingled already serves {SOCKET}" in second.err
    (report,) = status(node, env)
    assert report["socket"] == SOCKET
    wait(node, "bert", "--world-size", "1", env=env).well()
    running.process.terminate()
    assert running.end().code == 0
    daemon(node)  # the place is free again


# ---------------------------------------------------------------- the network


def test_fault_28_a_firewall_is_named_and_nobody_is_released(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    first.drop("tcp dport 29500-29999")
    flags = ("--nnodes", "2", "--node-rank")
    waits = [
        wait(node, "bert", *flags, str(rank), timeout="8s")
        for rank, node in enumerate((first, second))
    ]
    for running in waits:
        running.until(f"gpu2 ({second.address}) cannot reach rank 0's port on gpu1")
        running.until(f"TCP {first.address} port 29")
        running.until("no answer within 5 s; a firewall there?")
    for done in [running.end() for running in waits]:
        assert (done.code, done.out) == (82, "")
    assert all(not report["jobs"] for node in (first, second) for report in status(node))


def test_fault_28_a_firewall_that_is_opened_lets_the_job_start(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    for node in (first, second):  # whoever leads
        node.drop("tcp dport 29500-29999")
    waits = [wait(node, "bert", "--nnodes", "2", cmd=STAY) for node in (first, second)]
    for running in waits:
        running.until("a firewall there?")
    for node in (first, second):
        node.undrop()
    for running in waits:
        running.until("this is node rank")
    until_fates(first, "bert", ["running", "running"])
    assert all(running.finish().code == 0 for running in waits)


def test_fault_04_the_leaders_node_loses_power_and_another_leads(lan: MakeLan) -> None:
    three = lan(nodes=3)
    flags = ("--nnodes", "3")
    leader = wait(three.node(1), "bert", *flags)
    leader.until("1/3 here: gpu1; waiting for 2 more\n")
    second = wait(three.node(2), "bert", *flags)
    second.until("2/3 here: gpu1, gpu2")
    second.says_after(three.node(1).kill, "1/3 here: gpu2")
    three.node(1).boot()
    rest = [wait(three.node(n), "bert", *flags) for n in (1, 3)]
    envs = [running.well().env for running in (second, *rest)]
    assert len({(env["MASTER_ADDR"], env["MASTER_PORT"]) for env in envs}) == 1
    assert sorted(env["PET_NODE_RANK"] for env in envs) == ["0", "1", "2"]


def test_fault_04_rank_0s_node_loses_power_and_nobody_hangs(lan: MakeLan) -> None:
    three = lan(nodes=3)
    flags = ("--nnodes", "4", "--node-rank")  # never complete: no seal is under way
    leader = wait(three.node(1), "bert", *flags, "0")
    leader.until("1/4 here")
    rest = [wait(three.node(n), "bert", *flags, str(n - 1), timeout="8s", cmd=()) for n in (2, 3)]
    leader.until("here: gpu1, gpu")
    three.node(1).kill()
    for done in [running.end() for running in rest]:
        assert (done.code, done.out) == (82, "(exit 82)\n")
        assert "job bert: no rendezvous on gpu" in done.err.splitlines()[-1]
