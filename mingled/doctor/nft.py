"""What `nft -j list ruleset` prints, as chains to be judged (libnftables-json(5))."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from mingled.doctor.firewall import Chain, Incoming, Rule, Test, holds

_NUMBERS = {6: "tcp", 17: "udp"}
_VERSIONS = {"inet": (4, 6), "ip": (4,), "ip6": (6,)}

_HARMLESS = frozenset({"counter", "log", "comment", "mangle", "notrack", "ct count", "flow"})
"""Statements that let a packet go on."""

_Word = Literal["accept", "drop", "return", "jump", "goto", "perhaps"]

_VERDICTS: dict[str, _Word] = {
    "accept": "accept",
    "drop": "drop",
    "return": "return",
    "jump": "jump",
    "goto": "goto",
}

_UNREADABLE = (
    msgspec.MsgspecError,
    RecursionError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
"""All that comes of text that is none of nft's, from broken JSON to an address that is none."""

Sets = Mapping[str, list[Any]]
Fields = Callable[[Incoming], object]

_IRRELEVANT = object()
"""The packet has no such field: the rule is not about it."""


class NotRead(ValueError):
    """It is no rule set."""


def parse(text: str) -> dict[str, Chain]:
    """Chains of the families inet, ip and ip6, named family/table/chain. Raises `NotRead`."""
    if not text.strip():
        return {}
    try:
        entries = msgspec.json.decode(text)["nftables"]
        heads = [e["chain"] for e in entries if "chain" in e]
        rules = [e["rule"] for e in entries if "rule" in e]
        sets = [e[kind] for e in entries for kind in ("set", "map") if kind in e]
        known: Sets = {f"{_table(s)}/{s['name']}": s.get("elem", []) for s in sets}
        by_chain: dict[str, list[Rule]] = {}
        for rule in rules:
            if rule["family"] in _VERSIONS:
                where = f"{_table(rule)}/{rule['chain']}"
                by_chain.setdefault(where, []).extend(_rules(rule, known))
        return {
            f"{_table(head)}/{head['name']}": Chain(
                rules=tuple(by_chain.get(f"{_table(head)}/{head['name']}", ())),
                base=head.get("hook") == "input" and head.get("type") == "filter",
                policy="drop" if head.get("policy") == "drop" else "accept",
                versions=_VERSIONS[head["family"]],
            )
            for head in heads
            if head["family"] in _VERSIONS
        }
    except _UNREADABLE as error:
        raise NotRead(f"nft prints what is no rule set known here ({error!r})") from error


def _table(entry: Mapping[str, Any]) -> str:
    return f"{entry['family']}/{entry['table']}"


def _rules(rule: Mapping[str, Any], sets: Sets) -> list[Rule]:
    """Usually one; a verdict map makes one of each entry."""
    table = _table(rule)
    tests: list[Test] = []
    for statement in rule["expr"]:
        (kind, said), *_ = statement.items()
        if kind == "match":
            tests.append(_match(said, table, sets))
        elif kind in ("accept", "drop", "return"):
            return [Rule(tests=tuple(tests), verdict=kind)]
        elif kind == "reject":
            return [Rule(tests=tuple(tests), verdict="drop")]
        elif kind in ("jump", "goto"):
            target = f"{table}/{said['target']}"
            return [Rule(tests=tuple(tests), verdict=kind, target=target)]
        elif kind == "vmap":
            return _map(said, tests, table, sets)
        elif kind in ("limit", "xt", "quota", "queue", "connlimit"):
            tests.append(_unknown)
            if kind == "xt" or kind == "queue":  # perhaps the verdict itself
                return [Rule(tests=tuple(tests), verdict="perhaps")]
        elif kind not in _HARMLESS:
            tests.append(_unknown)
    return [Rule(tests=tuple(tests), verdict="")]


def _unknown(packet: Incoming) -> None:
    return None


def _map(said: Mapping[str, Any], tests: list[Test], table: str, sets: Sets) -> list[Rule]:
    data = said["data"]
    entries = data["set"] if isinstance(data, dict) else sets.get(f"{table}/{data[1:]}", [])
    found = []
    for value, verdict in entries:
        (kind, more), *_ = verdict.items()
        test = _match({"op": "==", "left": said["key"], "right": value}, table, sets)
        target = f"{table}/{more['target']}" if kind in ("jump", "goto") else ""
        word = _VERDICTS.get(kind, "perhaps")
        found.append(Rule(tests=(*tests, test), verdict=word, target=target))
    return found


