"""What `iptables-save` and `ip6tables-save` print, as chains to be judged (iptables-extensions(8)).
Only the filter table's INPUT decides what comes in."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterator
from typing import Literal

from mingled.doctor.firewall import Chain, Incoming, Rule, Test, holds

_SILENT_MATCHES = frozenset(
    {"tcp", "udp", "state", "conntrack", "comment", "multiport", "addrtype", "pkttype"}
)
"""Their options say what they match."""

_GO_ON = frozenset({"LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "CT", "NOTRACK"})

_OPTIONS_WITHOUT_VALUE = frozenset({"--syn", "--fragment", "-f"})


def parse(text: str, version: Literal[4, 6]) -> dict[str, Chain]:
    """The filter table's chains, by name."""
    policies: dict[str, str] = {}
    rules: dict[str, list[Rule]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif table != "filter":
            continue
        elif line.startswith(":"):
            name, policy, *_ = [*line[1:].split(), "", "-"]
            policies[name] = policy
            rules[name] = []
        elif line.startswith("-A "):
            name, *words = _words(line)[1:] or [""]
            rules.setdefault(name, []).append(_rule(words, version))
    return {
        name: Chain(
            rules=tuple(found),
            base=name == "INPUT",
            policy="drop" if policies.get(name) == "DROP" else "accept",
            versions=(version,),
        )
        for name, found in rules.items()
    }


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # an unmatched quote in a comment
        return line.split()


def _rule(words: list[str], version: int) -> Rule:
    tests: list[Test] = []
    for negated, option, value in _options(words):
        if option in ("-j", "-g"):
            return _ending(tests, value, goto=option == "-g")
        test = _test(option, value, version)
        if test is not None:
            tests.append(_not(test) if negated else test)
    return Rule(tests=tuple(tests), verdict="")


def _options(words: list[str]) -> Iterator[tuple[bool, str, str]]:
    rest = iter(words)
    negated = False
    for word in rest:
        if word == "!":
            negated = True
            continue
        value = "" if word in _OPTIONS_WITHOUT_VALUE else next(rest, "")
        yield negated, word, value
        negated = False


def _ending(tests: list[Test], target: str, *, goto: bool) -> Rule:
    every = tuple(tests)
    match target:
        case "ACCEPT":
            return Rule(tests=every, verdict="accept")
        case "DROP" | "REJECT":
            return Rule(tests=every, verdict="drop")
        case "RETURN":
            return Rule(tests=every, verdict="return")
        case _ if target in _GO_ON:
            return Rule(tests=every, verdict="")
    # A chain; where there is none of that name, the judge says "perhaps".
    return Rule(tests=every, verdict="goto" if goto else "jump", target=target)


def _test(option: str, value: str, version: int) -> Test | None:
    """None: the option matches everything."""
    match option:
        case "-p" | "--protocol":
            return None if value in ("all", "0") else lambda p: p.protocol == value
        case "-i":
            name = value[:-1] + "*" if value.endswith("+") else value
            return lambda p: holds(p.interface, [name])
        case "-s" | "-d":
            return _address(value, source=option == "-s")
        case "--dport" | "--dports":
            wanted = [_ports(part) for part in value.split(",")]
            return lambda p: holds(p.port, wanted)
        case "--state" | "--ctstate":
            return lambda p: "NEW" in value.split(",")
        case "--dst-type":
            word = {"unicast": "LOCAL", "multicast": "MULTICAST", "broadcast": "BROADCAST"}
            return lambda p: word[p.to] in value.split(",")
        case "--pkt-type":
            return lambda p: p.to == value
        case "-m" if value in _SILENT_MATCHES:
            return None
        case "--comment" | "--syn":
            return None
    return _unknown


def _unknown(packet: Incoming) -> None:
    return None


def _not(test: Test) -> Test:
    def opposite(packet: Incoming) -> bool | None:
        answer = test(packet)
        return None if answer is None else not answer

    return opposite


def _address(text: str, *, source: bool) -> Test:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return _unknown

    def test(packet: Incoming) -> bool | None:
        value = packet.source if source else packet.destination
        return None if value is None else holds(value, [network])

    return test


def _ports(part: str) -> object:
    low, colon, high = part.partition(":")
    if not all(re.fullmatch("[0-9]{1,5}", end or "0") for end in (low, high)):
        return part
    if not colon:
        return int(low) if low else part
    return (int(low or 0), int(high or 65_535))
