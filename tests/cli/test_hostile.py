"""Values from elsewhere at every way out: shells, files, JSON, terminals."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mingled import client
from mingled.cli import neighbors, nodes, shell, status
from mingled.cli.json_lines import json_text
from mingled.core import local
from mingled.core.codec import encode
from mingled.core.config import Config
from mingled.core.secrets import label_of
from mingled.core.words import Form, JobId, host_label
from mingled.doctor.here import Daemons
from mingled.doctor.nodes import Nodes
from mingled.errors import BadInput
from mingled.frameworks.dialects import hostfiles, registry
from mingled.frameworks.dialects.texts import docker, dotenv
from mingled.net.neighbors import Neighbor
from tests.core.samples import REPLIES
from tests.doctor.samples import SEEN

from .fake_daemon import config

SHELLS = [
    pytest.param(
        [name, *quiet], marks=pytest.mark.skipif(not shutil.which(name), reason=f"no {name}")
    )
    for name, *quiet in (["bash", "--norc"], ["dash"], ["zsh", "-f"])
]

PAINT = "\x1b[2J\x9b2J\r\n\u202egpu\u2066\u2028\x07\ufeff"

NASTY = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.text("'\"\\$`!(){};&|<>*?~#= /.-\n\x1b\u202eab", min_size=1, max_size=40),
    st.sampled_from(
        [
            *("$(touch RAN)", "`touch RAN`", "';touch RAN;'", "\n touch RAN\n", "|touch RAN", "-n"),
            *("../../etc/passwd", "..", ".", "/", "~root", "a/b", "con\0x", "$IFS", "*", "%s%n"),
        ]
    ),
)


def job_id(text: str) -> JobId | None:
    try:
        return JobId(text)
    except BadInput:
        return None


JOBS = NASTY.map(job_id).filter(lambda job: job is not None)


def received(**values: Any) -> Config:
    """A config as a client has it: said by a daemon, over the socket."""
    line = encode(local.Ready(participant=config().claim, config=config(**values)))  # type: ignore[arg-type]
    ready = local.reply_decoder.decode(line)
    assert isinstance(ready, local.Ready)
    return ready.config


# ---------------------------------------------------------------- shells


@pytest.mark.parametrize("words", SHELLS, ids=lambda words: str(words[0]))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(job=JOBS, host=NASTY, interface=NASTY)
def test_fault_38_eval_runs_nothing_and_every_value_arrives(
    words: list[str], tmp_path: Path, job: JobId, host: str, interface: str
) -> None:
    """The text that mingle-wait prints, for a config in which everything is hostile that can be,
    in a folder where a command that ran would leave its file."""
    # What no environment can hold is refused when the config is made, by `Name`.
    members = tuple(msgspec.structs.replace(m, host=host, user=host) for m in config().members)
    got = received(job=job, interface=interface, leader_host=host, members=members)
    chosen = registry.Chosen(registry.chosen(["tensorflow", "jax"], "--for", "x"))
    values = chosen.environment(got, present={}, owner=os.getpid()).values
    assert values["MINGLE_JOB"] == job
    text = shell.assignments(values, ["STALE"], adopt=["true", f"/s#{job}"])
    done = subprocess.run(
        [*words, "-c", 'eval "$(printf %s "$TEXT")"; env -0'],
        env={"PATH": "/usr/bin:/bin", "TEXT": text, "LC_ALL": "C.UTF-8"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    there = dict(entry.partition("=")[::2] for entry in done.stdout.decode().split("\0"))
    assert {name: there.get(name) for name in values} == values
    assert list(tmp_path.iterdir()) == []


@given(job=JOBS, value=NASTY)
def test_fault_38_a_line_of_an_env_file_is_one_or_none(job: JobId, value: str) -> None:
    """dotenv and docker: a value that could begin another line is refused."""
    for syntax in (dotenv, docker):
        try:
            text = syntax({"MINGLE_JOB": job, "X": value})
        except BadInput as error:
            assert "--format json" in str(error)  # noqa: PT017 - either is right
            continue
        first, second, rest = text.split("\n")
        assert (first[:11], second[:2], rest) == ("MINGLE_JOB=", "X=", "")


# ---------------------------------------------------------------- files and names


@given(job=JOBS)
def test_fault_39_no_job_id_makes_a_path_or_a_dns_label(
    job: JobId, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.getbasetemp() / "run"
        folder.mkdir(mode=0o700, exist_ok=True)
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        asked: list[Path] = []

        def connect(path: Path, _patience_s: float) -> object:
            asked.append(path)
            return object()

        patch.setattr(client, "connect", connect)
        patch.setattr(client, "private_folder", lambda: folder)
        patch.setattr(client, "SYSTEM_SOCKET", folder / "none")
        client._private(job, 1.0)
        (path,) = asked
        assert path.parent == folder
        assert re.fullmatch(r"[0-9a-f]{24}\.sock", path.name)
        written = hostfiles.write(config(job=job), "10.0.0.1 slots=1\n", os.getpid())
        assert written.parent == folder
        assert re.fullmatch(r"\d+-\d+-[0-9a-f]{16}\.hosts", written.name)
        assert sorted(folder.iterdir()) == [written]
        written.unlink()
    assert re.fullmatch("[a-z2-7]{26}", label_of(job))
    # The one name that shows a job's on the network is asked for, and must be one.
    shape = {"form": Form.PROCESS, "size_min": 2, "size_max": 2}
    try:
        local.Join(job=job, named=True, **shape)  # type: ignore[arg-type]
    except BadInput:
        return
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", host_label(job, 1))


@pytest.mark.parametrize("text", ["a\0b", "\0", "a\nb", "a\x1b[2J", "a\u202eb", "\u2028", "\x9b"])
def test_fault_39_what_no_job_id_may_hold(text: str) -> None:
    with pytest.raises(BadInput, match=r"control character U\+") as error:
        JobId(text)
    assert str(error.value).isprintable()


# ---------------------------------------------------------------- terminals and JSON


@given(st.dictionaries(st.text(), st.text() | st.lists(st.text())))
def test_fault_38_json_says_the_same_and_paints_nothing(value: dict[str, Any]) -> None:
    text = json_text(value)
    assert text.isprintable()
    assert json.loads(text) == value
    assert msgspec.json.decode(text) == value


def test_json_of_what_was_decoded() -> None:
    """Its texts are types of their own."""
    for reply in REPLIES:
        decoded = local.reply_decoder.decode(encode(reply))
        assert json.loads(json_text([decoded])) == [json.loads(encode(reply))]


def test_fault_38_no_command_paints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever hosts, users, releases, graphics cards and interfaces are called."""
    presence = SEEN.presence
    assert presence is not None
    presence = msgspec.structs.replace(presence, release=PAINT, gpus=(PAINT,), jobs=1)
    seen = msgspec.structs.replace(SEEN, host=PAINT, presence=presence)
    unseen = msgspec.structs.replace(SEEN, host=PAINT, presence=None, why=PAINT)
    found = Nodes(seen=(seen, unseen), local=Daemons(), troubles=(PAINT,))

    async def survey(*_: object, **__: object) -> Nodes:
        return found

    monkeypatch.setattr(nodes, "survey", survey)
    neighbour = Neighbor(
        interface=PAINT, index=1, address="10.0.0.1", mac=PAINT, entry="dynamic", state="stale"
    )
    monkeypatch.setattr("mingled.net.neighbors.neighbors", lambda: (neighbour,))
    (report,) = [reply for reply in REPLIES if isinstance(reply, local.Report)]
    painted = msgspec.structs.replace(report, host=PAINT, discovery=(PAINT,))
    monkeypatch.setattr(status, "reports", lambda: [painted])
    for command in (nodes.command, neighbors.command, status.status):
        for words in ([], ["--json"]):
            said = CliRunner().invoke(command, words)
            assert said.exit_code == 0, said.output
            assert "gpu" in said.output
            assert all(line.isprintable() for line in said.output.split("\n")), said.output
            if words:
                assert PAINT in json.dumps(json.loads(said.stdout), ensure_ascii=False).replace(
                    json.dumps(PAINT, ensure_ascii=False)[1:-1], PAINT
                )
