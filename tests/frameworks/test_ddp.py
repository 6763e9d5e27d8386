"""`mingled.join` without a daemon: what it asks for, and what it makes of the answer.

With real daemons: `tests/test_client.py`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

import mingled
from mingled import client
from mingled.core import local
from mingled.core.config import Config
from mingled.core.words import Form, ParticipantId
from mingled.errors import BadInput
from mingled.frameworks.environment import EXPORTED
from tests.core.samples import CONFIG, WHO
from tests.frameworks.samples import sealed
from tests.schedulers import MPIRUN, STEP, TASKS


class FakeLease:
    """A lease of nobody's, that remembers how it ended."""

    def __init__(self, join: local.Join, config: Config, participant: ParticipantId) -> None:
        self.join = join
        self.config = config
        self.participant = participant
        self.connection = self
        self.found_s = self.waited_s = 0.5
        self.closed = False
        self.ends: list[tuple[bool, str]] = []

    def leave(self, *, lost: bool = False, reason: str = "") -> None:
        self.ends.append((lost, reason))

    def close(self) -> None:
        self.closed = True


class FakeDaemon:
    """Grants every join; `notices` are told first."""

    def __init__(self) -> None:
        self.config = CONFIG
        self.notices: list[local.Local] = []
        self.requests: list[local.Join] = []
        self.leases: list[FakeLease] = []

    def join(
        self,
        request: local.Join,
        told: client.Told,
        open_store: client.OpenStore | None = None,
    ) -> client.Lease:
        self.requests.append(request)
        for notice in self.notices:
            told(notice)
        participant = ParticipantId(f"{len(self.leases):032x}")
        config = msgspec.structs.replace(self.config, job=request.job)
        self.leases.append(FakeLease(request, config, participant))
        return cast(client.Lease, self.leases[-1])


@pytest.fixture
def daemon(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    fake = FakeDaemon()
    monkeypatch.setattr(client, "join", fake.join)
    return fake


@pytest.mark.parametrize(
    "arguments",
    [
        {"world_size": "4"},
        {"rank": 0.0},
        {"nnodes": 2, "timeout": "1s"},
        {"nnodes": [2]},
        {"rank": True},
        {"nnodes": 2, "last_call": "3s"},
        {"nnodes": 2, "wait": 1},
        {"nnodes": 2, "any_user": None},
        {"nnodes": 2, "store_interface_only": "yes"},
    ],
)
def test_a_wrong_type_is_named(daemon: FakeDaemon, arguments: dict[str, Any]) -> None:
    (wrong,) = [name for name, value in arguments.items() if value != 2]
    with pytest.raises(BadInput, match=rf"job bert: mingled.join\({wrong}="):
        mingled.join("bert", **arguments)
    assert daemon.requests == []


def test_a_door_is_closed_only_by_who_opens_it(daemon: FakeDaemon) -> None:
    """torch opens its own store on all addresses: nobody is to believe otherwise."""
    with pytest.raises(BadInput, match=r"job bert: .*mingled\.torch\.init_process_group"):
        mingled.join("bert", world_size=1, store_interface_only=True)
    assert daemon.requests == []
    options: dict[str, Any] = {"world_size": 1, "open_store": lambda address: 29500}
    mingled.join("bert", **options, store_interface_only=True).leave()
    mingled.join("bert", **options).leave()
    assert [request.store_interface_only for request in daemon.requests] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "form", "asked"),
    [
        ({"nnodes": 4}, Form.LAUNCHER, {"size_min": 4, "size_max": 4}),
        ({"nnodes": "3:4", "node_rank": 3}, Form.LAUNCHER, {"size_min": 3, "rank": 3}),
        ({"nnodes": 2, "nproc_per_node": "8"}, Form.LAUNCHER, {"nproc": 8}),
        ({"world_size": 8}, Form.PROCESS, {"size_min": 8, "size_max": 8}),
        ({"world_size": 8, "rank": 0}, Form.PROCESS, {"rank": 0}),
        ({"rank": 3}, Form.PLAIN, {"rank": 3, "size_min": 0, "size_max": 0}),
        ({"nnodes": 4}, Form.LAUNCHER, {"last_call_s": None, "wait": True, "any_user": False}),
        ({"nnodes": "3:4", "last_call": 0.5}, Form.LAUNCHER, {"last_call_s": 0.5}),
        ({"rank": 3, "wait": False, "any_user": True}, Form.PLAIN, {"wait": False}),
        ({"rank": 3, "any_user": True}, Form.PLAIN, {"any_user": True}),
    ],
)
def test_what_is_asked(
    daemon: FakeDaemon, arguments: dict[str, Any], form: Form, asked: dict[str, Any]
) -> None:
    with mingled.join("bert", **arguments, timeout=None):
        pass
    (request,) = daemon.requests
    assert (request.job, request.form, request.timeout_s) == ("bert", form, None)
    assert not request.adopt
    said = msgspec.structs.asdict(request)
    assert said | asked == said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"nnodes": 2, "last_call": 3}, "leave last_call out, or give a range"),
        ({"rank": 0, "last_call": 3}, "leave last_call out, or give a range"),
        ({"nnodes": "3:4", "last_call": -1}, "a last call of -1 s is not between 0 and 86400 s"),
    ],
)
def test_a_last_call_that_cannot_be(
    daemon: FakeDaemon, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInput, match=f"job bert: .*{sentence}"):
        mingled.join("bert", **arguments)
    assert daemon.requests == []


