"""Rule sets of nft and iptables, and what becomes of a new connection."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mingled.doctor import iptables, nft
from mingled.doctor.firewall import Incoming, Word, judge

PEER = ipaddress.ip_address("10.0.0.7")
PEER6 = ipaddress.ip_address("fd00::7")


def tcp(port: int, source: object = PEER, interface: str = "eth0") -> Incoming:
    assert isinstance(source, ipaddress.IPv4Address | ipaddress.IPv6Address)
    return Incoming(protocol="tcp", port=port, interface=interface, source=source)


MDNS = Incoming(
    protocol="udp",
    port=5353,
    interface="eth0",
    source=PEER,
    destination=ipaddress.ip_address("224.0.0.251"),
    to="multicast",
)


def match(left: object, right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def dport(protocol: str = "tcp") -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": "dport"}}


def saddr(family: str = "ip") -> dict[str, Any]:
    return {"payload": {"protocol": family, "field": "saddr"}}


ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}
STATE = match({"ct": {"key": "state"}}, ["established", "related"], "in")


def ruleset(
    *rules: list[dict[str, Any]], policy: str = "drop", more: tuple[dict[str, Any], ...] = ()
) -> str:
    """One table, its input chain with these rules, and whatever else it has."""
    where = {"family": "inet", "table": "filter"}
    chain = {**where, "name": "input", "type": "filter", "hook": "input", "policy": policy}
    entries: list[dict[str, Any]] = [{"metainfo": {}}, {"table": where}, {"chain": chain}]
    entries += [{"rule": {**where, "chain": "input", "expr": expr}} for expr in rules]
    return msgspec.json.encode({"nftables": [*entries, *more]}).decode()


def word(text: str, packet: Incoming) -> Word:
    return judge(nft.parse(text), packet)


def test_no_rules_let_everything_in() -> None:
    assert word("", tcp(29_490)) == "accept"
    assert word(ruleset(policy="accept"), tcp(29_490)) == "accept"


def test_the_policy_is_for_what_no_rule_takes() -> None:
    text = ruleset([STATE, ACCEPT], [match(dport(), 29_490), ACCEPT])
    assert word(text, tcp(29_490)) == "accept"
    assert word(text, tcp(29_500)) == "drop"
    assert word(text, MDNS) == "drop"


@pytest.mark.parametrize(
    ("right", "inside", "outside"),
    [
        ({"range": [29_500, 29_999]}, 29_999, 30_000),
        ({"set": [22, {"range": [29_490, 29_498]}]}, 29_491, 29_499),
        (29_490, 29_490, 29_491),
    ],
)
def test_ports(right: object, inside: int, outside: int) -> None:
    text = ruleset([match(dport(), right), ACCEPT])
    assert word(text, tcp(inside)) == "accept"
    assert word(text, tcp(outside)) == "drop"


def test_sources_of_both_families() -> None:
    subnet = {"prefix": {"addr": "10.0.0.0", "len": 24}}
    subnet6 = {"prefix": {"addr": "fd00::", "len": 64}}
    text = ruleset(
        [match(saddr(), subnet), ACCEPT], [match(saddr("ip6"), {"set": [subnet6]}), ACCEPT]
    )
    assert word(text, tcp(1)) == "accept"
    assert word(text, tcp(1, PEER6)) == "accept"
    assert word(text, tcp(1, ipaddress.ip_address("10.0.1.7"))) == "drop"
    assert word(text, tcp(1, ipaddress.ip_address("fd01::7"))) == "drop"


def test_interfaces_and_negations() -> None:
    text = ruleset(
        [match({"meta": {"key": "iifname"}}, "lo", "!="), match(dport(), 29_490), DROP],
        policy="accept",
    )
    assert word(text, tcp(29_490)) == "drop"
    assert word(text, tcp(29_490, interface="lo")) == "accept"
    wild = ruleset([match({"meta": {"key": "iifname"}}, "eth*"), ACCEPT])
    assert word(wild, tcp(1)) == "accept"
    assert word(wild, tcp(1, interface="wlan0")) == "drop"


def test_named_sets_and_verdict_maps() -> None:
    where = {"family": "inet", "table": "filter"}
    ports = {"set": {**where, "name": "open", "type": "inet_service", "elem": [29_490, 22]}}
    text = ruleset([match(dport(), "@open"), ACCEPT], more=(ports,))
    assert word(text, tcp(29_490)) == "accept"
    assert word(text, tcp(29_500)) == "drop"
    data = {"set": [[22, ACCEPT], [{"range": [29_500, 29_999]}, {"jump": {"target": "jobs"}}]]}
    jobs = {"chain": {**where, "name": "jobs"}}
    rule = {"rule": {**where, "chain": "jobs", "expr": [match(saddr(), "10.0.0.7"), ACCEPT]}}
    mapped = ruleset([{"vmap": {"key": dport(), "data": data}}], more=(jobs, rule))
    assert word(mapped, tcp(22)) == "accept"
    assert word(mapped, tcp(29_501)) == "accept"
    assert word(mapped, tcp(29_501, ipaddress.ip_address("10.0.0.8"))) == "drop"


def test_a_return_comes_back_and_a_goto_does_not() -> None:
    where = {"family": "inet", "table": "filter"}
    chain = {"chain": {**where, "name": "more"}}
    back = {"rule": {**where, "chain": "more", "expr": [{"return": None}]}}
    jump = ruleset([{"jump": {"target": "more"}}], [ACCEPT], more=(chain, back))
    assert word(jump, tcp(1)) == "accept"
    goto = ruleset([{"goto": {"target": "more"}}], [ACCEPT], more=(chain, back))
    assert word(goto, tcp(1)) == "drop"


def test_every_chain_must_let_it_in() -> None:
    where = {"family": "ip", "table": "other"}
    chain = {**where, "name": "in", "type": "filter", "hook": "input", "policy": "accept"}
    rule = {**where, "chain": "in", "expr": [match(dport(), 29_490), {"reject": None}]}
    text = ruleset([ACCEPT], more=({"chain": chain}, {"rule": rule}))
    assert word(text, tcp(29_490)) == "drop"
    assert word(text, tcp(29_490, PEER6)) == "accept"  # a table of IPv4


def test_what_is_not_understood_is_perhaps() -> None:
    odd = match({"meta": {"key": "skuid"}}, 0)
    assert word(ruleset([odd, ACCEPT]), tcp(1)) == "perhaps"
    assert word(ruleset([odd, DROP], policy="accept"), tcp(1)) == "perhaps"
    assert word(ruleset([odd, DROP], [ACCEPT], policy="drop"), tcp(1)) == "perhaps"
    assert word(ruleset([odd, ACCEPT], [ACCEPT]), tcp(1)) == "accept"
    assert word(ruleset([{"xt": {"type": "match"}}], [DROP]), tcp(1)) == "perhaps"
    assert word(ruleset([match(dport(), 22), odd, DROP], policy="accept"), tcp(1)) == "accept"


@pytest.mark.parametrize(
    "text", ["nonsense", "{}", '{"nftables": 3}', '{"nftables": [{"rule": 1}]}']
)
def test_what_is_no_rule_set_is_said(text: str) -> None:
    with pytest.raises(nft.NotRead):
        nft.parse(text)


IPTABLES = """\
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -j DROP
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:jobs - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "it's ssh" -j ACCEPT
-A INPUT -s 10.0.0.0/24 -j jobs
-A INPUT -p udp -m pkttype --pkt-type multicast -m udp --dport 5353 -j ACCEPT
-A INPUT -j LOG --log-prefix "dropped: "
-A jobs -p tcp -m multiport --dports 29490,29500:29999 -j ACCEPT
-A jobs ! -i eth0 -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""


