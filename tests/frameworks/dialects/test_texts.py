"""Texts that no shell evaluates, read as their readers do."""

from __future__ import annotations

import subprocess

import msgspec
import pytest

from mingled.errors import BadInput
from mingled.frameworks.dialects.texts import docker, dotenv, json
from mingled.frameworks.environment import exported

VALUES = {
    "MASTER_ADDR": "10.0.0.1",
    "NCCL_SOCKET_IFNAME": "=eth0",
    "MINGLE_JOB": "my job #3",
    "TF_CONFIG": '{"task":{"type":"worker"}}',
}
ALL = {**VALUES, "MINGLE_EXPORTED": exported(VALUES)}


def test_json() -> None:
    assert msgspec.json.decode(json(ALL)) == ALL


def test_dotenv_is_read_by_a_shell_as_well() -> None:
    script = 'set -a; eval "$TEXT"; env -0'
    done = subprocess.run(
        ["sh", "-c", script], env={"TEXT": dotenv(ALL)}, capture_output=True, text=True, check=True
    )
    got = dict(entry.partition("=")[::2] for entry in done.stdout.split("\0"))
    assert {name: got.get(name) for name in ALL} == ALL


def test_docker_takes_each_line_as_it_is() -> None:
    """docker/cli `opts/file.go`: the name ends at the first `=`, the value with the line."""
    lines = docker(ALL).splitlines()
    assert dict(line.partition("=")[::2] for line in lines) == ALL
    assert not any(line.startswith(("#", " ")) for line in lines)


@pytest.mark.parametrize("value", ["it's", "a$b", "a\nb", "c:\\\\d", "end\\"])
def test_dotenv_refuses_what_its_readers_read_differently(value: str) -> None:
    with pytest.raises(BadInput, match=r"MINGLE_JOB=.*dotenv cannot carry"):
        dotenv({"MINGLE_JOB": value})


@pytest.mark.parametrize("value", ["a\nb", "a\r", "a\0"])
def test_docker_refuses_what_ends_a_line(value: str) -> None:
    with pytest.raises(BadInput, match=r"MINGLE_JOB=.*docker cannot carry"):
        docker({"MINGLE_JOB": value})
    assert docker({"MINGLE_JOB": "it's $5"}) == "MINGLE_JOB=it's $5\n"
