"""Reading, checking and rewriting torchrun's command line, held against torch's own parser."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mingled.cli import torchrun
from mingled.cli.resolved import Resolved
from mingled.core.config import Config, Member
from mingled.core.words import Form, Nonce
from mingled.errors import BadInput
from mingled.frameworks.environment import environment


def member(rank: int) -> Member:
    return Member(
        rank=rank,
        node_rank=rank,
        local_index=0,
        nproc=2,
        global_rank=2 * rank,
        host=f"gpu{rank}",
        address=f"10.0.0.{rank + 1}",
        user="ada",
        node="0" * 32,
        participant=f"{rank:032x}",
    )


def config(master_addr: str = "10.0.0.1") -> Config:
    return Config(
        job="bert",
        form=Form.LAUNCHER,
        round=1,
        claim=Nonce("c" * 32),
        rank=1,
        master_addr=master_addr,
        master_port=29512,
        interface="eth0",
        address="10.0.0.2",
        nnodes=3,
        node_rank=1,
        nproc_per_node=2,
        global_rank=2,
        world_size=6,
        local_rank=0,
        local_world_size=2,
        members=(member(0), member(1), member(2)),
        leader_host="gpu0",
    )


def line(text: str) -> torchrun.TorchrunLine:
    found = torchrun.read(text.split())
    assert found is not None
    return found


def resolve(
    text: str,
    *,
    nnodes: tuple[int, int] | None = None,
    node_rank: int | None = None,
    nproc: str | None = None,
    env: dict[str, str] | None = None,
) -> Resolved:
    return torchrun.check(
        line(text), job="bert", nnodes=nnodes, node_rank=node_rank, nproc=nproc, env=env or {}
    )


@pytest.mark.parametrize(
    "front",
    [
        "torchrun",
        "/opt/venv/bin/torchrun",
        "python -m torch.distributed.run",
        "python3.12 -u -X dev -mtorch.distributed.run",
        "python3 -um torch.distributed.launch",
        "/usr/bin/python3 -W ignore /opt/venv/bin/torchrun",
    ],
)
def test_torchrun_as_the_command(front: str) -> None:
    found = line(f"{front} --nnodes 2 train.py --nnodes 9")
    assert found.direct
    assert found.nnodes == (2, 2)
    assert found.argv[found.script] == "train.py"


@pytest.mark.parametrize(
    "front",
    [
        "env OMP_NUM_THREADS=4 A= torchrun",
        "env -u HTTP_PROXY --chdir=/tmp -C /tmp -- A=1 torchrun",
        "uv run torchrun",
        "uv --quiet run --with numpy --extra=gpu --no-sync -p 3.12 -- torchrun",
        "uv run -m torch.distributed.run",
        "uv run python -m torch.distributed.run",
        "poetry -C proj run torchrun",
        "nice -n 10 nohup setsid -w torchrun",
        "nice -10 torchrun",
        "stdbuf -oL -e 0 torchrun",
        "taskset -c 0-3 torchrun",
        "numactl --cpunodebind=0 -m 0 torchrun",
        "/usr/bin/time -v -o log torchrun",
        "timeout -k 5 --signal=INT 60 env -C /tmp python3 -m torch.distributed.run",
    ],
)
def test_torchrun_behind_other_commands(front: str) -> None:
    found = line(f"{front} --nnodes 2 train.py")
    assert not found.direct
    assert found.nnodes == (2, 2)
    assert torchrun.rewrite(found, config()) == list(found.argv)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "python train.py --nnodes 2 torchrun",
        "python -c torchrun",
        "python -m torchrun",
        "deepspeed train.py",
        "env A=1",
        "env -S torchrun train.py",
        "uv sync torchrun",
        "uv run -m pytest torchrun",
        "taskset -p 17 torchrun",
        "nohup",
        "mytorchrun train.py",
    ],
)
def test_what_is_not_torchrun(text: str) -> None:
    assert torchrun.read(text.split()) is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("torchrun", "no training script"),
        ("torchrun --nnodes 2", "no training script"),
        ("torchrun --nnodes", "wants a value"),
        ("torchrun --nnodes --role x train.py", "wants a value"),
        ("torchrun --nnode two train.py", "--nnode two"),
        ("torchrun --nnodes 4:2 train.py", "--nnodes 4:2"),
        ("torchrun --nnodes 0 train.py", "--nnodes 0"),
        ("torchrun --n 2 train.py", "--nnodes, --no-python, --node-rank, --nproc-per-node"),
        ("torchrun --gpus 2 train.py", "--gpus=VALUE"),
        ("torchrun --standalone=1 train.py", "takes no value"),
        ("torchrun --node-rank first train.py", "--node-rank first"),
        ("torchrun --help", "without mingle-wait"),
    ],
)
def test_what_torchrun_would_refuse_is_refused_at_once(text: str, word: str) -> None:
    with pytest.raises(BadInput) as refusal:
        torchrun.read(text.split())
    assert word in str(refusal.value)


def test_the_last_of_several_counts_and_all_go() -> None:
    found = line("torchrun --nnodes 2 --role x --nnodes=1:3 -- --odd.py --nnodes 7")
    assert found.nnodes == (1, 3)
    assert " ".join(torchrun.rewrite(found, config())) == (
        "torchrun --role x --nnodes=3 --node-rank=1 --nproc-per-node=2 "
        "--master-addr=10.0.0.1 --master-port=29512 -- --odd.py --nnodes 7"
    )


def test_nothing_needs_saying_twice() -> None:
    said = resolve("torchrun --nnodes 2:4 --nproc_per_node gpu --node_rank 1 train.py")
    assert said == Resolved((2, 4), "gpu", 1)
    assert resolve("torchrun train.py", nnodes=(2, 2)) == Resolved((2, 2), "1", None)
    assert resolve(
        "torchrun --nnodes 2 --nproc-per-node 04 train.py", nnodes=(2, 2), nproc="4", node_rank=0
    ) == Resolved((2, 2), "4", 0)


def test_torchruns_own_environment_gives_defaults_but_not_what_we_exported() -> None:
    env = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "cpu", "PET_NODE_RANK": "1"}
    assert resolve("torchrun train.py", env=env) == Resolved((2, 2), "cpu", 1)
    assert resolve("torchrun --nnodes 3 train.py", env=env).nnodes == (3, 3)
    stale = environment(config(), present={}).values
    assert resolve("torchrun train.py", nnodes=(2, 2), env=stale) == Resolved((2, 2), "1", None)
    with pytest.raises(BadInput, match="add --nnodes N"):
        resolve("torchrun train.py", env=stale)
    assert resolve("torchrun train.py", env=stale | {"PET_NNODES": "5"}).nnodes == (5, 5)


@pytest.mark.parametrize(
    ("text", "env", "words"),
    [
        ("torchrun train.py", {}, ["--nnodes N", "alone"]),
        ("torchrun --nnodes 2 --standalone train.py", {}, ["--standalone", "delete"]),
        ("torchrun --nnodes 2 --master_addr h train.py", {}, ["--master_addr h", "delete"]),
        ("torchrun --nnodes 2 --master-port=1 train.py", {}, ["--master-port=1", "delete"]),
        ("torchrun --nnodes 2 --rdzv-endpoint h train.py", {}, ["--rdzv-endpoint h", "delete"]),
        ("torchrun --nnodes 2 --rdzv-backend c10d train.py", {}, ["--rdzv-backend c10d"]),
        ("torchrun --nnodes 2 train.py", {"PET_STANDALONE": "1"}, ["unset PET_STANDALONE"]),
        ("torchrun --nnodes 2 train.py", {"PET_RDZV_BACKEND": "c10d"}, ["unset PET_RDZV_BACK"]),
        ("torchrun train.py", {"PET_NNODES": "x"}, ["PET_NNODES=x"]),
        ("env -i torchrun --nnodes 2 train.py", {}, ["env -i"]),
        ("env -u PET_NODE_RANK torchrun --nnodes 2 train.py", {}, ["env -u PET_NODE_RANK"]),
        ("env PET_MASTER_ADDR=h torchrun --nnodes 2 train.py", {}, ["PET_MASTER_ADDR=h"]),
        ("uv run torchrun --nnodes 2:4 train.py", {}, ["uv", "--nnodes 2:4", "mingle-wait"]),
    ],
)
def test_what_would_lead_torchrun_elsewhere(
    text: str, env: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(BadInput) as refusal:
        resolve(text, env=env)
    assert all(word in str(refusal.value) for word in ["job bert", *words])


@pytest.mark.parametrize("word", ["--rdzv-backend static", "--rdzv-conf timeout=9", "--rdzv-id 7"])
def test_what_may_stay(word: str) -> None:
    assert resolve(f"torchrun --nnodes 2 {word} train.py").nnodes == (2, 2)
    assert f" {word} " in " ".join(torchrun.rewrite(line(f"torchrun {word} t.py"), config()))


@pytest.mark.parametrize(
    ("text", "own", "words"),
    [
        ("--nnodes 2", {"nnodes": (3, 3)}, ["--nnodes 3", "--nnodes 2"]),
        ("--nnodes 1:4", {"nnodes": (4, 4)}, ["--nnodes 4", "--nnodes 1:4"]),
        ("--nnodes 2 --nproc-per-node gpu", {"nproc": "2"}, ["--nproc-per-node 2", "gpu"]),
        ("--nnodes 2 --node-rank 1", {"node_rank": 0}, ["--node-rank 0", "--node-rank 1"]),
    ],
)
def test_two_places_that_differ(text: str, own: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadInput) as refusal:
        resolve(f"torchrun {text} train.py", **own)
    assert all(word in str(refusal.value) for word in ["job bert", "delete one", *words])


# -- against the installed torch ------------------------------------------------------------------


def torchs_parser() -> Any:
    return pytest.importorskip("torch.distributed.run").get_args_parser()


@pytest.mark.torch
def test_our_table_is_the_installed_torchs() -> None:
    with_value: set[str] = set()
    without: set[str] = set()
    shorts: dict[str, str] = {}
    for action in torchs_parser()._actions:
        longs = {text[2:].replace("_", "-") for text in action.option_strings if text[1] == "-"}
        (without if action.nargs == 0 else with_value).update(longs)
        for text in action.option_strings:
            if text[1] != "-":
                shorts[text] = next(iter(longs))
    assert frozenset(with_value) == torchrun.WITH_VALUE
    assert frozenset(without) == torchrun.WITHOUT_VALUE
    assert shorts == torchrun.SHORT


FRAGMENTS = """
--nnodes 2 --nnodes=3 --nn --nproc-per-node --nproc_per_node=gpu --nproc-per cpu --node_rank
--node-r 1 -m --mod --no-python --run -r 3 -r=3 -mr3 -mr -t 0:1 -t2 --standalone --rdzv-id x
--max-restarts 4 --max_r=1 -- - -5 -1.5 train.py --lr --role --tee= a=b
"""
WORDS = st.sampled_from([*FRAGMENTS.split(), "", "a b", "-q b"])


@pytest.mark.torch
@settings(max_examples=400, deadline=None)
@given(words=st.lists(WORDS, max_size=7))
def test_whatever_torch_accepts_we_read_alike(words: list[str]) -> None:
    parser = torchs_parser()
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            args = parser.parse_args(words)
        except SystemExit:
            return
    try:
        found = torchrun.read(["torchrun", *words])
    except BadInput as refusal:
        # torch fails on these only later, when it uses them.
        assert "want a " in str(refusal)  # noqa: PT017 - not raised on every path
        return
    assert found is not None
    # argparse drops a "--" here or there, by its version.
    theirs = [args.training_script, *args.training_script_args]
    ours = found.argv[found.script :]
    assert [word for word in theirs if word != "--"] == [word for word in ours if word != "--"]
    flag = found.flag("nnodes")
    assert args.nnodes == (flag.value if flag else "1:1")
    assert args.nproc_per_node == ("1" if found.nproc is None else found.nproc)
    assert args.node_rank == (found.node_rank or 0)
    assert args.max_restarts == (found.max_restarts or 0)
    assert args.standalone == (found.flag("standalone") is not None)


@pytest.mark.torch
@pytest.mark.parametrize("master", ["10.0.0.1", "fd00::1"])
def test_torch_takes_the_rewritten_line_as_meant(master: str) -> None:
    run = pytest.importorskip("torch.distributed.run")
    utils = pytest.importorskip("torch.distributed.elastic.rendezvous.utils")
    found = line("torchrun --nnodes 1:8 --nproc-per-node auto -m pkg.train --lr 1")
    args = run.parse_args(torchrun.rewrite(found, config(master))[1:])
    launch, _, cmd_args = run.config_from_args(args)
    assert (launch.min_nodes, launch.max_nodes, launch.nproc_per_node) == (3, 3, 2)
    assert (launch.rdzv_backend, launch.rdzv_configs["rank"]) == ("static", 1)
    assert utils.parse_rendezvous_endpoint(launch.rdzv_endpoint, -1) == (master, 29512)
    assert cmd_args[-4:] == ["-m", "pkg.train", "--lr", "1"]


def test_a_link_local_address_is_refused_before_torchrun_chokes_on_it() -> None:
    with pytest.raises(BadInput, match=r"job bert: .*fe80::1%eth0.*torchrun takes none.*--world-s"):
        torchrun.rewrite(line("torchrun t.py"), config("fe80::1%eth0"))
