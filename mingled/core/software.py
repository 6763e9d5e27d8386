"""What software a participant would run: stated with its join, and compared by whoever leads.

A value that is not known is neither the same as another nor different from it. Where somebody asks
for the same (`require_same`), that is not enough, and the later comer is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from mingled.core.peers import listed
from mingled.errors import BadInput

ITEMS: dict[str, str] = {
    "python": "Python",
    "torch": "torch",
    "cuda": "CUDA",
    "nccl": "NCCL",
    "driver": "NVIDIA driver",
    "git": "git commit",
    "cmd": "CMD",
    "script": "script",
}
"""What is compared: the name that `--require-same` knows, and the one in sentences."""

EVERYTHING = "all"

NONE = "none"
"""A value: torch was built without it."""

VALUE_CHARS_MAX = 64
"""The longest version of torch that a build from source gives has about 40 characters."""

WHY_CHARS_MAX = 120
"""Why a value is not known."""

ITEMS_MAX = 32
"""Named by one participant; a newer side may know more than we do."""

COMMIT_CHARS_SHOWN = 12

NODES_NAMED_MAX = 8
"""With one value: people read no more."""

VALUES_SHOWN_MAX = 4
"""Of one item."""

SENTENCE_CHARS_MAX = 800
"""Host names have up to 255 characters each."""

UNSAID = "its mingled does not say"


class Software(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One participant's. None: not known, and `why` may say why. Texts are printable ASCII."""

    python: str | None = None  #: as in 3.11.9
    torch: str | None = None  #: as in 2.13.0+cpu
    cuda: str | None = None  #: that torch was built for: 12.8, rocm 6.4, none
    nccl: str | None = None  #: 2.27.3, or none where torch was built without CUDA
    driver: str | None = None  #: of NVIDIA's kernel module
    git: str | None = None  #: the commit checked out in the working folder, hexadecimal
    dirty: bool | None = None  #: tracked files differ from that commit
    cmd: str | None = None  #: the start of a hash of CMD's words
    script: str | None = None  #: the start of the SHA-256 of the script's content
    why: tuple[tuple[str, str], ...] = ()  #: items that are not known, with the reason

    def __post_init__(self) -> None:
        for item in ITEMS:
            value = getattr(self, item)
            if value is not None and not _is_plain(value, VALUE_CHARS_MAX):
                raise BadInput(f"{item} {value[:VALUE_CHARS_MAX]!a} is no version and no hash")
        if len(self.why) > ITEMS_MAX:
            raise BadInput(f"{len(self.why)} reasons, at most {ITEMS_MAX} allowed")
        for item, reason in self.why:
            if not (_is_plain(item, VALUE_CHARS_MAX) and _is_plain(reason, WHY_CHARS_MAX)):
                raise BadInput(f"{item[:VALUE_CHARS_MAX]!a}: no reason that can be shown")

    def reason(self, item: str) -> str:
        """Why it is not known; empty where nobody said."""
        return dict(self.why).get(item, "")

    def shown(self, item: str) -> str | None:
        """The value as people read it; None where it is not known."""
        value: str | None = getattr(self, item)
        if item != "git" or value is None:
            return value
        commit = value[:COMMIT_CHARS_SHOWN]
        if self.dirty is None:
            return f"{commit}, perhaps with changes"
        return f"{commit} with uncommitted changes" if self.dirty else commit


def _is_plain(text: str, chars_max: int) -> bool:
    return 0 < len(text) <= chars_max and text.isascii() and text.isprintable()


UNKNOWN = Software()


class Stated(msgspec.Struct, frozen=True):
    """Who states what, for sentences and comparisons."""

    software: Software | None
    require_same: tuple[str, ...] = ()


# ---------------------------------------------------------------- what is to be the same


def wanted(texts: Iterable[str], who: str = "") -> tuple[str, ...]:
    """The items that a user names, commas or blanks between, in our order; `all` is all of them.
    Raises `BadInput`."""
    words = [word.lower() for word in listed(texts)]
    check_known(words, who)
    return tuple(item for item in ITEMS if item in words or EVERYTHING in words)


def check_known(items: Iterable[str], who: str = "") -> None:
    """Each is one that we can compare; `BadInput` otherwise."""
    unknown = [item for item in items if item not in ITEMS and item != EVERYTHING]
    if unknown:
        raise BadInput(
            f"{who}--require-same {unknown[0][:VALUE_CHARS_MAX]!a}: there are "
            f"{', '.join(ITEMS)} and {EVERYTHING}"
        )


def check_items(items: Sequence[str]) -> None:
    """From a peer, which may know more of them than we do: only their size counts."""
    if len(items) > ITEMS_MAX or not all(_is_plain(item, VALUE_CHARS_MAX) for item in items):
        raise BadInput("what is required to be the same is no list of names")


def same(item: str, mine: Software, theirs: Software) -> bool | None:
    """None where nobody can know: two checkouts of one commit, both changed, may differ."""
    if item not in ITEMS:
        return None
    values = getattr(mine, item), getattr(theirs, item)
    if None in values:
        return None
    if values[0] != values[1]:
        return False
    if item != "git" or (mine.dirty, theirs.dirty) == (False, False):
        return True
    return False if {mine.dirty, theirs.dirty} == {True, False} else None


def own_flaw(one: Stated) -> str | None:
    """Why nobody can ever meet what this one requires: it does not know its own value."""
    software = one.software or UNKNOWN
    unsure = [item for item in one.require_same if same(item, software, software) is not True]
    lacking = [_not_sure(item, software) for item in unsure]
    if not lacking:
        return None
    return (
        f"{'; '.join(lacking)}, and --require-same {','.join(one.require_same)} asks for the same "
        "everywhere; mend that, or ask for less"
    )


