"""What torchrun's words become, and which of them are refused. With torch's own parameters:
`test_plugin.py`."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mingled.core.local import Join
from mingled.core.secrets import secret_of
from mingled.core.software import ITEMS
from mingled.core.words import Form
from mingled.errors import BadInput, NotPermitted
from mingled.frameworks.environment import EXPORTED, exported
from mingled.frameworks.parameters import OURS, TORCHS, join_of, remarks

TORCHRUN = ["/opt/venv/bin/torchrun", "--nnodes", "3:4", "train.py"]


@dataclass
class Parameters:
    """What `join_of` reads of torch's `RendezvousParameters`."""

    run_id: str = "bert"
    min_nodes: int = 4
    max_nodes: int = 4
    endpoint: str | None = ""
    local_addr: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


def join(*, conf: dict[str, Any] | None = None, **parameters: Any) -> Join:
    return join_of(cast(Any, Parameters(config=conf or {}, **parameters)))


@pytest.fixture(autouse=True)
def _nobody_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = ("INTERFACE", "SUBNET", "PEERS", "REQUIRE_SAME", "SECRET_FILE")
    for name in (*wishes, "EXPORTED", "STORE_INTERFACE_ONLY"):
        monkeypatch.delenv(f"MINGLE_{name}", raising=False)


# ---------------------------------------------------------------- what is asked for


def test_with_nothing_but_a_run_id_and_a_size() -> None:
    asked = join(conf={"timeout": 900})  # which torchrun itself puts there
    assert (asked.job, asked.form, asked.size_min, asked.size_max) == ("bert", Form.LAUNCHER, 4, 4)
    assert (asked.rank, asked.timeout_s, asked.last_call_s) == (None, 600.0, None)
    assert (asked.wait, asked.any_user, asked.stop_grace_s) == (True, False, 35.0)
    assert (asked.peers, asked.interfaces, asked.subnets, asked.require_same) == ((), (), (), ())
    assert asked.store
    assert asked.heartbeat_s == 1.0


def test_the_stores_door_may_be_closed_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not join().store_interface_only
    monkeypatch.setenv("MINGLE_STORE_INTERFACE_ONLY", "1")
    assert join().store_interface_only
    assert not join(conf={"store_interface_only": "false"}).store_interface_only
    monkeypatch.setenv("MINGLE_STORE_INTERFACE_ONLY", "yes")
    with pytest.raises(BadInput, match=r"job bert: MINGLE_STORE_INTERFACE_ONLY='yes' .* 1 or 0"):
        join()


@pytest.mark.parametrize(
    ("key", "value", "asked"),
    [
        ("rank", "3", {"rank": 3}),
        ("rank", 0, {"rank": 0}),  # LaunchConfig(rdzv_configs={"rank": 0})
        ("join_timeout", "1.5", {"timeout_s": 1.5}),
        ("last_call_timeout", "0.5", {"last_call_s": 0.5}),
        ("stop_grace", "0", {"stop_grace_s": 0.0}),
        ("interface", "eth1+10.0.0.7", {"interfaces": ("eth1", "10.0.0.7")}),
        ("subnet", "10.0.0.0/24", {"subnets": ("10.0.0.0/24",)}),
        ("peers", "gpu1+10.0.0.7:29490", {"peers": ("gpu1", "10.0.0.7:29490")}),
        ("require_same", "torch+git", {"require_same": ("torch", "git")}),
        ("any_user", "TRUE", {"any_user": True}),
        ("wait", "no", {"wait": False}),
        ("store_interface_only", "true", {"store_interface_only": True}),
        ("wait", False, {"wait": False}),
    ],
)
def test_each_key(key: str, value: object, asked: dict[str, Any]) -> None:
    said = msgspec.structs.asdict(join(conf={key: value}, min_nodes=3))
    assert said | asked == said
    assert said != msgspec.structs.asdict(join(min_nodes=3))


def test_the_secret_that_a_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_text("correct horse battery")
    secret = secret_of(b"correct horse battery")
    assert join(conf={"secret_file": str(path)}).secret == secret
    path.chmod(0o644)
    with pytest.raises(NotPermitted, match="lets others read"):
        join(conf={"secret_file": str(path)})


