"""Rounds of a changing size, one after the other, and jobs of several users."""

from __future__ import annotations

import pytest

from mingled.lab import available

from .conftest import MakeLan, absent
from .helpers import (
    NOBODY,
    STAY,
    daemons_on,
    nothing_left,
    one_round,
    ready_to_wait,
    variables,
    wait,
)

RANGE = ("--nnodes", "2:4", "--last-call")


def test_whoever_comes_within_the_last_call_is_in(lan: MakeLan) -> None:
    four = lan(nodes=4)
    daemons_on(four.nodes)
    third = ready_to_wait(four.node(3), "bert", *RANGE, "1s", cmd=STAY)
    runs = {n: wait(four.node(n), "bert", *RANGE, "1s", cmd=STAY) for n in (1, 2)}
    for running in runs.values():
        running.until("2/2 to 4 here")
    third.go()
    runs[3] = third
    for running in runs.values():
        running.until("MINGLE_EXPORTED", kind="out")
    one_round(four, {n: variables(running.out) for n, running in runs.items()})

    late = wait(four.node(4), "bert", *RANGE, "1s", cmd=STAY)
    hosts = variables(runs[1].out)["MINGLE_HOSTS"].replace("10.77.0.", "gpu").replace(",", ", ")
    said = late.until("round 1 has run for", f" s on {hosts}: this one is for the next")
    assert "this is node rank" not in said
    refused = wait(four.node(4), "bert", *RANGE, "1s", "--no-wait").end()
    assert (refused.code, refused.out) == (81, "")
    assert "job bert" in refused.err
    assert f"with 3 participants on {hosts}; delete --no-wait" in refused.err

    for running in runs.values():
        done = running.finish()
        assert done.code == 0
        assert "lost" not in done.err
    late.until("1/2 to 4 here: gpu4; waiting for 1 more")
    assert "this is node rank" not in late.err
    newcomer = wait(four.node(2), "bert", *RANGE, "1s", cmd=STAY)
    again = {4: late, 2: newcomer}
    for running in again.values():
        running.until("MINGLE_EXPORTED", kind="out")
    one_round(four, {n: variables(running.out) for n, running in again.items()})
    assert variables(late.out)["MINGLE_CLAIM"] != variables(runs[1].out)["MINGLE_CLAIM"]
    for running in again.values():
        assert running.finish().code == 0


def test_a_full_house_is_not_kept_waiting(lan: MakeLan) -> None:
    four = lan(nodes=4)
    runs = {n.number: wait(n, "bert", *RANGE, "10m") for n in four.nodes}  # longer than patience
    one_round(four, {n: running.well().env for n, running in runs.items()})
    nothing_left(four)


def test_fault_07_two_users_share_a_job_only_if_both_say_so(lan: MakeLan) -> None:
    if available().kind == "rootless":
        pytest.skip("a rootless LAN has one user only")
    both = lan(nodes=2)
    trial = both.node(2).run([*NOBODY, "true"])
    if trial.returncode:
        absent(f"setpriv cannot change the user here: {trial.stderr.strip()}")
    first = wait(both.node(1), "bert", "--nnodes", "2", "--node-rank", "0")
    first.until("1/2 here: gpu1")
    for flags in ((), ("--any-user",)):
        done = wait(both.node(2), "bert", "--nnodes", "2", *flags, by=NOBODY).end()
        assert (done.code, done.out) == (85, "")
        assert "job bert: this job is root's on gpu1 (10.77.0.1), and nobody asks for" in done.err
        assert "gpu2 (10.77.0.2)" in done.err
        assert "--any-user" in done.err
    first.process.terminate()
    assert first.end().code == 143

    shared = ("--nnodes", "3", "--any-user")
    first = wait(both.node(1), "bert", *shared)
    first.until("1/3 here: gpu1; waiting for 2 more\n")
    second = wait(both.node(2), "bert", *shared, by=NOBODY)
    for running in (first, second):
        running.until("2/3 here: root@gpu1, nobody@gpu2; waiting for 1 more")
    third = wait(both.node(1), "bert", *shared)
    envs = [running.well().env for running in (first, second, third)]
    assert sorted(env["PET_NODE_RANK"] for env in envs) == ["0", "1", "2"]
    assert len({(env["MASTER_ADDR"], env["MASTER_PORT"]) for env in envs}) == 1
    assert "gpu2 (10.77.0.2, nobody)" in first.err
