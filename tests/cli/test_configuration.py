"""The configuration file: what it says is a default, and what is wrong in it is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mingled import keys
from mingled.cli.configuration import KEYS, as_defaults, forget_exported, load
from mingled.cli.mingled import _options, command
from mingled.errors import BadInput
from mingled.frameworks.environment import exported

WHOLE = """
# All that may stand there.
socket = "/run/other.sock"
link_port = 4000
broadcast_port = 4001
interface = ["eth0", "ib0"]
subnet = "10.0.0.0/24"
peers = "gpu1, head.lab.example"
discovery = ["peers"]
key_file = "/etc/mingled/other-key"
metrics_file = "/var/lib/m.prom"
log_level = "debug"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mingled.toml"


def test_every_key_is_a_default_of_an_option(file: Path) -> None:
    file.write_text(WHOLE)
    found = load(file, needed=True)
    assert found == {
        "socket_path": "/run/other.sock",
        "link_port": 4000,
        "broadcast_port": 4001,
        "interfaces": ("eth0", "ib0"),
        "subnets": ("10.0.0.0/24",),
        "peers": ("gpu1", "head.lab.example"),
        "discovery": ("peers",),
        "key_file": "/etc/mingled/other-key",
        "metrics_file": "/var/lib/m.prom",
        "log_level": "debug",
    }
    assert set(found) <= {parameter.name for parameter in command.params}
    assert len(found) == len(KEYS)


def test_flags_and_the_environment_beat_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('link_port = 4000\nlog_level = "debug"\nbroadcast_port = 4001\n')
    monkeypatch.setenv("MINGLE_CONFIG", str(file))
    monkeypatch.setenv("MINGLE_LOG_LEVEL", "error")
    context = command.make_context("mingled", ["--link-port", "5000"])
    read = {k: context.params[k] for k in ("link_port", "log_level", "broadcast_port")}
    assert read == {"link_port": 5000, "log_level": "error", "broadcast_port": 4001}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("\ninterfaces = 1", 2, "no key 'interfaces'; there are socket, link_port"),
        ("[network]\npeers = 1", 1, "no key 'network'"),
        ("link_port = 70000", 1, "not a port from 1 to 65535; want something like link_port = 29"),
        ("link_port = true", 1, "not a port"),
        ('# a\n\ninterface = ["eth0", 7]', 3, "not a list of texts; want something like"),
        ('peers = ["a;b"]', 1, "peer 'a;b' is no host"),
        ('subnet = "10.0.0.0/33"', 1, "subnet '10.0.0.0/33' is none"),
        ('discovery = ["smoke"]', 1, "smoke is no way of discovery; there are mdns, broadcast"),
        ('interface = ""', 1, "it is empty; delete the line"),
        ("discovery = []", 1, "nothing is no way of discovery"),
        ("log_level = 3", 1, "not a text"),
        (
            '\nlog_level = "loud"',
            2,
            "log_level = 'loud': no level of the log; there are debug, info, warning, error; want",
        ),
        ('log_level = "INFO"', 1, "there are debug, info"),
        ('metrics_file = "/m.txt"', 1, "does not end in .prom, and node_exporter reads no other"),
        ("link_port = ", None, "is no TOML"),
    ],
)
def test_what_is_wrong_is_named(file: Path, text: str, line: int | None, words: str) -> None:
    file.write_text(text)
    with pytest.raises(BadInput) as caught:
        load(file, needed=True)
    said = str(caught.value)
    assert said.startswith(f"{file}, line {line} on " if line else f"{file} on ")
    assert words in said


