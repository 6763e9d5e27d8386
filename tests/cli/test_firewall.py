"""`mingle firewall`: what is printed. That a real nft takes it, and that a job then works, is
tested on a LAN (tests/lan/test_nodes.py)."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from mingled.cli import firewall
from mingled.errors import BadInput
from mingled.net.listening import ephemeral_ports


def rules(*words: str) -> list[str]:
    done = CliRunner().invoke(firewall.command, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return [line for line in done.output.splitlines() if not line.startswith("#")]


def test_ufw() -> None:
    high = ephemeral_ports()
    assert rules("--subnet", "10.0.0.0/24", "--format", "ufw") == [
        f"ufw allow from 10.0.0.0/24 to any port {ports} proto {protocol}"
        for ports, protocol in (
            ("5353", "udp"),
            ("29491", "udp"),
            ("29490", "tcp"),
            ("29491:29498", "tcp"),
            ("29500:29999", "tcp"),
            (f"{high[0]}:{high[-1]}", "tcp"),
        )
    ]


def test_nft_of_both_families() -> None:
    lines = rules("--subnet", "10.0.0.9/24", "--subnet", "fd00::/64", "--format", "nft")
    front = "insert rule inet filter input "
    assert f"{front}ip saddr {{ 10.0.0.0/24 }} tcp dport 29490 accept" in lines
    assert f"{front}ip6 saddr {{ fd00::/64, fe80::/10 }} udp dport 5353 accept" in lines
    assert sum("nd-neighbor-solicit" in line for line in lines) == 1
    allowed = re.compile(
        r"add (table inet filter|chain inet filter input)|"
        r"insert rule inet filter input [a-z0-9 ,:{}./-]+ accept"
    )
    assert all(allowed.fullmatch(line) for line in lines)


def test_each_port_says_why() -> None:
    done = CliRunner().invoke(firewall.command, ["--subnet", "10.0.0.0/8", "--format", "ufw"])
    assert "# MASTER_PORT, where rank 0's store listens\n" in done.output
    assert "Gloo and NCCL connect all nodes to each other" in done.output


def test_subnets_within_each_other_are_one() -> None:
    lines = rules("--subnet", "10.0.0.0/24", "--subnet", "10.0.0.0/8", "--format", "nft")
    assert not any("10.0.0.0/24" in line for line in lines)


@pytest.mark.parametrize(
    "text", ["10.0.0.0/33", "gpu1", "10.0.0.0/24; reboot", "0.0.0.0/0", "::/0"]
)
def test_what_is_no_subnet_of_nodes(text: str) -> None:
    words = ["--subnet", text, "--format", "nft"]
    assert isinstance(CliRunner().invoke(firewall.command, words).exception, BadInput)
