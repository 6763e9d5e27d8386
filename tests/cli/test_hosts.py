"""`mingle hosts`: the files, from daemons made up."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from mingled.cli import hosts
from mingled.cli.hosts import Host, chosen, written
from mingled.core.secrets import label_of
from mingled.core.words import JobId
from mingled.doctor.here import Daemons
from mingled.doctor.nodes import Nodes, Seen
from mingled.errors import BadInput
from tests.doctor.samples import PRESENCE, SEEN

BERT = JobId("bert")
GPU1 = Host(name="gpu1", address="10.0.0.1", slots=8)
GPU2 = Host(name="gpu2", address="fd00::2", slots=1)


def found(*seen: Seen) -> Nodes:
    return Nodes(seen=seen, local=Daemons(), troubles=())


def named(host: str, *addresses: str) -> Seen:
    return msgspec.structs.replace(SEEN, host=host, addresses=addresses or ("10.0.0.2",))


def test_slots_are_gpus_or_what_is_asked_for() -> None:
    (host,) = chosen(found(SEEN), None, None)
    assert host == Host(name="gpu2", address="10.0.0.2", slots=8)
    (host,) = chosen(found(SEEN), None, 3)
    assert host.slots == 3
    bare = msgspec.structs.replace(SEEN, presence=msgspec.structs.replace(PRESENCE, gpus=()))
    (host,) = chosen(found(bare), None, None)
    assert host.slots == 1


def test_each_machine_once_and_only_those_of_the_job() -> None:
    assert len(chosen(found(SEEN, SEEN), None, None)) == 1
    assert chosen(found(SEEN), BERT, None) == []
    labelled = msgspec.structs.replace(PRESENCE, labels=(label_of(BERT),))
    assert chosen(found(msgspec.structs.replace(SEEN, presence=labelled)), BERT, None)
    assert chosen(found(msgspec.structs.replace(SEEN, presence=None)), None, None) == []


def test_addresses_that_mean_nothing_elsewhere_are_left_out() -> None:
    (host,) = chosen(found(named("gpu2", "fe80::1%eth0", "127.0.0.1", "10.0.0.2")), None, None)
    assert host.address == "10.0.0.2"
    assert chosen(found(named("gpu2", "fe80::1%eth0")), None, None) == []


@pytest.mark.parametrize("kind", ["openmpi", "deepspeed"])
def test_hostfiles(kind: hosts.Format) -> None:
    assert written([GPU1, GPU2], kind) == "10.0.0.1 slots=8\nfd00::2 slots=1\n"


def test_ssh(tmp_path: Path) -> None:
    text = written([GPU1, GPU2], "ssh", user="ann")
    assert text == (
        "Host gpu1\n    HostName 10.0.0.1\n    User ann\n"
        "\n"
        "Host gpu2\n    HostName fd00::2\n    User ann\n"
    )
    if shutil.which("ssh"):
        file = tmp_path / "config"
        file.write_text(text)
        words = ["ssh", "-G", "-F", str(file), "gpu2"]
        read = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        assert "hostname fd00::2\n" in read


def test_two_hosts_of_one_name_are_called_by_their_addresses() -> None:
    twin = msgspec.structs.replace(GPU1, address="10.0.0.9")
    assert "Host 10.0.0.1\n" in written([GPU1, twin], "ssh")
    assert "Host 10.0.0.9\n" in written([GPU1, twin], "ssh")


@pytest.mark.parametrize(
    "evil",
    [
        "a\nHost *",
        "*",
        "!gpu1",
        "$(reboot)",
        "a b",
        "-oProxyCommand=x",
        "gpu\x1b[2J",
        "",
        "a" * 300,
    ],
)
def test_a_name_that_is_none_is_never_written(evil: str) -> None:
    (host,) = chosen(found(named(evil)), None, None)
    assert host.name == ""
    assert written([host], "ssh") == "Host 10.0.0.2\n    HostName 10.0.0.2\n"
    with pytest.raises(BadInput, match=r"10\.0\.0\.2 has no host name"):
        written([host], "openmpi", names=True)


def test_an_address_that_is_none_is_never_written() -> None:
    assert chosen(found(named("gpu2", "10.0.0.2\nHost *", "$(x)")), None, None) == []


@pytest.mark.parametrize(
    "words",
    [
        "--format ssh --user a;b",
        "--format openmpi --user ann",
        "--format ssh --names",
        "--format ssh --within never",
    ],
)
def test_what_cannot_be(words: str) -> None:
    assert isinstance(CliRunner().invoke(hosts.command, words.split()).exception, BadInput)