def test_a_store_of_ones_own_needs_a_size(daemon: FakeDaemon) -> None:
    with pytest.raises(BadInput, match="job bert: how many processes are there to be"):
        mingled.join("bert", rank=0, open_store=len)
    mingled.join("bert", world_size=2, open_store=len).leave()
    mingled.join("bert", world_size=2).leave()
    assert [request.store for request in daemon.requests] == [True, False]


def test_a_range_that_lets_two_halves_start_is_warned_of(daemon: FakeDaemon) -> None:
    with pytest.warns(UserWarning, match=r"job bert: with 2:8 both halves .* is 5:8") as caught:
        mingled.join("bert", nnodes="2:8").leave()
    assert [warning.filename for warning in caught] == [__file__]


def test_the_timeout_is_torchs_own_unless_given(daemon: FakeDaemon) -> None:
    mingled.join("bert", rank=0).leave()
    mingled.join("bert", rank=0, timeout=1.5).leave()
    assert [request.timeout_s for request in daemon.requests] == [600.0, 1.5]


def test_how_the_block_ends_is_told(daemon: FakeDaemon) -> None:
    with mingled.join("bert", rank=0):
        pass
    with pytest.raises(KeyboardInterrupt), mingled.join("bert", rank=0):
        raise KeyboardInterrupt
    with mingled.join("bert", rank=0) as cfg:
        cfg.leave()
    ends = [lease.ends for lease in daemon.leases]
    assert ends == [[(False, "leave")], [(True, "KeyboardInterrupt")], [(False, "leave")]]


def test_a_second_join_takes_over_and_the_first_ends_nothing(daemon: FakeDaemon) -> None:
    other = mingled.join("other", rank=0)
    first = mingled.join("bert", rank=0)
    daemon.notices = [local.Notice(kind="warning", sentence="job bert: this replaces ...")]
    with pytest.warns(UserWarning, match="job bert: this replaces") as caught:
        second = mingled.join("bert", rank=0)
    assert caught[0].filename == __file__  # the user's own line is shown
    first.leave()
    second.leave()
    other.leave()
    assert [lease.closed for lease in daemon.leases] == [False, True, False]
    assert [len(lease.ends) for lease in daemon.leases] == [1, 0, 1]


def test_progress_is_logged_and_no_warning(
    daemon: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mingled")
    daemon.notices = [
        local.Progress(
            job="bert",
            state="leading",
            leader=None,
            here=1,
            size_min=2,
            size_max=2,
            present=(),
            missing=(),
        )
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mingled.join("bert", world_size=2).leave()
    assert "job bert: 1/2 here" in caplog.messages[0]
    assert "rank 0 is" in caplog.messages[1]


def test_the_config_as_attributes(daemon: FakeDaemon) -> None:
    daemon.config = msgspec.structs.replace(CONFIG, master_addr="fd00::1", address="fd00::2")
    with mingled.join("bert", nnodes=1) as cfg:
        assert cfg.init_method == "tcp://[fd00::1]:29512"
        assert (cfg.master_addr, cfg.master_port) == ("fd00::1", 29512)
        assert (cfg.address, cfg.interface) == ("fd00::2", "eth0")
        assert (cfg.rank, cfg.world_size, cfg.nproc_per_node) == (0, 8, 8)
        assert [member.participant for member in cfg.members] == [WHO]
        assert repr(cfg) == (
            "DdpConfig(job='bert', rank=0, world_size=8, master=fd00::1:29512, interface='eth0')"
        )
        assert cfg.to_env()["MASTER_ADDR"] == "fd00::1"


def test_another_dialect_beside_the_usual_variables(daemon: FakeDaemon) -> None:
    daemon.config = sealed()
    with mingled.join("bert", world_size=4) as cfg:
        usual = cfg.to_env()
        for name, variable, value in (
            ("jax", "JAX_PROCESS_ID", "1"),
            ("sing", "SING_HOST_ADDR", "bert-1.local"),
        ):
            said = cfg.to_env(name)
            assert said[variable] == value
            assert usual.keys() < said.keys()
            assert {n: said[n] for n in usual if n != EXPORTED} == {
                n: usual[n] for n in usual if n != EXPORTED
            }


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("json", "is a text to print"),
        ("horovod", "to_env takes torch, torchrun, "),
        ("torchrun", "torchrun is for one launcher per node"),
        (3, 'want a name, as in "jax"'),
    ],
)
def test_a_dialect_that_cannot_be(daemon: FakeDaemon, name: Any, why: str) -> None:
    daemon.config = sealed()
    with mingled.join("bert", world_size=4) as cfg, pytest.raises(BadInput) as caught:
        cfg.to_env(name)
    assert str(caught.value).startswith("job bert: ")
    assert why in str(caught.value)


