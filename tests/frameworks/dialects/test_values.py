"""What each dialect says of a sealed config."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator, Mapping

import msgspec
import pytest

from mingled.core.config import Config
from mingled.core.words import Form
from mingled.frameworks.dialects import jax, pytorch, sing, tensorflow
from mingled.frameworks.dialects.hostfiles import hostfile
from mingled.frameworks.dialects.model import Dialect, Given
from mingled.frameworks.dialects.registry import DIALECTS
from tests.frameworks.samples import launched, plain, sealed


def said(dialect: Dialect, config: Config, **wishes: str) -> dict[str, str]:
    given = Given(wishes=wishes, sing_suffix="local", hostfile="/run/hosts")
    return dialect.values(config, given)


ADDRESS = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29512"}
ONE_OF_FOUR = {
    **ADDRESS,
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "NODE_RANK": "0",
}


def test_torch_in_each_form() -> None:
    assert said(pytorch.TORCH, sealed()) == ONE_OF_FOUR
    assert said(pytorch.TORCH, launched(1, 1)) == {
        **ADDRESS,
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "NODE_RANK": "1",
    }
    assert said(pytorch.TORCH, plain()) == {**ADDRESS, "RANK": "1"}


def test_torchrun() -> None:
    assert said(pytorch.TORCHRUN, launched(2, 3)) == {
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "10.0.0.1",
        "PET_MASTER_PORT": "29512",
        "PET_NPROC_PER_NODE": "3",
    }


def test_accelerate_is_torch() -> None:
    assert said(pytorch.ACCELERATE, sealed()) == ONE_OF_FOUR


def test_lightning_starts_the_processes_of_a_launcher_itself() -> None:
    assert said(pytorch.LIGHTNING, sealed())["LOCAL_RANK"] == "1"
    assert said(pytorch.LIGHTNING, launched(2, 2)) == {**ADDRESS, "NODE_RANK": "1"}


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ((0, 0, 1, 1), ""),
        ((0, 1, 2), ""),
        ((0, 0, 1), "2 on gpu0, 1 on gpu1"),
        ((0, 1, 0, 1), "rank 1 is on gpu1"),
    ],
)
def test_lightning_counts_ranks_by_itself(nodes: tuple[int, ...], why: str) -> None:
    """As `node_rank * num_processes + local_rank` in its DDPStrategy; all nodes say the same."""
    check = pytorch.LIGHTNING.check
    assert check is not None
    (sentence,) = {check(sealed(nodes, rank=rank)) for rank in range(len(nodes))}
    assert why in (sentence or "")
    assert (sentence is None) == (why == "")


def test_jax() -> None:
    assert said(jax.JAX, sealed()) == {
        "JAX_COORDINATOR_ADDRESS": "10.0.0.1:29512",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "1",
        "JAX_LOCAL_DEVICE_IDS": "1",
    }
    one_each = said(jax.JAX, launched(1, 1))
    assert "JAX_LOCAL_DEVICE_IDS" not in one_each
    assert (one_each["JAX_NUM_PROCESSES"], one_each["JAX_PROCESS_ID"]) == ("2", "1")
    assert "JAX_NUM_PROCESSES" not in said(jax.JAX, plain())
    assert said(jax.JAX, sealed(six=True))["JAX_COORDINATOR_ADDRESS"] == "[fd00::1]:29512"


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "JAX_LOCAL_DEVICE_IDS"])
def test_jax_leaves_devices_to_a_user_who_has_divided_them(name: str) -> None:
    assert "JAX_LOCAL_DEVICE_IDS" not in said(jax.JAX, sealed(), **{name: "3"})


def test_tensorflow_gives_every_worker_a_port_of_its_own() -> None:
    for rank in range(4):
        config = said(tensorflow.TENSORFLOW, sealed(rank=rank))
        assert msgspec.json.decode(config["TF_CONFIG"]) == {
            "cluster": {
                "worker": ["10.0.0.1:29512", "10.0.0.1:29513", "10.0.0.2:29512", "10.0.0.2:29513"]
            },
            "task": {"type": "worker", "index": rank},
        }


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_tensorflow_looks_whether_its_own_port_is_free(busy: int) -> None:
    check = tensorflow.TENSORFLOW.check
    assert check is not None
    first, second = (
        msgspec.structs.replace(sealed(rank=rank), master_port=busy - 1) for rank in (0, 1)
    )
    assert f"port {busy}," in (check(second) or "")
    assert f"port {busy}," not in (check(first) or "")
    beyond = msgspec.structs.replace(sealed(rank=1), master_port=65_535)
    assert "no port" in (check(beyond) or "")


def test_sing() -> None:
    assert said(sing.SING, sealed()) == {
        "SING_RANK": "1",
        "SING_WORLD_SIZE": "4",
        "SING_JOB_NAME": "bert",
        "SING_HOSTNAME_SUFFIX": "local",
        "SING_MASTER_ADDR": "10.0.0.1",
        "SING_HOST_ADDR": "bert-1.local",
    }
    launchers = said(sing.SING, launched(4, 4))
    assert (launchers["SING_RANK"], launchers["SING_WORLD_SIZE"]) == ("1", "2")
    assert "SING_WORLD_SIZE" not in said(sing.SING, plain())


def test_a_hostfile_has_a_line_for_each_node() -> None:
    assert hostfile(launched(2, 3)) == "10.0.0.1 slots=2\n10.0.0.2 slots=3\n"
    assert hostfile(sealed((0, 1, 0))) == "10.0.0.1 slots=2\n10.0.0.2 slots=1\n"


def _configs() -> Mapping[Form, Config]:
    return {Form.LAUNCHER: launched(1, 1), Form.PROCESS: sealed(), Form.PLAIN: plain()}


@pytest.mark.parametrize("form", list(Form))
def test_dialects_that_share_a_variable_agree_on_it(form: Form) -> None:
    config = _configs()[form]
    fitting = [d for d in DIALECTS if form in d.forms]
    for one, other in itertools.combinations(fitting, 2):
        ours, theirs = said(one, config), said(other, config)
        shared = ours.keys() & theirs.keys()
        assert {n: ours[n] for n in shared} == {n: theirs[n] for n in shared}, (one, other)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: str(d.name))
def test_every_dialect_says_something_in_its_forms(dialect: Dialect) -> None:
    for form in dialect.forms:
        assert said(dialect, _configs()[form]) or dialect.text is not None