def same_conflict(mine: Stated, theirs: Stated, *, here: str, there: str) -> str | None:
    """Why the two cannot be in one round since one of them requires the same, naming both sides;
    None if they can."""
    if not (mine.require_same or theirs.require_same):
        return None
    a, b = theirs.software or UNKNOWN, mine.software or UNKNOWN
    required = dict.fromkeys((*mine.require_same, *theirs.require_same))
    flaws = {}
    for item in required:
        is_same = same(item, a, b)
        if is_same is False:
            flaws[item] = f"{there} {_runs(item, a.shown(item), 1)}, {here} {b.shown(item)}"
        elif is_same is None:
            where, unsure = (there, a) if same(item, a, a) is not True else (here, b)
            flaws[item] = f"{where}: {_not_sure(item, unsure)}"
    if not flaws:
        return None
    askers = [
        where
        for where, one in ((there, theirs), (here, mine))
        if not flaws.keys().isdisjoint(one.require_same)
    ]
    asks = "asks" if len(askers) == 1 else "ask"
    return (
        f"{'; '.join(flaws.values())}, and {' and '.join(askers)} {asks} for the same "
        f"(--require-same {','.join(flaws)}): make them the same, or ask for less"
    )


def _not_sure(item: str, software: Software) -> str:
    """`its torch is not known (...)`, `its git commit 0123 with uncommitted changes is ...`."""
    noun = ITEMS.get(item)
    if noun is None:
        return f"its mingled cannot compare {item}: install the same mingled"
    shown = software.shown(item)
    if shown is not None:
        reason = software.reason(item)
        return f"its {noun} {shown} may be anything" + (f" ({reason})" if reason else "")
    reason = software.reason(item) or (UNSAID if software == UNKNOWN else "")
    return f"its {noun} is not known" + (f" ({reason})" if reason else "")


def _runs(item: str, shown: str | None, nodes: int) -> str:
    """`runs torch 2.11.0`, `run no CUDA`."""
    verb = "runs" if nodes == 1 else "run"
    return f"{verb} no {ITEMS[item]}" if shown == NONE else f"{verb} {ITEMS[item]} {shown}"


# ---------------------------------------------------------------- what differs


class Party(msgspec.Struct, frozen=True, kw_only=True):
    """One participant of a round, by the names that its node has for people."""

    host: str
    address: str
    pid: int
    software: Software | None


MAY_BE_UNKNOWN = ("cmd", "script")
"""Of a notebook, or behind a shell: that alone is no difference."""


def differences(parties: Sequence[Party]) -> tuple[str, ...]:
    """What is not the same for all, a sentence for each item: `gpu3 runs torch 2.11.0, the others
    2.13.0`. Empty where nothing differs, or nothing is known of anybody."""
    if len(parties) < 2 or all(p.software is None for p in parties):
        return ()
    sentences = (_difference(item, parties) for item in ITEMS)
    return tuple(sentence[:SENTENCE_CHARS_MAX] for sentence in sentences if sentence)


def _difference(item: str, parties: Sequence[Party]) -> str:
    by_value: dict[str | None, list[Party]] = {}
    for party in parties:
        shown = (party.software or UNKNOWN).shown(item)
        by_value.setdefault(shown, []).append(party)
    known = by_value.keys() - {None}
    if len(known) < 2 and (len(by_value) == 1 or item in MAY_BE_UNKNOWN):
        return ""
    names = _names(by_value)
    unknown = names.pop(None, [])
    nodes = sum(map(len, names.values())) + len(unknown)
    usual = max(names, key=lambda value: len(names[value]))
    if len(names[usual]) > 1 and 2 * len(names[usual]) > nodes:
        groups = [(_listed(some), len(some), value) for value, some in names.items()]
        groups = [group for group in groups if group[2] != usual][: VALUES_SHOWN_MAX - 1]
        groups.append(("the others", 2, usual))
    else:
        groups = [(_listed(some), len(some), value) for value, some in names.items()]
        groups = groups[:VALUES_SHOWN_MAX]
    phrases = [f"{who} {value}" for who, _, value in groups]
    who, count, value = groups[0]
    phrases[0] = f"{who} {_runs(item, value, count)}"
    if len(names) > len(groups):
        phrases.append(f"and there are {len(names) - len(groups)} more")
    if unknown:
        reasons = {_reason(party, item) for party in by_value[None]}
        reason = f" ({reasons.pop()})" if len(reasons) == 1 and "" not in reasons else ""
        phrases.insert(0, f"{ITEMS[item]} of {_listed(unknown)} is not known{reason}")
    return ", ".join(phrases)


def _reason(party: Party, item: str) -> str:
    return UNSAID if party.software is None else party.software.reason(item)


def _names(by_value: dict[str | None, list[Party]]) -> dict[str | None, list[str]]:
    """Each node once: with its address where two share a host name, with the process where one has
    two values."""
    addresses: dict[str, set[str]] = {}
    values: dict[tuple[str, str], set[str | None]] = {}
    for value, some in by_value.items():
        for party in some:
            addresses.setdefault(party.host, set()).add(party.address)
            values.setdefault((party.host, party.address), set()).add(value)

    def name(party: Party) -> str:
        more = [party.address] if len(addresses[party.host]) > 1 and party.address else []
        if len(values[party.host, party.address]) > 1:
            more.append(f"pid {party.pid}")
        return f"{party.host} ({', '.join(more)})" if more else party.host

    return {value: list(dict.fromkeys(map(name, some))) for value, some in by_value.items()}


def _listed(names: list[str]) -> str:
    more = len(names) - NODES_NAMED_MAX
    if more > 0:
        return f"{', '.join(names[:NODES_NAMED_MAX])} and {more} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