def test_a_flag_is_held_to_the_same(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv("MINGLE_CONFIG", str(file))
    file.touch()
    with pytest.raises(click.BadParameter, match=r"m\.txt: its name does not end in \.prom"):
        command.make_context("mingled", ["--metrics-file", "/m.txt"])
    monkeypatch.setenv("MINGLE_METRICS_FILE", "/m.txt")
    with pytest.raises(click.BadParameter, match=r"its name does not end in \.prom"):
        command.make_context("mingled", [])


def test_a_file_that_is_not_there(file: Path) -> None:
    assert load(file, needed=False) == {}
    with pytest.raises(BadInput, match="no such file; correct --config"):
        load(file, needed=True)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="cannot be read"):
        load(file, needed=False)


def test_a_default_file_that_this_user_may_not_read_is_left_out(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr("mingled.cli.configuration.PATH", file)
    context = command.make_context("mingled", ["--private"])
    assert context.default_map == {}
    said = f"mingled: goes on without {file}, which it may not read\n"
    assert capsys.readouterr() == ("", said)
    # The machine's daemon would go on without its key: at a reload as at a start.
    reason = "cannot be read: Permission denied; let .+ read it, or name another with --config"
    with pytest.raises(BadInput, match=reason):
        command.make_context("mingled", [])
    with pytest.raises(BadInput, match="cannot be read: Permission denied"):
        command.make_context("mingled", ["--private", "--config", str(file)])
    monkeypatch.setenv("MINGLE_CONFIG", str(file))
    with pytest.raises(BadInput, match="cannot be read: Permission denied"):
        command.make_context("mingled", [])


def test_a_users_own_daemon_has_the_users_own_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("MINGLE_KEY_FILE", raising=False)
    keys.write(tmp_path / "mingled/key", [bytes(32)], new=True)
    for uid, has in ((1_000, tmp_path / "mingled/key"), (0, None)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        monkeypatch.setattr(keys, "SYSTEM", tmp_path / "none")
        context = command.make_context("mingled", ["--config", os.devnull])
        assert _options(context).key_file == has


def test_the_default_file_is_read_where_none_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mingled.cli.configuration.PATH", file)
    context = command.make_context("mingled", ["--private"])
    as_defaults(context, command.params[0], None)
    assert context.default_map == {}
    file.write_text("link_port = 4000")
    as_defaults(context, command.params[0], None)
    assert context.default_map == {"link_port": 4000}


def test_what_an_earlier_job_exported_is_no_wish() -> None:
    ours = {"MINGLE_INTERFACE": "eth0", "MINGLE_JOB": "bert"}
    environ = {**ours, "MINGLE_EXPORTED": exported(ours), "MINGLE_PEERS": "gpu1", "PATH": "/bin"}
    forget_exported(environ)
    assert environ == {"MINGLE_PEERS": "gpu1", "PATH": "/bin"}
    chosen = {**ours, "MINGLE_INTERFACE": "eth1", "MINGLE_EXPORTED": exported(ours)}
    forget_exported(chosen)
    assert chosen == {"MINGLE_INTERFACE": "eth1"}


# ---------------------------------------------------------------- whatever stands in it

PLAIN = ["1", "0", "true", '""', '"a,b"', "[]", '["x", "y"]', "[[1]]", "nan", "1979-05-27"]
STRANGE = ["{a = 1}", "9" * 5_000, '"\\u0000"', '"""', "[" * 3_000, "{a=" * 3_000]
VALUES = st.sampled_from([*PLAIN, *STRANGE])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each writes it anew
@given(
    st.lists(
        st.builds("{} = {}\n".format, st.sampled_from([*KEYS, "nonsense"]), VALUES), max_size=3
    ),
    st.binary(max_size=30),
)
def test_whatever_stands_there_is_taken_or_bad_input(
    file: Path, lines: list[str], noise: bytes
) -> None:
    for text in ("".join(lines).encode(), noise, "".join(lines).encode() + noise):
        file.write_bytes(text)
        found = outcome(file)
        if isinstance(found, str):
            assert str(file) in found
        else:
            assert set(found) <= {parameter.name for parameter in command.params}


def outcome(file: Path) -> dict[str, Any] | str:
    try:
        return load(file, needed=True)
    except BadInput as error:
        return str(error)
