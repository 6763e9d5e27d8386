"""`mingle interfaces` of machines made up; blocks on a narrow terminal and in a pipe."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from mingled.cli import blocks, interfaces
from mingled.cli.blocks import Block, milliseconds, print_blocks, print_line
from mingled.errors import BadInput
from mingled.net import interfaces as net
from mingled.net.facts import Facts
from tests.net.machines import address, link, machine

FACTS = machine(
    link("lo", "loopback", "127.0.0.1/8", index=1, hardware=False, mtu_bytes=65536),
    link(
        "eth0",
        "ethernet",
        address("10.77.0.1/24", origin="static"),
        address("10.77.0.9/24", origin="dynamic"),
        address("fd77::1/64", origin="dynamic", state="deprecated"),
        index=26,
        hardware=True,
        speed_mbits=10_000,
        mtu_bytes=9000,
        mac="02:4d:47:00:00:01",
        state="up",
        gateways=("10.77.0.254",),
    ),
    link("docker0", "docker", "172.17.0.1/16", index=3, hardware=False, carrier=False),
    link("wlan0", "wifi", index=4, up=False, carrier=None, hardware=True, state="down"),
    link("eth0.5", "vlan", "10.5.0.1/24", index=5, hardware=False, parent="eth0"),
)


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(net, "facts", lambda: FACTS)
    for name in ("MINGLE_CONFIG", "MINGLE_INTERFACE", "MINGLE_SUBNET"):
        monkeypatch.delenv(name, raising=False)


def run(*words: str, columns: int | None = None) -> Result:
    env = {"COLUMNS": str(columns)} if columns else {}
    return CliRunner().invoke(interfaces.command, words, env=env)


@pytest.mark.usefixtures("facts")
def test_every_fact_is_shown_in_the_order_of_use() -> None:
    said = run()
    assert (said.exit_code, said.stderr) == (0, "")
    shown = said.stdout.split("\n\n")
    assert [block.split()[0] for block in shown] == ["eth0", "eth0.5", "lo", "docker0", "wlan0"]
    assert shown[0].splitlines() == [
        "eth0  used, place 1: wired, 10 Gbit/s",
        "  index    26 (0x1a)",
        "  kind     ethernet, hardware",
        "  state    up, carrier",
        "  speed    10 Gbit/s",
        "  mtu      9000 bytes",
        "  mac      02:4d:47:00:00:01",
        "  address  10.77.0.1/24 private, static",
        "  address  10.77.0.9/24 private, dynamic (DHCP)",
        "  address  fd77::1/64 private, dynamic (DHCP or SLAAC), deprecated",
        "  gateway  10.77.0.254",
    ]
    assert "  kind     vlan, software, on eth0" in shown[1]
    assert "docker0  not used: it has no carrier" in shown[3]
    assert "  state    down\n" in shown[4]
    assert "  address  none" in shown[4]


@pytest.mark.usefixtures("facts")
def test_forty_columns_are_enough() -> None:
    said = run(columns=40)
    assert max(map(len, said.stdout.splitlines())) <= 40
    unwrapped = " ".join(run().stdout.split())
    assert " ".join(said.stdout.split()) == unwrapped  # and nothing was cut


@pytest.mark.usefixtures("facts")
def test_json_has_the_same_facts() -> None:
    shown = msgspec.json.decode(run("--json").stdout, type=list[interfaces.Shown])
    first = shown[0]
    assert (first.name, first.index_hex, first.place, first.exact) == ("eth0", "0x1a", 1, True)
    assert [a.origin for a in first.addresses] == ["static", "dynamic", "dynamic"]
    assert [one.used for one in shown] == [True, True, False, False, False]
    assert shown[2].why == "loopback counts only where there is nothing else"
    assert shown[3].speed_mbits is None


@pytest.mark.usefixtures("facts")
def test_what_a_restriction_would_do() -> None:
    shown = msgspec.json.decode(
        run("--json", "--interface", "docker0", "--interface", "eth0.5").stdout,
        type=list[interfaces.Shown],
    )
    assert [one.name for one in shown if one.used] == ["eth0.5", "docker0"]
    shown = msgspec.json.decode(run("--json", "--subnet", "10.5.0.0/16").stdout)
    assert [one["name"] for one in shown if one["used"]] == ["eth0.5"]


@pytest.mark.usefixtures("facts")
def test_the_restriction_that_a_daemon_would_obey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used(*words: str) -> list[str]:
        shown = msgspec.json.decode(run("--json", *words).stdout, type=list[interfaces.Shown])
        return [one.name for one in shown if one.used]

    file = tmp_path / "mingled.toml"
    file.write_text('interface = ["eth0.5"]')
    monkeypatch.setenv("MINGLE_CONFIG", str(file))
    monkeypatch.setenv("MINGLE_SUBNET", "")
    assert used() == ["eth0.5"]
    line = f"mingle interfaces: only --interface eth0.5 may be used, says interface in {file}\n"
    assert run().stderr == line
    monkeypatch.setenv("MINGLE_INTERFACE", "eth0")
    assert used() == ["eth0"]
    assert "only --interface eth0 may be used, says MINGLE_INTERFACE\n" in run().stderr
    assert used("--interface", "docker0,eth0.5") == ["eth0.5", "docker0"]
    monkeypatch.delenv("MINGLE_INTERFACE")
    file.write_text('interface = ["eth9"]')
    assert str(run().exception).endswith(f": correct interface in {file}")


@pytest.mark.usefixtures("facts")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--interface", "eth7"), "has no interface eth7; it has "),
        (("--subnet", "10.9.0.0/16"), "has no address in 10.9.0.0/16"),
        (("--subnet", "10.9"), "--subnet 10.9: not a subnet"),
        (("--interface", ""), "--interface is given with nothing in it"),
        (("--subnet", " "), "--subnet is given with nothing in it"),
        (("--same-subnet", "10.0.0.1", "gpu2"), "'gpu2' is not an address"),
    ],
)
def test_impossible_input(words: tuple[str, ...], said: str) -> None:
    found = run(*words)
    assert isinstance(found.exception, BadInput)
    assert found.exception.exit_code == 2
    assert said in str(found.exception)
    assert found.stdout == ""


@pytest.mark.usefixtures("facts")
@pytest.mark.parametrize(
    ("pair", "code", "said"),
    [
        (("10.77.0.1", "10.77.0.7"), 0, "yes: both are in 10.77.0.0/24 of eth0\n"),
        (("10.77.0.1", "10.5.0.7"), 1, "no: 10.77.0.1 is in 10.77.0.0/24 of eth0, but 10.5.0.7"),
        (("fe80::1", "fe80::2"), 1, "unknown: fe80::1 is link-local"),
    ],
)
def test_same_subnet(pair: tuple[str, str], code: int, said: str) -> None:
    found = run("--same-subnet", *pair)
    assert found.exit_code == code
    assert found.stdout.startswith(said)
    answer = msgspec.json.decode(run("--json", "--same-subnet", *pair).stdout)
    assert answer["yes"] is {"y": True, "n": False, "u": None}[said[0]]


def test_where_netlink_is_not_there_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    guessed = Facts(links=FACTS.links, exact=False, why_not="darwin has no netlink")
    monkeypatch.setattr(net, "facts", lambda: guessed)
    said = run("--json")
    assert "mingle interfaces: darwin has no netlink: kinds are guessed from names" in said.stderr
    assert not msgspec.json.decode(said.stdout)[0]["exact"]


# ---------------------------------------------------------------- blocks


def test_wide_labels_get_lines_of_their_own_where_it_is_narrow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = Block("eth0", False, "one", [("fe80::4d:47ff:fe00:2", "02:4d:47:00:00:02 dynamic")])
    monkeypatch.setenv("COLUMNS", "40")
    print_blocks([block])
    assert capsys.readouterr().out.splitlines() == [
        "eth0  one",
        "  fe80::4d:47ff:fe00:2",
        "    02:4d:47:00:00:02 dynamic",
    ]
    monkeypatch.delenv("COLUMNS")
    print_blocks([block])
    assert "  fe80::4d:47ff:fe00:2  02:4d" in capsys.readouterr().out


def test_only_a_terminal_gets_bold_titles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = Block("eth0", True, "x", [("a", "b")])
    print_blocks([block])
    monkeypatch.setattr(blocks, "_coloured", lambda: True)
    print_blocks([block])
    plain, bold = capsys.readouterr().out.split("\neth0", 1)[0], "\x1b[1meth0\x1b[0m  x"
    assert "\x1b" not in plain.split(bold)[0]
    assert bold in plain


def test_fault_38_text_from_elsewhere_cannot_paint(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "\x1b[2J\r"
    print_blocks([Block(bad, True, bad, [(bad, bad)])])
    print_blocks([])
    print_line(bad)
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


@pytest.mark.parametrize(
    ("value", "text"), [(0.3684, "0.368 ms"), (1.606, "1.61 ms"), (250.4, "250 ms")]
)
def test_milliseconds(value: float, text: str) -> None:
    assert milliseconds(value) == text