def test_every_key_is_tried_above() -> None:
    (mark,) = [m for m in test_each_key.pytestmark if m.name == "parametrize"]
    assert {key for key, _, _ in mark.args[1]} | {"secret_file"} == set(OURS)


def test_keys_of_torchs_own_backends_change_nothing() -> None:
    assert join(conf=dict.fromkeys(TORCHS, "7")) == join()


def test_with_one_size_there_is_no_last_call() -> None:
    assert join(conf={"last_call_timeout": "5"}).last_call_s is None
    assert join(min_nodes=3).last_call_s is None  # the daemon's own


def test_the_environment_speaks_where_the_command_line_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINGLE_INTERFACE", "eth1, eth2")
    monkeypatch.setenv("MINGLE_PEERS", "gpu1")
    monkeypatch.setenv("MINGLE_SUBNET", "10.0.0.0/24")
    monkeypatch.setenv("MINGLE_REQUIRE_SAME", "torch")
    asked = join()
    assert (asked.interfaces, asked.peers) == (("eth1", "eth2"), ("gpu1",))
    assert (asked.subnets, asked.require_same) == (("10.0.0.0/24",), ("torch",))
    assert join(conf={"interface": "lo"}).interfaces == ("lo",)


def test_what_an_earlier_round_exported_is_no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINGLE_INTERFACE", "eth1")
    monkeypatch.setenv(EXPORTED, exported({"MINGLE_INTERFACE": "eth1"}))
    assert join().interfaces == ()


# ---------------------------------------------------------------- --local-addr


def test_the_local_address_is_the_interface() -> None:
    assert join(local_addr="127.0.0.1").interfaces == ("127.0.0.1",)
    assert join(local_addr="::1").interfaces == ("::1",)
    assert "127.0.0.1" in join(local_addr="localhost").interfaces
    assert join(local_addr="127.0.0.1", conf={"interface": "eth1"}).interfaces == ("eth1",)


def test_a_local_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    sentence = (
        rf"job bert: --local-addr gpu9 is no address of {socket.gethostname()} and resolves to "
        r"none \(Name or service not known\); see mingle interfaces, or delete --local-addr"
    )
    with pytest.raises(BadInput, match=sentence):
        join(local_addr="gpu9")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("run_id", ["", "none"])
def test_a_run_id_is_needed(run_id: str) -> None:
    with pytest.raises(BadInput, match=r"needs a run id, the same on every machine .* --rdzv-id"):
        join(run_id=run_id)


def test_a_run_id_that_no_job_can_have() -> None:
    with pytest.raises(BadInput, match="job"):
        join(run_id="bert\x1b[2J")


@pytest.mark.parametrize("endpoint", ["gpu1:29400", " gpu1 "])
def test_an_endpoint_is_for_others(endpoint: str) -> None:
    sentence = rf"job bert: --rdzv-endpoint {endpoint.strip()} is for torch's own .* delete"
    with pytest.raises(BadInput, match=sentence):
        join(endpoint=endpoint)


@pytest.mark.parametrize("endpoint", ["", "  ", None])
def test_an_empty_endpoint_is_none(endpoint: str | None) -> None:
    assert join(endpoint=endpoint) == join()


def test_an_unknown_key_is_named_with_those_there_are() -> None:
    with pytest.raises(BadInput, match=r"job bert: --rdzv-conf last_cal=\.\.\. is not") as raised:
        join(conf={"timeout": 900, "last_cal": "3"})
    assert all(key in str(raised.value) for key in OURS)


@pytest.mark.parametrize(
    ("key", "value", "want"),
    [
        ("rank", "first", "want a whole number"),
        ("rank", "0.5", "want a whole number"),
        ("rank", [0], "want a whole number"),
        ("join_timeout", "1m", "want seconds, as in 60"),
        ("join_timeout", "-1", "want 0 to 86400 seconds"),
        ("join_timeout", "nan", "want 0 to 86400 seconds"),
        ("last_call_timeout", "inf", "want 0 to 86400 seconds"),
        ("stop_grace", "86401", "want 0 to 86400 seconds"),
        ("any_user", "maybe", "want true or false"),
        ("wait", "", "want true or false"),
        ("interface", "", "there is nothing in it; is a shell variable not set?"),
        ("peers", "+", "there is nothing in it"),
    ],
)
def test_a_value_that_cannot_be(key: str, value: object, want: str) -> None:
    with pytest.raises(BadInput) as raised:
        join(conf={key: value})
    assert str(raised.value).startswith(f"job bert: --rdzv-conf {key}={value}: {want}")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rank", "-1", "rank -1"),
        ("rank", "4", "rank 4"),
        ("subnet", "10.0.0.0/99", "10.0.0.0/99"),
        ("require_same", "torhc", "torhc"),
    ],
)
def test_a_value_that_the_daemon_would_refuse(key: str, value: str, words: str) -> None:
    with pytest.raises(BadInput, match=rf"job bert: .*{words}"):
        join(conf={key: value})


