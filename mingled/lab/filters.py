"""Packets that never arrive: rules for nftables (netem is not on every kernel)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mingled.errors import BadInput

Direction = Literal["in", "out", "both"]


@dataclass(frozen=True)
class Loss:
    """The share of packets that are lost on the way into and out of one node, in per cent."""

    into: float = 0
    out_of: float = 0

    @classmethod
    def of(cls, percent: float, direction: Direction) -> Loss:
        if not 0 <= percent <= 100:
            raise BadInput(f"Packet loss is 0 to 100 per cent, not {percent}.")
        if direction not in ("in", "out", "both"):
            raise BadInput(f'The direction of loss is "in", "out" or "both", not {direction!r}.')
        return cls(
            into=percent if direction != "out" else 0, out_of=percent if direction != "in" else 0
        )


def loss_rules(loss: Mapping[str, Loss]) -> str:
    """The switch's rule set; `loss` maps each of its ports to what gets lost there."""
    rules = []
    for port, lost in loss.items():
        rules += _lose(f'oifname "{port}"', lost.into) + _lose(f'iifname "{port}"', lost.out_of)
    return _table("bridge", "loss", "forward", rules)


def drop_rules(expressions: Sequence[str]) -> str:
    """A node's firewall: what comes in from the network and matches is dropped without a word."""
    rules = [f'iifname != "lo" {expression} drop' for expression in expressions]
    return _table("inet", "firewall", "input", rules)


def _lose(where: str, percent: float) -> list[str]:
    share = round(percent * 100)
    if share == 0:
        return []
    chance = "" if share == 10_000 else f"numgen random mod 10000 < {share} "
    return [f"{where} {chance}drop"]


def _table(family: str, name: str, hook: str, rules: Sequence[str]) -> str:
    """A script that replaces the table in one transaction (deleting needs it to exist)."""
    lines = [f"table {family} {name}", f"delete table {family} {name}"]
    if rules:
        chain = f"type filter hook {hook} priority 0;"
        lines += [f"table {family} {name} {{ chain {hook} {{ {chain}", *rules, "}", "}"]
    return "\n".join(lines) + "\n"