def test_iptables() -> None:
    chains = iptables.parse(IPTABLES, 4)
    assert judge(chains, tcp(22, ipaddress.ip_address("8.8.8.8"))) == "accept"
    assert judge(chains, tcp(29_490)) == "accept"
    assert judge(chains, tcp(29_700)) == "accept"
    assert judge(chains, tcp(29_491)) == "drop"
    assert judge(chains, tcp(29_700, ipaddress.ip_address("10.0.1.7"))) == "drop"
    assert judge(chains, MDNS) == "accept"
    assert judge(chains, tcp(29_491, PEER6)) == "accept"  # not of this family
    assert judge(iptables.parse("", 4), tcp(1)) == "accept"


def test_iptables_that_is_not_understood_is_perhaps() -> None:
    text = "*filter\n:INPUT DROP [0:0]\n-A INPUT -m geoip --source-country DE -j ACCEPT\nCOMMIT\n"
    assert judge(iptables.parse(text, 4), tcp(1)) == "perhaps"
    queued = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j NFQUEUE --queue-num 0\nCOMMIT\n"
    assert judge(iptables.parse(queued, 4), tcp(1)) == "perhaps"


# ---------------------------------------------------------------- whatever the tools print

WORDS = st.sampled_from(
    [
        "input",
        "filter",
        "inet",
        "ip6",
        "drop",
        "tcp",
        "@ports",
        "10.0.0.7",
        "eth*",
        "",
        "th",
        "dport",
    ]
)
ATOMS = WORDS | st.none() | st.booleans() | st.integers(-1, 70_000) | st.text(max_size=4)
KINDS = st.sampled_from(
    [
        "match",
        "accept",
        "jump",
        "goto",
        "vmap",
        "xt",
        "limit",
        "reject",
        "set",
        "prefix",
        "range",
        "elem",
        "payload",
        "meta",
        "ct",
        "fib",
        "target",
        "data",
        "key",
        "op",
        "left",
        "right",
        "protocol",
        "field",
        "addr",
        "len",
        "val",
        "result",
        "flags",
    ]
)
JSON = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KINDS, inner, max_size=4),
    max_leaves=10,
)
OPERATORS = st.sampled_from(["==", "!=", "<", ">=", "in", "&"])
LEFTS = st.sampled_from([dport(), saddr(), {"meta": {"key": "iifname"}}, STATE["match"]["left"]])
STATEMENTS = (
    st.builds(match, LEFTS | JSON, JSON, OPERATORS)
    | st.dictionaries(KINDS, JSON, max_size=2)
    | st.builds(lambda key, data: {"vmap": {"key": key, "data": data}}, LEFTS, JSON)
)


