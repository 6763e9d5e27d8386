"""Would this machine's firewall let a new connection in? A pure evaluator of filter rules.

Three-valued: whatever it does not understand may or may not match, and the answer is then
"perhaps". What comes in is looked at by every chain of the input hook, and any of them can drop it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Word = Literal["accept", "drop", "perhaps"]
Outcome = Literal["accept", "drop", "continue"]

DEPTH_MAX = 16
"""Of jumps; nftables itself stops there."""


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """The first packet of something new, as it comes in."""

    protocol: Literal["tcp", "udp"]
    port: int
    interface: str
    source: Ip
    destination: Ip | None = None  #: None: not known
    to: Literal["unicast", "multicast", "broadcast"] = "unicast"


Test = Callable[[Incoming], bool | None]
"""Whether a packet matches; None: that cannot be told."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """`verdict`: accept, drop, return, jump or goto to `target`, perhaps (of an unknown kind);
    empty: it only counts or logs."""

    tests: tuple[Test, ...]
    verdict: Literal["", "accept", "drop", "return", "jump", "goto", "perhaps"]
    target: str = ""


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    rules: tuple[Rule, ...]
    base: bool = False  #: packets that come in start here
    policy: Literal["accept", "drop"] = "accept"
    versions: tuple[int, ...] = (4, 6)  #: of IP


Chains = Mapping[str, Chain]
"""By name, unique within one rule set."""


def judge(chains: Chains, packet: Incoming) -> Word:
    """What becomes of it."""
    words: set[Word] = set()
    for chain in chains.values():
        if chain.base and packet.source.version in chain.versions:
            outcomes = _walk(chains, chain, packet, 0)
            ends = {chain.policy if o == "continue" else o for o in outcomes}
            words.add("perhaps" if len(ends) > 1 else "drop" if "drop" in ends else "accept")
    return "drop" if "drop" in words else "perhaps" if "perhaps" in words else "accept"


def _walk(chains: Chains, chain: Chain, packet: Incoming, depth: int) -> set[Outcome]:
    """Every way it can end here; `continue`: the chain's end was reached, or a return."""
    ends: set[Outcome] = set()
    for rule in chain.rules:
        matches = _all(test(packet) for test in rule.tests)
        if matches is False or not rule.verdict:
            continue
        reached, goes_on = _verdict(chains, rule, packet, depth)
        ends |= reached
        if matches and not goes_on:
            return ends
    return ends | {"continue"}


def _verdict(chains: Chains, rule: Rule, packet: Incoming, depth: int) -> tuple[set[Outcome], bool]:
    """How it may end by this rule, and whether the next rule may be asked then."""
    match rule.verdict:
        case "accept":
            return {"accept"}, False
        case "drop":
            return {"drop"}, False
        case "return":
            return {"continue"}, False
        case "jump" | "goto":
            target = chains.get(rule.target)
            if target is None or depth >= DEPTH_MAX:
                return {"accept", "drop"}, True
            ends = _walk(chains, target, packet, depth + 1)
            if rule.verdict == "goto":
                return ends, False
            return ends - {"continue"}, "continue" in ends
        case _:
            return {"accept", "drop"}, True


def _all(values: object) -> bool | None:
    """Kleene's conjunction."""
    found = list(values)  # type: ignore[call-overload]  # a generator of bool | None
    if False in found:
        return False
    return None if None in found else True


def holds(value: object, wanted: Sequence[object]) -> bool | None:
    """Whether a packet's field is one of these: words, numbers, (low, high) pairs, networks. None:
    one of them is not understood, and no other holds."""
    answers = [_one(value, want) for want in wanted]
    if True in answers:
        return True
    return None if None in answers else False


def _one(value: object, want: object) -> bool | None:
    if isinstance(want, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return isinstance(value, Ip) and value in want
    if isinstance(want, tuple):
        low, high = want
        if type(low) is not type(value) or type(high) is not type(value):
            return False if isinstance(value, Ip) else None
        return bool(low <= value <= high)  # type: ignore[operator]  # equal types, just seen
    if isinstance(value, str) and isinstance(want, str) and want.endswith("*"):
        return value.startswith(want[:-1])
    if isinstance(value, Ip) and isinstance(want, Ip):
        return value == want
    return value == want if type(value) is type(want) else None
