"""From flags, environment and CMD to one request."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mingled.cli.forms import (
    STOP_GRACE,
    Flags,
    Reaction,
    Wish,
    reaction,
    seconds,
    wish,
)
from mingled.core.local import STOP_GRACE_S
from mingled.core.words import Form
from mingled.errors import BadInput
from mingled.frameworks.environment import EXPORTED, exported

NOTHING = Flags("bert", None, None, None, None, None, "10m")


def wished(cmd: str = "", env: dict[str, str] | None = None, **flags: Any) -> Wish:
    return wish(NOTHING._replace(**flags), cmd.split(), env or {}, adopt=not cmd)


def shape(found: Wish) -> tuple[Form, int, int, int | None, int]:
    join = found.join
    return join.form, join.size_min, join.size_max, join.rank, join.nproc


# ---------------------------------------------------------------- which form is meant


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"nnodes": "2"}, (Form.LAUNCHER, 2, 2, None, 1)),
        ({"nnodes": "2:4", "node_rank": 3}, (Form.LAUNCHER, 2, 4, 3, 1)),
        ({"nnodes": "2", "nproc_per_node": "8"}, (Form.LAUNCHER, 2, 2, None, 8)),
        ({"world_size": 4}, (Form.PROCESS, 4, 4, None, 1)),
        ({"world_size": 4, "rank": 3}, (Form.PROCESS, 4, 4, 3, 1)),
        ({"rank": 0}, (Form.PLAIN, 0, 0, 0, 1)),
        ({"rank": 7}, (Form.PLAIN, 0, 0, 7, 1)),
    ],
)
def test_flags(flags: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = wished(**flags)
    assert shape(found) == expected
    assert found.join.job == "bert"
    assert found.join.timeout_s == 600
    assert found.join.adopt
    assert found.line is None


@pytest.mark.parametrize(
    ("cmd", "flags", "expected"),
    [
        ("torchrun --nnodes 2 t.py", {}, (2, 2, None, 1)),
        ("torchrun --nnodes=1:3 --nproc_per_node=4 t.py", {}, (1, 3, None, 4)),
        ("torchrun --nproc-per-node 4 t.py", {"nnodes": "2"}, (2, 2, None, 4)),
        ("torchrun --nnodes 2 --node-rank 1 t.py", {"nnodes": "2"}, (2, 2, 1, 1)),
        ("python -m torch.distributed.run t.py", {"nnodes": "2"}, (2, 2, None, 1)),
        ("env A=1 uv run torchrun t.py", {"nnodes": "2"}, (2, 2, None, 1)),
        ("accelerate launch t.py", {"nnodes": "2"}, (2, 2, None, 1)),
    ],
)
def test_a_launcher_behind_the_dashes(
    cmd: str, flags: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    found = wished(cmd, **flags)
    assert shape(found) == (Form.LAUNCHER, *expected)
    assert not found.join.adopt


@pytest.mark.parametrize("flag", ["interface", "subnet", "peers"])
def test_an_empty_restriction_is_refused(flag: str) -> None:
    field = {"interface": "interfaces", "subnet": "subnets", "peers": "peers"}[flag]
    for values in (("",), (" , ",), ("eth0", "")):
        given: dict[str, Any] = {field: values}
        with pytest.raises(BadInput, match=f"job bert: --{flag} is given with nothing in it"):
            wished(world_size=1, **given)
    assert wished(world_size=1, env={f"MINGLE_{flag.upper()}": ""}).join.interfaces == ()


def test_the_environment_is_a_default_of_one_form_each() -> None:
    env = {"RANK": "1", "WORLD_SIZE": "4", "NODE_RANK": "0"}
    assert shape(wished(env=env)) == (Form.PROCESS, 4, 4, 1, 1)
    assert shape(wished(env=env, rank=2)) == (Form.PROCESS, 4, 4, 2, 1)
    assert shape(wished(env=env, nnodes="2")) == (Form.LAUNCHER, 2, 2, 0, 1)
    assert shape(wished(env=env, nnodes="2", node_rank=1)) == (Form.LAUNCHER, 2, 2, 1, 1)
    assert shape(wished(env={"RANK": "1", "WORLD_SIZE": ""})) == (Form.PLAIN, 0, 0, 1, 1)


def test_what_an_earlier_job_exported_is_not_read_back() -> None:
    ours = {"RANK": "1", "WORLD_SIZE": "4", "NODE_RANK": "1"}
    env = ours | {EXPORTED: exported(ours)}
    with pytest.raises(BadInput, match="neither a size nor a rank"):
        wished(env=env)
    assert shape(wished(env=env, nnodes="2")) == (Form.LAUNCHER, 2, 2, None, 1)
    changed = env | {"RANK": "3"}  # somebody set it since: a wish again
    assert shape(wished(env=changed, world_size=4)) == (Form.PROCESS, 4, 4, 3, 1)


def test_what_else_is_asked() -> None:
    plain = wished(nnodes="2:4").join
    assert (plain.last_call_s, plain.wait, plain.any_user) == (None, True, False)
    assert plain.stop_grace_s == STOP_GRACE_S == seconds(STOP_GRACE, "--stop-grace")
    asked = wished(nnodes="2:4", last_call="0", wait=False, any_user=True, stop_grace="1m30s").join
    assert (asked.last_call_s, asked.wait, asked.any_user) == (0, False, True)
    assert asked.stop_grace_s == 90
    assert wished(nnodes="2", stop_grace="0").join.stop_grace_s == 0
    env = {"MINGLE_REQUIRE_SAME": "git torch"}
    assert wished(nnodes="2", env=env).join.require_same == ("torch", "git")
    assert wished(nnodes="2", env=env, require_same=("cmd",)).join.require_same == ("cmd",)


def test_what_follows_a_loss() -> None:
    def follows(*words: Any, cmd: bool = True, exec_: bool = False) -> Reaction:
        return reaction("bert", *words, cmd=cmd, exec_=exec_)

    assert follows("warn", None) == Reaction("warn", 3)
    assert follows("warn", None, exec_=True) == follows("warn", None, cmd=False) == Reaction()
    assert follows("restart", None) == Reaction("restart", 3)
    assert follows("restart", 0) == Reaction("restart", 0)
    assert follows("stop", None).on_lost == "stop"
    for words, kinds, sentence in (
        (("stop", 1), {}, "delete --max-restarts, or add --on-lost restart"),
        (("warn", 0), {}, "delete --max-restarts, or add --on-lost restart"),
        (("stop", None), {"cmd": False}, "delete --on-lost stop, or add -- CMD"),
        (("restart", 1), {"cmd": False}, "delete --on-lost restart and --max-restarts"),
        (("stop", None), {"exec_": True}, "delete --exec, or --on-lost stop"),
    ):
        with pytest.raises(BadInput, match=re.escape(sentence)):
            follows(*words, **kinds)


# ---------------------------------------------------------------- refused, naming what to do


@pytest.mark.parametrize(
    ("cmd", "flags", "sentence"),
    [
        ("", {"job": None}, "add --job NAME"),
        ("", {"job": ""}, "the job ID is empty"),
        ("", {"job": "é" * 128}, "256 bytes, at most 255"),
        ("", {"job": "a\tb"}, "U+0009"),
        ("", {"job": "a\u202eb"}, "U+202E"),
        ("", {}, "Add --nnodes N for a launcher on each of N nodes, --world-size W"),
        ("", {"world_size": 2, "rank": 2}, "rank 2 is outside the job"),
        ("", {"world_size": 2, "rank": -1}, "ranks go from 0 to 1"),
        ("", {"nnodes": "2", "node_rank": 2}, "node rank 2 is outside the job"),
        ("", {"rank": -1}, "rank -1 is not between"),
        ("", {"world_size": 0}, "--world-size 0 is not between 1 and"),
        ("", {"nnodes": "0"}, "--nnodes 0"),
        ("", {"nnodes": "4:2"}, "--nnodes 4:2"),
        ("", {"nnodes": "two"}, "--nnodes two"),
        ("", {"node_rank": 0}, "Add --nnodes N"),
        ("", {"nnodes": "2", "nproc_per_node": "0"}, "--nproc-per-node 0"),
        ("", {"nnodes": "2", "nproc_per_node": ""}, "not a number, nor gpu, cpu or auto"),
        ("", {"nnodes": "2", "rank": 0}, "delete one kind"),
        ("", {"nnodes": "2", "last_call": "3s"}, "delete --last-call, or give a range"),
        ("", {"rank": 0, "last_call": "3s"}, "delete --last-call, or give a range"),
        ("", {"nnodes": "2:4", "last_call": "none"}, "--last-call 'none': want a time"),
        ("", {"nnodes": "2:4", "last_call": "25h"}, "a last call of 90000 s is not between"),
        ("", {"nnodes": "2", "stop_grace": "none"}, "--stop-grace 'none': want a time"),
        ("", {"nproc_per_node": "2", "world_size": 2}, "delete one kind"),
        ("torchrun t.py", {"world_size": 2}, "delete --world-size and --rank"),
        ("torchrun --nnodes 2 t.py", {"rank": 0}, "delete --world-size and --rank"),
        ("torchrun t.py", {}, "add --nnodes N"),
        ("torchrun --nnodes 2", {}, "names no training script"),
        ("torchrun --standalone t.py", {"nnodes": "2"}, "--standalone leads torchrun away"),
        ("torchrun --master-addr h t.py", {"nnodes": "2"}, "--master-addr h leads torchrun"),
        ("torchrun --master_port=1 t.py", {"nnodes": "2"}, "--master_port=1 leads torchrun"),
        ("torchrun --rdzv-endpoint h:1 t.py", {"nnodes": "2"}, "--rdzv-endpoint h:1 leads"),
        ("torchrun --rdzv-backend c10d t.py", {"nnodes": "2"}, "--rdzv-backend c10d leads"),
        ("torchrun --nnodes 3 t.py", {"nnodes": "2"}, "mingle-wait says --nnodes 2"),
        ("torchrun --node-rank 1 t.py", {"nnodes": "2", "node_rank": 0}, "says --node-rank 0"),
        (
            "torchrun --nproc-per-node 2 t.py",
            {"nnodes": "2", "nproc_per_node": "4"},
            "says --nproc-per-node 4",
        ),
    ],
)
def test_what_cannot_work(cmd: str, flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)) as caught:
        wished(cmd, **flags)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("0.5", 0.5),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("1h1m1.5s", 3661.5),
        ("1.5h", 5400.0),
        (" 2M ", 120.0),
        ("none", None),
        ("None", None),
    ],
)
def test_times(text: str, expected: float | None) -> None:
    assert seconds(text, "--timeout") == expected


@pytest.mark.parametrize("text", ["", "soon", "-1", "1d", "m", "10m1h", "1e9", "inf", "nan", "0"])
def test_no_times(text: str) -> None:
    with pytest.raises(BadInput, match="job bert: --timeout"):
        wished(rank=0, timeout=text)
