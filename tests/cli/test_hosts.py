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
from tests.doctor.samples import NIC, PRESENCE, SEEN

BERT = JobId("bert")
GPU1 = Host(name="gpu1", address="10.0.0.1", slots=8)
GPU2 = Host(name="gpu2", address="fd00::2", slots=1)


def found(*seen: Seen) -> Nodes:
    return Nodes(seen=seen, local=Daemons(), troubles=())


def named(host: str, *addresses: str) -> Seen:
    """As reached by the first of these; its own order is theirs."""
    addresses = addresses or ("10.0.0.2",)
    card = msgspec.structs.replace(
        PRESENCE.node, addresses=tuple(a.partition("%")[0] for a in addresses)
    )
    nics = tuple(
        msgspec.structs.replace(NIC, addresses=(f"{a.partition('%')[0]}/24",)) for a in addresses
    )
    presence = msgspec.structs.replace(PRESENCE, node=card, nics=nics)
    return msgspec.structs.replace(SEEN, host=host, addresses=addresses, presence=presence)


def reached_by(address: str, seen: Seen) -> Seen:
    return msgspec.structs.replace(seen, addresses=tuple(dict.fromkeys((address, *seen.addresses))))


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
        "a" * 64,
    ],
)
def test_a_name_that_is_none_is_never_written(evil: str) -> None:
    (host,) = chosen(found(named(evil)), None, None)
    assert host.name == ""
    assert written([host], "ssh") == "Host 10.0.0.2\n    HostName 10.0.0.2\n"
    with pytest.raises(BadInput, match=r"10\.0\.0\.2 has no host name"):
        written([host], "openmpi", names=True)


def addresses(*every: Seen) -> list[str]:
    return [host.address for host in chosen(found(*every), None, None)]


def test_the_same_whatever_address_answered_first() -> None:
    two = named("gpu2", "10.0.0.2", "10.1.0.2")
    three = named("gpu3", "10.0.0.3", "10.1.0.3")
    for one in (two, reached_by("10.1.0.2", two)):
        for other in (three, reached_by("10.1.0.3", three)):
            assert addresses(one, other) == ["10.0.0.2", "10.0.0.3"]


def test_a_subnet_that_all_share_comes_before_a_nodes_own_order() -> None:
    two = named("gpu2", "10.0.0.2", "10.1.0.2", "172.17.0.1")
    three = named("gpu3", "10.9.0.3", "10.1.0.3", "172.17.0.1")
    assert addresses(two, three) == ["10.1.0.2", "10.1.0.3"]
    apart = named("gpu4", "10.8.0.4", "172.17.0.1")
    assert addresses(two, three, apart) == ["10.0.0.2", "10.9.0.3", "10.8.0.4"]
    assert addresses(reached_by("192.0.2.7", apart)) == ["192.0.2.7"]  # behind NAT


def test_link_local_alone_is_written_for_ssh_and_named_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lonely = named("gpu2", "fe80::2%eth0")
    monkeypatch.setattr(hosts, "find", lambda *_: found(lonely))
    done = CliRunner().invoke(hosts.command, ["--format", "ssh"])
    assert done.stdout == "Host gpu2\n    HostName fe80::2%%eth0\n"
    if shutil.which("ssh"):
        file = tmp_path / "config"
        file.write_text(done.stdout)
        words = ["ssh", "-G", "-F", str(file), "gpu2"]
        read = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        assert "hostname fe80::2%eth0\n" in read
    done = CliRunner().invoke(hosts.command, ["--format", "openmpi"])
    assert "gpu2: left out: it has link-local addresses alone" in done.stderr
    assert "nodes were reached, but by addresses alone" in str(done.exception)


def test_a_name_that_python_cannot_encode_is_no_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = msgspec.structs.replace(GPU1, name="a" * 64)
    assert written([long], "openmpi", names=True) == f"{'a' * 64} slots=8\n"
    assert "does not resolve" in capsys.readouterr().err


def test_an_address_that_is_none_is_never_written() -> None:
    evil = msgspec.structs.replace(SEEN, addresses=("10.0.0.2\nHost *", "$(x)"))
    assert addresses(evil) == ["10.0.0.2"]


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
