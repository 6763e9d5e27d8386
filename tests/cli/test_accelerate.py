"""`accelerate launch` lines: read as accelerate reads them, checked, and completed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import pytest

from mingled.cli import accelerate, launchers
from mingled.cli.accelerate import AccelerateLine, File
from mingled.cli.resolved import Resolved
from mingled.core.config import Config, Member
from mingled.core.words import Form
from mingled.errors import BadInput
from tests.core.samples import CLAIM, NODE, WHO


def read(text: str) -> AccelerateLine:
    line = accelerate.read(text.split())
    assert line is not None
    return line


def check(
    text: str,
    *,
    nnodes: tuple[int, int] | None = (2, 2),
    node_rank: int | None = None,
    nproc: str | None = None,
    home: Path | None = None,
) -> Resolved:
    env = {"HF_HOME": str(home or "/nowhere")}
    line = read(text)
    return accelerate.check(
        line, job="bert", nnodes=nnodes, node_rank=node_rank, nproc=nproc, env=env
    )


def config(*nproc: int, address: str = "10.0.0.1") -> Config:
    """Sealed, for node 1 of as many machines."""
    members = tuple(
        Member(
            rank=rank,
            node_rank=rank,
            local_index=0,
            nproc=count,
            global_rank=0,
            host=f"gpu{rank + 1}",
            address=f"10.0.0.{rank + 1}",
            user="ann",
            node=NODE,
            participant=WHO,
        )
        for rank, count in enumerate(nproc)
    )
    return Config(
        job="bert",
        form=Form.LAUNCHER,
        round=1,
        claim=CLAIM,
        rank=1,
        master_addr=address,
        master_port=29_512,
        interface="eth0",
        address="10.0.0.2",
        nnodes=len(nproc),
        node_rank=1,
        nproc_per_node=nproc[0],
        global_rank=nproc[0],
        world_size=sum(nproc),
        local_rank=0,
        local_world_size=nproc[0],
        members=members,
        leader_host="gpu1",
    )


SEALED = (
    "--num_machines=2 --num_processes=2 --machine_rank=1 --main_process_ip=10.0.0.1 "
    "--main_process_port=29512 --same_network"
)


def with_file(folder: Path, text: str, name: str = "default_config.yaml") -> Path:
    """A Hugging Face folder with that configuration of accelerate's."""
    (folder / "accelerate").mkdir()
    (folder / "accelerate" / name).write_text(text)
    return folder


# ---------------------------------------------------------------- read


@pytest.mark.parametrize(
    "text",
    [
        "accelerate launch train.py",
        "/opt/venv/bin/accelerate launch train.py",
        "accelerate-launch train.py",
        "python -m accelerate.commands.launch train.py",
        "python3.12 -m accelerate.commands.accelerate_cli launch train.py",
        "env A=1 accelerate launch train.py",
        "uv run accelerate launch train.py",
        "accelerate launch -q --mixed_precision bf16 -- train.py --num_machines 9",
    ],
)
def test_a_launch_is_found(text: str) -> None:
    line = read(text)
    assert line.machines is line.processes is line.machine_rank is None
    assert "train.py" in line.argv[line.insert_at : line.insert_at + 2]
    assert launchers.read(text.split()) == line


@pytest.mark.parametrize(
    "text", ["accelerate config", "accelerate", "accelerate test", "echo accelerate launch a"]
)
def test_something_else(text: str) -> None:
    assert accelerate.read(text.split()) is None


def test_what_the_line_says() -> None:
    line = read("accelerate launch --num_machines 3 --num-processes=12 --machine_rank 0 train.py")
    assert (line.machines, line.processes, line.machine_rank) == (3, 12, 0)
    assert (line.nnodes, line.node_rank) == ((3, 3), 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("accelerate launch", "names no training script"),
        ("accelerate launch --help", "starts nothing"),
        ("accelerate launch --num_machines two train.py", "want a whole number"),
        ("accelerate launch --num_processes 0 train.py", "want 1 or more"),
        ("accelerate launch --num_mach 2 --main_process_p 1 --nope train.py", "has no flag --nope"),
        ("accelerate launch --main_process 1 train.py", "could mean --main-process-ip"),
        ("accelerate launch --quiet=yes train.py", "takes no value"),
        ("accelerate launch --num_machines", "wants a value"),
    ],
)
def test_what_accelerate_would_refuse(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        accelerate.read(text.split())


@pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed"
)
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # of what it imports
def test_its_flags_are_the_ones_that_we_know() -> None:
    from accelerate.commands.launch import launch_command_parser

    theirs: dict[str, bool] = {}
    for action in launch_command_parser()._actions:
        for text in action.option_strings:
            if text.startswith("--"):
                theirs[text[2:].replace("_", "-")] = action.nargs != 0
    ours = dict.fromkeys(accelerate.LAUNCH.with_value, True)
    ours |= dict.fromkeys(accelerate.LAUNCH.without_value, False)
    assert ours == theirs


# ---------------------------------------------------------------- checked


@pytest.mark.parametrize(
    ("text", "nnodes", "nproc", "found"),
    [
        ("accelerate launch a.py", (2, 2), None, ((2, 2), "1", None)),
        ("accelerate launch a.py", (2, 2), "gpu", ((2, 2), "gpu", None)),
        ("accelerate launch --num_machines 3 a.py", None, None, ((3, 3), "1", None)),
        ("accelerate launch --num_processes 8 a.py", (2, 2), None, ((2, 2), "4", None)),
        ("accelerate launch --machine_rank 1 a.py", (2, 4), "2", ((2, 4), "2", 1)),
        ("accelerate launch --rdzv_backend static a.py", (2, 2), None, ((2, 2), "1", None)),
    ],
)
def test_what_is_asked_for(
    text: str,
    nnodes: tuple[int, int] | None,
    nproc: str | None,
    found: tuple[tuple[int, int], str, int | None],
) -> None:
    assert check(text, nnodes=nnodes, nproc=nproc) == Resolved(*found)