def test_a_hostfile_ends_with_its_process(runtime: Path) -> None:
    script = """
import mingled
with mingled.join("bert", world_size=1, timeout=60) as cfg:
    path = cfg.to_env("deepspeed")["MINGLE_HOSTFILE"]
    print(open(path).read(), path)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    line, path = done.stdout.splitlines()
    assert line == "127.0.0.1 slots=1"
    assert not Path(path.strip()).exists()


# ---------------------------------------------------------------- from a scheduler


@pytest.mark.parametrize(
    ("env", "arguments", "form", "asked"),
    [
        # The call is one process: without an argument of the launcher form, tasks count.
        (STEP, {}, Form.PROCESS, {"job": "slurm-1234.0", "size_max": 4, "rank": 2}),
        (TASKS, {}, Form.PROCESS, {"job": "slurm-1234.0", "size_max": 8, "rank": 5}),
        (STEP, {"job": "bert"}, Form.PROCESS, {"job": "bert", "size_max": 4, "rank": 2}),
        (STEP, {"nproc_per_node": 2}, Form.LAUNCHER, {"size_max": 4, "rank": 2, "nproc": 2}),
        (STEP, {"node_rank": 0}, Form.LAUNCHER, {"size_max": 4, "rank": 0}),
        (STEP, {"nnodes": "3:4"}, Form.LAUNCHER, {"size_min": 3, "size_max": 4, "rank": None}),
        (STEP, {"nnodes": 4}, Form.LAUNCHER, {"size_max": 4, "rank": 2}),
        (STEP, {"world_size": 3}, Form.PROCESS, {"size_max": 3, "rank": None}),
        (STEP, {"rank": 1}, Form.PLAIN, {"job": "slurm-1234.0", "size_max": 0, "rank": 1}),
        (TASKS | {"RANK": "0", "WORLD_SIZE": "8"}, {}, Form.PROCESS, {"size_max": 8, "rank": 0}),
        (MPIRUN, {}, Form.PROCESS, {"job": "openmpi-1900216321", "size_max": 2, "rank": 1}),
    ],
)
def test_what_a_scheduler_knows_need_not_be_given(
    daemon: FakeDaemon,
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    arguments: dict[str, Any],
    form: Form,
    asked: dict[str, Any],
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    mingled.join(**arguments).leave()
    (request,) = daemon.requests
    assert request.form == form
    said = msgspec.structs.asdict(request)
    assert said | asked == said


def test_what_comes_from_a_scheduler_is_logged(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mingled")
    for name, value in TASKS.items():
        monkeypatch.setenv(name, value)
    mingled.join().leave()
    assert caplog.messages[0] == (
        "job slurm-1234.0: from Slurm: job (SLURM_JOB_ID, SLURM_STEP_ID), world size 8 "
        "(SLURM_STEP_NUM_TASKS), rank 5 (SLURM_PROCID)"
    )
    caplog.clear()
    mingled.join("bert", world_size=8, rank=1).leave()
    assert "Slurm" not in caplog.text


@pytest.mark.parametrize(
    ("env", "arguments", "sentence"),
    [
        ({}, {}, "no job ID; give mingled.join one, the same on every machine"),
        ({}, {"job": 3}, "mingled.join(job=3)"),
        ({}, {"wait": 1}, "mingled.join(wait=1): want True or False"),
        ({"TORCHELASTIC_RUN_ID": "x"}, {}, "this is a worker of torchrun, which has its rank"),
        (STEP | {"TORCHELASTIC_RUN_ID": "x"}, {}, "mingle-wait -- torchrun ..."),
        (STEP | {"SLURM_PROCID": "x"}, {"job": "bert"}, "job bert: SLURM_PROCID='x' in the env"),
        ({"JOB_COMPLETION_INDEX": "0"}, {"job": "bert"}, "or add world_size=W"),
        ({"JOB_COMPLETION_INDEX": "0"}, {"job": "bert", "nproc_per_node": 1}, "or add nnodes=N"),
    ],
)
def test_what_a_scheduler_does_not_know_is_asked_for(
    daemon: FakeDaemon,
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    arguments: dict[str, Any],
    sentence: str,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=re.escape(sentence)) as caught:
        mingled.join(**arguments)
    assert "None" not in str(caught.value)
    assert daemon.requests == []
