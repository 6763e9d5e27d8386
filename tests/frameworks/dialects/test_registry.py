"""Which dialects may be chosen, for which joins, and what comes of it for an environment."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mingled.core.local import Join
from mingled.core.words import Form, JobId
from mingled.errors import BadInput
from mingled.frameworks.dialects import sing
from mingled.frameworks.dialects.registry import SPOKEN, Chosen, chosen
from mingled.frameworks.environment import defaults
from tests.frameworks.samples import launched, sealed


def join(form: Form = Form.PROCESS, size: int = 4, **changes: Any) -> Join:
    values: dict[str, Any] = {"job": JobId("bert"), "form": form, "size_min": size}
    return Join(**(values | {"size_max": size} | changes))


def pick(*names: str, suffix: str = "local") -> Chosen:
    return Chosen(chosen(names, "--for", "bert"), suffix)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where hostfiles go."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "mingled"


def test_names_with_commas_once_each() -> None:
    assert [d.name for d in pick("jax,sing", "jax").dialects] == ["jax", "sing"]


@pytest.mark.parametrize(
    ("name", "why"),
    [("horovod", "is none it knows"), ("docker", "is a text to print"), (",", "names nothing")],
)
def test_what_is_no_name_hears_the_names(name: str, why: str) -> None:
    with pytest.raises(BadInput) as caught:
        pick(name)
    assert why in str(caught.value)
    assert ", ".join(SPOKEN) in str(caught.value)


PLAIN: dict[str, Any] = {"form": Form.PLAIN, "size": 0, "rank": 1}
LAUNCHER: dict[str, Any] = {"form": Form.LAUNCHER, "nproc": 2}


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("tensorflow", PLAIN, "add --world-size W"),
        ("accelerate", PLAIN, "is for one launcher per node (--nnodes) or single processes"),
        ("deepspeed", PLAIN, "this is a rank without a size"),
        ("torchrun", {}, "is for one launcher per node (--nnodes), and this is single processes"),
        ("jax", LAUNCHER, "--nproc-per-node 2 is for a launcher"),
        ("tensorflow", LAUNCHER, "--nproc-per-node 2 is for a launcher"),
        ("sing", {"job": JobId("it's")}, "it's-3 is none"),
        ("sing", {"job": JobId("b" * 62)}, "at most 61 characters"),
    ],
)
def test_what_cannot_be_served_is_refused(name: str, shape: dict[str, Any], why: str) -> None:
    request = join(**shape)
    with pytest.raises(BadInput) as caught:
        pick(name).refuse(request)
    assert str(caught.value).startswith(f"job {request.job}: {name} ")
    assert why in str(caught.value)


def test_what_can_be_served_is_not() -> None:
    pick(*[name for name in SPOKEN if name != "torchrun"]).refuse(join())
    pick("torch", "torchrun", "jax").refuse(join(Form.LAUNCHER))
    pick("torchrun", "deepspeed", "openmpi", "lightning", "sing").refuse(join(**LAUNCHER))
    pick("sing").refuse(join(job=JobId("b" * 61)))


def test_variables_stand_beside_the_usual_ones_and_are_recorded() -> None:
    present = {"TF_CONFIG": "{}", "SING_RANK": "7", "HOME": "/root"}
    picked = pick("sing", "jax", suffix="team.example.org")
    changes = picked.environment(sealed(), present=present, owner=os.getpid())
    assert changes.values["MASTER_ADDR"] == "10.0.0.1"
    assert changes.values["JAX_PROCESS_ID"] == "1"
    assert changes.values["SING_HOST_ADDR"] == "bert-1.team.example.org"
    assert changes.replaced == [("SING_RANK", "7", "1")]
    after = changes.merged(present)
    assert defaults(after) == {"TF_CONFIG": "{}", "HOME": "/root"}
    # The next job in the same shell, without them.
    later = Chosen().environment(sealed(), present=after, owner=os.getpid())
    assert "JAX_PROCESS_ID" in later.unset
    assert "JAX_PROCESS_ID" not in later.merged(after)


def test_a_round_that_does_not_suit_is_said() -> None:
    with pytest.raises(BadInput, match="job bert: lightning wants the same number of processes"):
        pick("lightning").environment(sealed((0, 0, 1)), present={}, owner=os.getpid())


def test_a_hostfile_is_private_and_goes_after_its_owner(folder: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    picked = pick("openmpi", "deepspeed")
    first = picked.environment(launched(2, 2), present={}, owner=ended.pid).values
    path = Path(first["MINGLE_HOSTFILE"])
    assert path.read_text() == "10.0.0.1 slots=2\n10.0.0.2 slots=2\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.parent == folder
    assert first["PRTE_MCA_prte_default_hostfile"] == str(path)
    assert first["OMPI_MCA_orte_default_hostfile"] == str(path)
    second = picked.environment(launched(2, 2), present={}, owner=os.getpid()).values
    assert list(folder.iterdir()) == [Path(second["MINGLE_HOSTFILE"])]


def test_link_local_addresses_are_in_no_hostfile(folder: Path) -> None:
    config = sealed()
    linked = tuple(msgspec.structs.replace(m, address="fe80::1%eth0") for m in config.members)
    with pytest.raises(BadInput, match="link-local"):
        pick("openmpi").environment(
            msgspec.structs.replace(config, members=linked), present={}, owner=os.getpid()
        )


@pytest.mark.parametrize(
    ("flag", "env", "suffix"),
    [(None, {}, "local"), (None, {"SING_HOSTNAME_SUFFIX": "a.b"}, "a.b"), ("c", {}, "c")],
)
def test_the_suffix_of_sing(flag: str | None, env: dict[str, str], suffix: str) -> None:
    assert sing.suffix_of(flag, env, "bert") == suffix


@pytest.mark.parametrize("flag", ["", ".", "a b", "-x", "a..b", "a" * 64])
def test_a_suffix_that_is_no_domain(flag: str) -> None:
    with pytest.raises(BadInput, match=r"job bert: --sing-suffix .* is no domain"):
        sing.suffix_of(flag, {}, "bert")


def test_names_are_published_for_local_alone() -> None:
    assert pick("sing").publishes
    assert not pick("sing", suffix="example.org").publishes
    assert not pick("jax").publishes