def test_what_can_be_required_is_said() -> None:
    with pytest.raises(BadInput) as raised:
        join(conf={"require_same": "torhc"})
    assert all(item in str(raised.value) for item in ITEMS)


def test_sizes_that_cannot_be() -> None:
    for low, high in ((4, 3), (0, 4)):
        with pytest.raises(BadInput, match="job bert: "):
            join(min_nodes=low, max_nodes=high)


# ---------------------------------------------------------------- what is said at the start


def test_nothing_is_said_of_what_is_right() -> None:
    assert remarks(join(), TORCHRUN, {}) == []
    assert remarks(join(min_nodes=3), [*TORCHRUN, "--max-restarts", "5"], {}) == []


def test_one_node_trains_alone() -> None:
    (remark,) = remarks(join(min_nodes=1, max_nodes=1), TORCHRUN, {})
    assert remark == "one node, which trains alone: add --nnodes N, the same on every machine"


@pytest.mark.parametrize(
    ("words", "environ", "silent"),
    [
        ((), {}, False),
        ((), {"PET_MAX_RESTARTS": "0"}, False),
        ((), {"PET_MAX_RESTARTS": "3"}, True),
        (("--max-restarts", "3"), {}, True),
        (("--max-restarts=3",), {}, True),
        (("--max_restarts=3",), {}, True),
    ],
)
def test_a_range_without_restarts(
    words: tuple[str, ...], environ: dict[str, str], silent: bool
) -> None:
    found = remarks(join(min_nodes=3), [*TORCHRUN[:1], *words, "train.py"], environ)
    said = [line for line in found if "3:4 nodes, but torchrun's --max-restarts is 0" in line]
    assert found == said
    assert bool(said) is not silent


def test_of_a_launcher_that_is_called_from_python_nothing_is_known() -> None:
    """`LaunchConfig(max_restarts=...)` is 3 unless given."""
    assert remarks(join(min_nodes=3), ["/home/ann/train.py"], {}) == []
    assert remarks(join(min_nodes=3), ["-c"], {}) == []


def test_a_range_that_lets_two_halves_start() -> None:
    restarts, halves = remarks(join(min_nodes=2), TORCHRUN, {})
    assert "--max-restarts 10" in restarts
    assert halves.startswith("with 2:4 both halves of a split network could start")


# ---------------------------------------------------------------- whatever is asked for

KEYS = st.sampled_from([*OURS, *TORCHS, "nonsense"])
WORDS = st.sampled_from(
    ["0", "1", "-1", "nan", "inf", "9" * 5_000, "true", "no", "", "+", "eth0+eth1", "torch"]
) | st.text(max_size=12)
SIZES = st.integers(-1, 4) | st.integers()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # it changes nothing here
@given(st.text(max_size=12), SIZES, SIZES, st.text(max_size=3), st.dictionaries(KEYS, WORDS))
def test_whatever_torchrun_says_is_a_join_or_bad_input(
    run_id: str, low: int, high: int, endpoint: str, conf: dict[str, Any]
) -> None:
    for asked in ({"run_id": run_id, "endpoint": endpoint}, {}):
        with contextlib.suppress(BadInput):
            found = join(conf=conf, min_nodes=low, max_nodes=high, **asked)
            assert 1 <= found.size_min <= found.size_max
            assert found.rank is None or 0 <= found.rank < found.size_max


@pytest.mark.parametrize("name", ["x" * 64, "a..b", "gpu1\0", "\ud800"])
def test_a_local_address_that_no_resolver_takes(name: str) -> None:
    with pytest.raises(BadInput, match="--local-addr"):
        join(local_addr=name)