@given(st.lists(STATEMENTS, max_size=4), JSON)
def test_whatever_nft_prints_is_judged_or_not_read(expr: list[Any], elements: object) -> None:
    where = {"family": "inet", "table": "filter"}
    hook = {"name": "input", "hook": "input", "type": "filter", "policy": "drop"}
    entries = [
        {"chain": where | hook},
        {"rule": where | {"chain": "input", "expr": expr}},
        {"set": where | {"name": "ports", "elem": elements}},
    ]
    for said in ({"nftables": entries}, {"nftables": elements}, elements):
        try:
            chains = nft.parse(msgspec.json.encode(said).decode())
        except nft.NotRead:
            continue
        assert {judge(chains, packet) for packet in (tcp(29_490), tcp(1, PEER6), MDNS)} <= VERDICTS


@given(
    st.lists(
        st.sampled_from(["*filter", ":INPUT DROP [0:0]", ":", "-A ", "-A INPUT", "COMMIT"])
        | st.builds("-A INPUT {}".format, st.text(max_size=20))
        | st.lists(
            st.sampled_from(
                [
                    "-A",
                    "INPUT",
                    "!",
                    "-p",
                    "tcp",
                    "-s",
                    "10.0.0.0/99",
                    "-j",
                    "DROP",
                    "--dport",
                    "1:",
                    ":",
                    "²",
                    "-g",
                    "--dst-type",
                    "-m",
                    "'",
                    "-i",
                    "eth+",
                ]
            ),
            max_size=8,
        ).map(" ".join),
        max_size=6,
    )
)
def test_whatever_iptables_prints_is_judged(lines: list[str]) -> None:
    chains = iptables.parse("\n".join(["*filter", *lines]), 4)
    assert {judge(chains, packet) for packet in (tcp(29_490), MDNS)} <= VERDICTS


VERDICTS = {"accept", "drop", "perhaps"}