@pytest.mark.parametrize(
    ("text", "nnodes", "says"),
    [
        ("accelerate launch a.py", None, "add --nnodes N to mingle-wait"),
        ("accelerate launch --num_machines 3 a.py", (2, 2), "says --nnodes 2, accelerate launch's"),
        ("accelerate launch --num_processes 5 a.py", (2, 2), "do not divide evenly among 2"),
        ("accelerate launch --num_processes 4 a.py", (2, 4), r"is open \(2:4\)"),
        ("accelerate launch --main_process_ip 10.0.0.1 a.py", (2, 2), "leads accelerate away"),
        ("accelerate launch --main_process_port 1 a.py", (2, 2), "leads accelerate away"),
        ("accelerate launch --rdzv_backend c10d a.py", (2, 2), "leads accelerate away"),
        ("accelerate launch --tpu a.py", (2, 2), "without mingle-wait"),
        ("accelerate launch --cpu a.py", (2, 2), r"write Accelerator\(cpu=True\)"),
        ("accelerate launch --config_file /nowhere/a.yaml a.py", (2, 2), "cannot be read"),
    ],
)
def test_what_cannot_work(text: str, nnodes: tuple[int, int] | None, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        check(text, nnodes=nnodes)
    assert "job bert" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("num_machines: 2\nnum_processes: 8\n", "4"),
        ("num_processes: 4\n", "4"),
        ("num_machines: 3\nnum_processes: 8\n", "1"),
        ("num_processes: -1\n", "1"),
        ("num_processes: {\n", "1"),
    ],
)
def test_the_processes_of_the_configuration_file(tmp_path: Path, text: str, share: str) -> None:
    home = with_file(tmp_path, text)
    assert check("accelerate launch a.py", home=home).nproc == share
    named = f"accelerate launch --config_file {home}/accelerate/default_config.yaml a.py"
    assert check(named).nproc == share
    assert check(named, nproc="3").nproc == "3"


def test_an_old_configuration_file(tmp_path: Path) -> None:
    home = with_file(tmp_path, '{"num_processes": 2}', "default_config.json")
    assert check("accelerate launch a.py", home=home).nproc == "2"


def test_a_file_for_somebody_elses_machines(tmp_path: Path) -> None:
    home = with_file(tmp_path, "compute_environment: AMAZON_SAGEMAKER\n")
    with pytest.raises(BadInput, match="AMAZON_SAGEMAKER, whose machines are not"):
        check("accelerate launch a.py", home=home)


def test_nothing_but_scalars_is_taken_from_a_file(tmp_path: Path) -> None:
    text = "distributed_type: 'FSDP'  # ours\nfsdp_config:\n  num_machines: 7\n"
    path = with_file(tmp_path, text) / "accelerate" / "default_config.yaml"
    found = File.of(read(f"accelerate launch --config_file {path} a.py"), "bert", {})
    assert found == File(str(path), None, None, "FSDP", "")


# ---------------------------------------------------------------- completed


@pytest.mark.parametrize(
    ("text", "begins", "ends"),
    [
        ("accelerate launch a.py --x", "accelerate launch --multi_gpu", "a.py --x"),
        (
            "accelerate launch --num_machines 2 --machine_rank 1 --same_network -m a",
            "accelerate launch -m --multi_gpu",
            "a",
        ),
        ("env A=1 accelerate launch -- a.py", "env A=1 accelerate launch --multi_gpu", "-- a.py"),
        ("accelerate launch --use_fsdp a.py", "accelerate launch --use_fsdp", "a.py"),
        ("accelerate launch --multi_gpu a.py", "accelerate launch --multi_gpu", "a.py"),
    ],
)
def test_the_sealed_values_become_flags(text: str, begins: str, ends: str) -> None:
    line = accelerate.rewrite(read(text), config(1, 1), {"HF_HOME": "/nowhere"})
    assert " ".join(line) == f"{begins} {SEALED} {ends}"


@pytest.mark.parametrize(
    ("kind", "inserted"), [("FSDP", False), ("MULTI_GPU", False), ("NO", True), ("MULTI_CPU", True)]
)
def test_a_file_that_starts_several_is_believed(tmp_path: Path, kind: str, inserted: bool) -> None:
    home = with_file(tmp_path, f"distributed_type: {kind}\n")
    line = accelerate.rewrite(read("accelerate launch a.py"), config(2, 2), {"HF_HOME": str(home)})
    assert ("--multi_gpu" in line) == inserted
    assert "--num_processes=4" in line


def test_one_process_needs_no_more() -> None:
    alone = msgspec.structs.replace(config(1), rank=0)
    line = accelerate.rewrite(read("accelerate launch a.py"), alone, {"HF_HOME": "/nowhere"})
    assert "--multi_gpu" not in line


def test_uneven_machines_are_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"gpu1 \(10\.0\.0\.1\) 2, gpu2 \(10\.0\.0\.2\) 1; give"):
        accelerate.rewrite(read("accelerate launch a.py"), config(2, 1), {"HF_HOME": "/nowhere"})


def test_an_address_with_a_scope_is_refused() -> None:
    sealed = config(1, 1, address="fe80::1%eth0")
    with pytest.raises(BadInput, match="link-local"):
        accelerate.rewrite(read("accelerate launch a.py"), sealed, {"HF_HOME": "/nowhere"})
