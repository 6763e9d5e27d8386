"""Any value that a type allows, out of small pools, so that what is said now and what was said
before often mean the same job, claim, node, rank or address."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, cast

import msgspec

from mingled.core.codec import VERSION
from mingled.core.secrets import label_of, node_realms_of, secret_of
from mingled.core.words import Form, JobId, Label, NodeId, Nonce, ParticipantId
from tests.fuzz.choices import Choices

JOBS = tuple(JobId(name) for name in ("bert", "gpt", "läuft", "x" * 255))
KEYS = (b"k" * 32, b"q" * 32)
LABELS = (
    *(label_of(job, key) for key in (b"", *KEYS) for job in JOBS[:2]),
    *(realm.label for realm in node_realms_of(KEYS)),
)
OWN_NODE = NodeId("0" * 31 + "1")
NODES = (OWN_NODE, NodeId("e" * 32), NodeId("f" * 32))
OWN_ADDRESSES = ("10.0.0.1", "fd00::1", "172.17.0.1")
ADDRESSES = ("10.0.0.2", *OWN_ADDRESSES, "10.0.0.3", "fe80::2%eth0", "127.0.0.1", "")
POOL_MAX = 16
"""Nonces of one kind that are remembered; the oldest go."""

TEXTS = (
    "",
    "gpu2",
    "gpu1",
    "\x1b]0;owned\x07\x1b[2J",
    "a\r\nb\x00c",
    "{0} %s $(reboot) `id` '",
    "\u202etxt.exe",
    "x" * 2_000,
)

_INTS: dict[str, tuple[int, ...]] = {
    "round": (1, 0, 2, 3, -1, 2**40, 10**4299, 10**4300 - 1),
    "newer": (2, 0, 1, -1),
    "rank": (0, 1, 2, 3, -1, 65_535),
    "before": (0, 1, 2, -1, 65_535),
    "nproc": (1, 2, 8, 0, 4_096),
    "port": (29_490, 1, 65_535, 0, -1, 65_536),
    "ring_port": (41_873, 1, 65_535, 0),
    "master_port": (29_500, 29_501, 0, 65_535, -1),
    "uid": (1_000, 1_001, 0, -1),
    "pid": (11, 12, 13, 0, -1),
    "status": (0, 256, 9, 15, -1),
    "version": (1, 0, -1),
    "prefix": (24, 0, 64, 200),
}
_NUMBERS = (0, 1, 2, 3, 4, -1, 7, 64, 65_535, 2**31, 2**63 - 1, -(2**63), 10**20)
_FLOATS = (0.0, 1.0, 0.1, 15.5, -1.0, 3e9, 1e308)  # JSON has no infinity
_STRINGS: dict[str, tuple[str, ...]] = {
    "address": ADDRESSES,
    "addresses": ADDRESSES,
    "source": ADDRESSES,
    "sources": ADDRESSES,
    "seen_address": ADDRESSES,
    "met_address": ADDRESSES,
    "remote_address": ADDRESSES,
    "master_addr": ADDRESSES,
    "own": ADDRESSES,
    "job": JOBS,
    "node": NODES,
    "participant": tuple(ParticipantId(f"{n:032x}") for n in range(1, 5)),
    "user": ("ann", "bob", *TEXTS),
    "identity": ("11", "12", "13"),
    "ancestors": ("11", "12", "13"),
    "interface": ("eth0", "docker0", "lo", ""),
    "interfaces": ("eth0", "10.0.0.1", "nope"),
    "subnets": ("10.0.0.0/24", "fd00::/64", "10.0.0.0/99", "nope"),
    "peers": ("gpu7", "[fd00::7]:29491", "10.0.0.2:1", ":::"),
    "require_same": ("torch", "git", "cmd", "all", "nonsense"),
    "code": ("stale", "refused", "conflict", "closed", "version", "nonsense"),
    "torch": ("2.13.0", "2.11.0", "", "\x1b"),
    "secret": ("", "", secret_of(b"ours"), "no secret"),
    "key_id": ("none", "4f2a", *TEXTS),
}

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cast(type, kind))


@cache
def _fields(kind: Hashable) -> tuple[tuple[str, bool], ...]:
    """Names, and whether each must be given."""
    return tuple((field.name, field.required) for field in msgspec.structs.fields(cast(Any, kind)))


@cache
def _origin(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(hint), typing.get_args(hint)


class Values:
    """`claims`, `proofs`, `labels`, `participants` and `tokens` hold what the core itself has said,
    newest first, so that what is made up is often true."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.claims: list[Nonce] = [Nonce("c" * 32), Nonce("0" * 32)]
        self.proofs: list[Nonce] = [Nonce("a" * 32)]
        self.labels: list[Label] = []
        self.tokens: list[str] = ["t0ken"]
        self.participants: list[ParticipantId] = [ParticipantId("9" * 32)]

    def learn(self, pool: list[T], value: T) -> None:
        if value not in pool:
            pool.insert(0, value)
            del pool[POOL_MAX:]

    def struct(self, kind: type[S], **fixed: Any) -> S:
        """Raises `BadInput` where what was chosen cannot be: no decoder would give it either."""
        made: dict[str, Any] = {}
        hints = _hints(kind)
        if "size_min" in hints and "form" in hints:
            made |= self._shape()
        made |= fixed
        for name, required in _fields(kind):
            if name not in made and (required or self.choices.chance(64)):
                made[name] = self.make(hints[name], name)
        return kind(**made)

    def altered(self, whole: S, name: str) -> S:
        """With another value of that field, or of one deep in it."""
        before = getattr(whole, name)
        if isinstance(before, tuple) and before and isinstance(before[0], msgspec.Struct):
            at = self.choices.below(len(before))
            inner = self.choices.pick(before[at].__struct_fields__)
            made: Any = (*before[:at], self.altered(before[at], inner), *before[at + 1 :])
        else:
            made = self.make(_hints(type(whole))[name], name)
        return msgspec.structs.replace(whole, **{name: made})

    def make(self, hint: Any, name: str) -> Any:
        origin, args = _origin(hint)
        if origin is typing.Literal:
            return self.choices.pick(args)
        if origin in (typing.Union, types.UnionType):
            if type(None) in args and not self.choices.chance(160):
                return None
            return self.make(self.choices.pick([a for a in args if a is not type(None)]), name)
        if origin is tuple and args[-1:] == (...,):
            return self.choices.some(lambda: self.make(args[0], name), 3)
        if origin is tuple:
            if name == "version" and not self.choices.chance(16):
                return VERSION
            return tuple(self.make(arg, name) for arg in args)
        if origin is frozenset:
            return frozenset(self.choices.some(lambda: self.make(args[0], name), 3))
        return self._plain(hint, name)

    def _plain(self, kind: Any, name: str) -> Any:
        if kind is bool:
            return self.choices.chance(96)
        if kind is bytes:
            return self.choices.pick(KEYS)
        if kind is float:
            return self.choices.pick(_FLOATS)
        if kind is Nonce:
            pool = self.proofs if name in ("proof", "prepared") else self.claims
            return self.choices.pick(pool)
        if kind is ParticipantId:
            return self.choices.pick(self.participants)
        if kind is Label:
            known = self.labels and not self.choices.chance(24)
            return self.choices.pick(self.labels if known else LABELS)
        if kind is NodeId:
            return self.choices.pick(NODES)
        if kind is JobId:
            return self.choices.pick(JOBS)
        if issubclass(kind, enum.Enum):
            return self.choices.pick(list(kind))
        if kind is int:
            return self.choices.pick(_INTS.get(name, _NUMBERS))
        if issubclass(kind, str):
            if name == "token":
                return self.choices.pick(self.tokens)
            return kind(self.choices.pick(_STRINGS.get(name, TEXTS)))
        if issubclass(kind, msgspec.Struct):
            return self.struct(kind)
        raise TypeError(f"{name}: {kind}")

    def _shape(self) -> dict[str, Any]:
        """Form, sizes and rank as they mostly go together."""
        form = self.choices.pick((Form.PROCESS, Form.LAUNCHER, Form.PLAIN))
        low = self.choices.pick((2, 1, 3))
        high = low + self.choices.pick((0, 0, 1, 2))
        rank = self.choices.pick((None, 0, 1, 2, None))
        if form is Form.PLAIN:
            return {"form": form, "size_min": 0, "size_max": 0, "rank": rank or 0}
        return {"form": form, "size_min": low, "size_max": high, "rank": rank}
