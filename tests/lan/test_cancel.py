"""`mingle cancel` on real LANs: from a follower, from the leader, and by somebody else."""

from __future__ import annotations

from .conftest import MakeLan
from .helpers import BIN, NOBODY, READY, STAY, Env, launch, status, wait

MINGLE = str(BIN / "mingle")
NAMED: Env = {"MINGLE_SOCKET": "/run/m.sock"}


def test_a_job_is_ended_everywhere(lan: MakeLan) -> None:
    net = lan(nodes=3)
    one, two, three = net.nodes
    for running in [launch(node, "/run/m.sock") for node in net.nodes]:
        running.until(READY)

    flags = ("--nnodes", "3")
    runs = [wait(one, "bert", *flags, "--node-rank", "0", cmd=STAY, env=NAMED)]
    runs += [wait(node, "bert", *flags, cmd=STAY, env=NAMED) for node in (two, three)]
    for run in runs:
        run.until("MASTER_PORT", kind="out")

    # Somebody else may not, and changes nothing.
    refused = two.run([*NOBODY, MINGLE, "cancel", "bert"], env=NAMED)
    assert (refused.returncode, refused.stdout) == (85, ""), refused.stderr
    assert "job bert on" in refused.stderr
    assert "belongs to root, you are nobody" in refused.stderr

    # From a follower, while it runs.
    done = three.run([MINGLE, "cancel", "bert", "--reason", "the loss is NaN"], env=NAMED)
    assert done.returncode == 0, done.stdout + done.stderr
    said = {f"{node.name} ({node.address}): 1 ended" for node in net.nodes}
    assert set(done.stdout.splitlines()) == said
    for run in runs:
        ended = run.end()
        assert ended.code == 87, ended.err
        assert f"while it ran by root on {three.name}: the loss is NaN" in ended.err

    # From the leader, while it waits.
    waits = [wait(one, "gpt", "--nnodes", "4", "--node-rank", "0", env=NAMED)]
    waits += [wait(node, "gpt", "--nnodes", "4", env=NAMED) for node in (two, three)]
    waits[0].until("3/4")
    done = one.run([MINGLE, "cancel", "gpt"], env=NAMED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(done.stdout.splitlines()) == said
    for run in waits:
        ended = run.end()
        assert ended.code == 87, ended.err
        assert f"before it started by root on {one.name}" in ended.err

    for node in net.nodes:
        (report,) = status(node, env=NAMED)
        assert report["jobs"] == []