def _match(said: Mapping[str, Any], table: str, sets: Sets) -> Test:
    field = _field(said["left"])
    operator, right = said["op"], said["right"]
    wanted = _values(right, table, sets)
    if field is None:
        return _unknown

    def test(packet: Incoming) -> bool | None:
        value = field(packet)
        if value is _IRRELEVANT:
            return False
        if value is None or wanted is None:
            return None
        if operator in ("<", ">", "<=", ">="):
            return _compare(operator, value, wanted)
        answer = holds(value, wanted)
        if operator == "!=":
            return None if answer is None else not answer
        return answer if operator in ("==", "in") else None

    return test


def _compare(operator: str, value: object, wanted: list[object]) -> bool | None:
    than = wanted[0] if len(wanted) == 1 else None
    if not isinstance(value, int) or not isinstance(than, int):
        return None
    answers = {"<": value < than, ">": value > than, "<=": value <= than, ">=": value >= than}
    return answers[operator]


def _field(left: Any) -> Fields | None:
    """How to get at that part of a packet; None: it is not known here."""
    if not isinstance(left, dict) or len(left) != 1:
        return None
    ((kind, said),) = left.items()
    if kind == "meta":
        return _META.get(said.get("key"))
    if kind == "ct":
        return (lambda p: "new") if said.get("key") == "state" else None
    if kind == "fib":
        typed = said.get("result") == "type" and "daddr" in said.get("flags", ())
        return (lambda p: "local" if p.to == "unicast" else p.to) if typed else None
    if kind == "payload":
        return _PAYLOAD.get((said.get("protocol"), said.get("field")))
    return None


def _of(version: int, get: Fields) -> Fields:
    return lambda p: get(p) if p.source.version == version else _IRRELEVANT


def _port(*protocols: str) -> Fields:
    return lambda p: p.port if p.protocol in protocols else _IRRELEVANT


_META: dict[object, Fields] = {
    "iifname": lambda p: p.interface,
    "iif": lambda p: p.interface,
    "l4proto": lambda p: p.protocol,
    "nfproto": lambda p: f"ipv{p.source.version}",
    "protocol": lambda p: "ip" if p.source.version == 4 else "ip6",
    "pkttype": lambda p: "host" if p.to == "unicast" else p.to,
}

_PAYLOAD: dict[tuple[object, object], Fields] = {
    ("tcp", "dport"): _port("tcp"),
    ("udp", "dport"): _port("udp"),
    ("th", "dport"): _port("tcp", "udp"),
    ("ip", "saddr"): _of(4, lambda p: p.source),
    ("ip6", "saddr"): _of(6, lambda p: p.source),
    ("ip", "daddr"): _of(4, lambda p: p.destination),
    ("ip6", "daddr"): _of(6, lambda p: p.destination),
    ("ip", "protocol"): _of(4, lambda p: p.protocol),
    ("ip6", "nexthdr"): _of(6, lambda p: p.protocol),
    ("icmp", "type"): lambda p: _IRRELEVANT,
    ("icmpv6", "type"): lambda p: _IRRELEVANT,
}


def _values(right: Any, table: str, sets: Sets) -> list[object] | None:
    """What the field is compared with; None: a set that is not there."""
    if isinstance(right, str) and right.startswith("@"):
        elements = sets.get(f"{table}/{right[1:]}")
        return None if elements is None else [_value(e) for e in elements]
    if isinstance(right, dict) and "set" in right:
        return [_value(e) for e in right["set"]]
    if isinstance(right, list):
        return [_value(e) for e in right]
    return [_value(right)]


def _value(said: Any) -> object:
    if isinstance(said, dict):
        if "prefix" in said:
            prefix = said["prefix"]
            return ipaddress.ip_network(f"{prefix['addr']}/{prefix['len']}", strict=False)
        if "range" in said:
            low, high = (_value(end) for end in said["range"])
            return (low, high)
        if "elem" in said:
            return _value(said["elem"]["val"])
        return said
    if isinstance(said, str):
        try:
            return ipaddress.ip_address(said)
        except ValueError:
            return said
    return said
