"""What is stated, compared and said of software: no network, no files."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mingled.core import local, messages
from mingled.core.codec import encode
from mingled.core.software import (
    ITEMS,
    ITEMS_MAX,
    NODES_NAMED_MAX,
    SENTENCE_CHARS_MAX,
    VALUE_CHARS_MAX,
    Party,
    Software,
    Stated,
    differences,
    own_flaw,
    same,
    same_conflict,
    wanted,
)
from mingled.errors import BadInput
from tests.core import samples

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


def party(host: str, *, at: str = "", pid: int = 1, **values: Any) -> Party:
    return Party(host=host, address=at or f"of {host}", pid=pid, software=Software(**values))


def silent(host: str) -> Party:
    return Party(host=host, address=host, pid=1, software=None)


# ---------------------------------------------------------------- what differs


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("2.13.0", "2.13.0", "2.11.0"), "gpu3 runs torch 2.11.0, the others 2.13.0"),
        (("2.13.0", "2.11.0"), "gpu1 runs torch 2.13.0, gpu2 2.11.0"),
        (
            ("2.13.0", "2.11.0", "2.11.0", "2.13.0"),
            "gpu1 and gpu4 run torch 2.13.0, gpu2 and gpu3 2.11.0",
        ),
        (
            ("2.11.0", "2.13.0", "2.12.0", "2.13.0", "2.13.0"),
            "gpu1 runs torch 2.11.0, gpu3 2.12.0, the others 2.13.0",
        ),
        (("2.13.0", None), "torch of gpu2 is not known, gpu1 runs torch 2.13.0"),
        (
            (None, "2.13.0", None, "2.13.0", "2.13.0"),
            "torch of gpu1 and gpu3 is not known, the others run torch 2.13.0",
        ),
        (
            ("1", "2", "3", "4", "5"),
            "gpu1 runs torch 1, gpu2 2, gpu3 3, gpu4 4, and there are 1 more",
        ),
    ],
)
def test_the_odd_ones_are_named(values: tuple[str | None, ...], says: str) -> None:
    some = [party(f"gpu{n}", torch=value) for n, value in enumerate(values, 1)]
    assert differences(some) == (says,)


def test_nothing_is_said_of_what_is_the_same_or_known_of_nobody() -> None:
    assert differences([]) == ()
    assert differences([party("gpu1", torch="2.13.0")]) == ()
    assert differences([party(f"gpu{n}", torch="2.13.0") for n in range(5)]) == ()
    assert differences([silent("gpu1"), silent("gpu2")]) == ()
    assert differences([silent("gpu1"), party("gpu2")]) == ()


def test_each_item_has_a_sentence() -> None:
    for item, noun in ITEMS.items():
        values: list[dict[str, Any]] = [{item: text, "dirty": False} for text in ("1", "2")]
        some = [party(f"gpu{text[item]}", **text) for text in values]
        assert differences(some) == (f"gpu1 runs {noun} 1, gpu2 2",)


def test_why_something_is_not_known_is_said() -> None:
    lacks = party("gpu2", why=(("torch", "no torch is found for its Python"),))
    known = party("gpu1", torch="2.13.0")
    (sentence,) = differences([known, lacks])
    assert sentence == (
        "torch of gpu2 is not known (no torch is found for its Python), gpu1 runs torch 2.13.0"
    )
    (sentence,) = differences([known, silent("gpu3")])
    assert "gpu3 is not known (its mingled does not say)" in sentence
    (sentence,) = differences([known, lacks, silent("gpu3")])
    assert "(" not in sentence, "two reasons, so neither is said of both"


@pytest.mark.parametrize("item", ["cmd", "script"])
def test_a_command_that_cannot_be_told_is_no_difference(item: str) -> None:
    values: list[dict[str, Any]] = [{item: text} for text in ("a", "b")]
    known, other = party("gpu1", **values[0]), party("gpu3", **values[1])
    assert differences([known, party("gpu2")]) == ()
    (sentence,) = differences([known, party("gpu2"), other])
    assert "of gpu2 is not known" in sentence


def test_built_without_cuda() -> None:
    some = [party("gpu1", cuda="none"), party("gpu2", cuda="12.8"), party("gpu3", cuda="12.8")]
    assert differences(some) == ("gpu1 runs no CUDA, the others 12.8",)
    assert differences(some[:2]) == ("gpu1 runs no CUDA, gpu2 12.8",)
    assert differences(some[1::-1]) == ("gpu2 runs CUDA 12.8, gpu1 none",)


def test_uncommitted_changes() -> None:
    clean = party("gpu1", git=COMMIT, dirty=False)
    dirty = [party(f"gpu{n}", git=COMMIT, dirty=True) for n in (2, 3)]
    (sentence,) = differences([clean, dirty[0]])
    assert sentence == (
        "gpu1 runs git commit 0123456789ab, gpu2 0123456789ab with uncommitted changes"
    )
    assert differences(dirty) == (), "whoever develops has changes everywhere: no news"
    (sentence,) = differences([clean, party("gpu4", git=COMMIT)])
    assert "gpu4 0123456789ab, perhaps with changes" in sentence


def test_nodes_that_share_a_name_are_told_apart() -> None:
    clones = [party("gpu", at=f"10.0.0.{n}", torch=str(n)) for n in (1, 2)]
    assert differences(clones) == ("gpu (10.0.0.1) runs torch 1, gpu (10.0.0.2) 2",)
    two = [party("gpu1", pid=n, script=str(n)) for n in (41, 42)]
    assert differences(two) == ("gpu1 (pid 41) runs script 41, gpu1 (pid 42) 42",)


def test_a_sentence_stays_short_however_many_there_are() -> None:
    many = [party(f"gpu{n}", torch="2.11.0" if n % 2 else "2.13.0") for n in range(1000)]
    (sentence,) = differences(many)
    assert sentence.count("gpu") == 2 * NODES_NAMED_MAX
    assert f"and {500 - NODES_NAMED_MAX} more run torch 2.13.0" in sentence
    long = [party("h" * 250 + str(n), torch=str(n)) for n in range(9)]
    assert all(len(sentence) <= SENTENCE_CHARS_MAX for sentence in differences(long))


# ---------------------------------------------------------------- what is required


@pytest.mark.parametrize(
    ("item", "mine", "theirs", "expected"),
    [
        ("torch", {"torch": "1"}, {"torch": "1"}, True),
        ("torch", {"torch": "1"}, {"torch": "2"}, False),
        ("torch", {"torch": "1"}, {}, None),
        ("torch", {}, {}, None),
        ("git", {"git": COMMIT, "dirty": False}, {"git": COMMIT, "dirty": False}, True),
        ("git", {"git": COMMIT, "dirty": True}, {"git": COMMIT, "dirty": False}, False),
        ("git", {"git": COMMIT, "dirty": True}, {"git": COMMIT, "dirty": True}, None),
        ("git", {"git": COMMIT, "dirty": None}, {"git": COMMIT, "dirty": False}, None),
        ("git", {"git": COMMIT, "dirty": True}, {"git": OTHER, "dirty": True}, False),
        ("git", {"git": COMMIT, "dirty": None}, {"git": OTHER, "dirty": False}, False),
        ("git", {"dirty": False}, {"dirty": False}, None),
        ("from a newer mingled", {}, {}, None),
    ],
)
def test_same(
    item: str, mine: dict[str, Any], theirs: dict[str, Any], expected: bool | None
) -> None:
    a, b = Software(**mine), Software(**theirs)
    assert same(item, a, b) is same(item, b, a) is expected


HERE, THERE = "gpu1 (10.0.0.1)", "gpu3 (10.0.0.3)"


def conflict(mine: Stated, theirs: Stated) -> str | None:
    found = same_conflict(mine, theirs, here=HERE, there=THERE)
    assert (same_conflict(theirs, mine, here=THERE, there=HERE) is None) == (found is None)
    return found


def test_a_difference_is_a_conflict_for_whoever_asks() -> None:
    old, new = Software(torch="2.11.0", cuda="1"), Software(torch="2.13.0", cuda="2")
    asks = ("torch",)
    assert conflict(Stated(new), Stated(old)) is None
    assert conflict(Stated(new, asks), Stated(new, asks)) is None
    assert conflict(Stated(new, asks), Stated(old)) == (
        "gpu3 (10.0.0.3) runs torch 2.11.0, gpu1 (10.0.0.1) 2.13.0, and gpu1 (10.0.0.1) asks for "
        "the same (--require-same torch): make them the same, or ask for less"
    )
    assert "and gpu3 (10.0.0.3) asks for" in str(conflict(Stated(new), Stated(old, asks)))
    both = str(conflict(Stated(new, asks), Stated(old, ("cuda",))))
    assert "gpu3 (10.0.0.3) and gpu1 (10.0.0.1) ask for the same" in both
    assert "--require-same torch,cuda" in both


@pytest.mark.parametrize("software", [Software(why=(("torch", "none is found"),)), None])
def test_what_is_not_known_is_a_conflict_too(software: Software | None) -> None:
    asks = Stated(Software(torch="2.13.0"), ("torch",))
    sentence = str(conflict(asks, Stated(software)))
    reason = "none is found" if software else "its mingled does not say"
    assert f"gpu3 (10.0.0.3): its torch is not known ({reason}), and gpu1" in sentence
    assert conflict(Stated(Software()), Stated(software)) is None


def test_two_changed_folders_are_not_the_same() -> None:
    dirty = Stated(Software(git=COMMIT, dirty=True), ("git",))
    sentence = str(conflict(dirty, dirty))
    assert "its git commit 0123456789ab with uncommitted changes may be anything" in sentence
    slow = Software(git=COMMIT, why=(("git", "git status took more than 2 s"),))
    sentence = str(conflict(Stated(Software(git=COMMIT, dirty=False), ("git",)), Stated(slow)))
    assert "perhaps with changes may be anything (git status took more than 2 s)" in sentence


def test_whoever_requires_must_know_its_own() -> None:
    assert own_flaw(Stated(None)) is None
    assert own_flaw(Stated(Software(torch="2.13.0"), ("torch",))) is None
    sentence = own_flaw(Stated(Software(why=(("git", "no repository"),)), ("torch", "git")))
    assert sentence is not None
    assert "its torch is not known; its git commit is not known (no repository)" in sentence
    newer = own_flaw(Stated(Software(torch="1"), ("weather",)))
    assert "cannot compare weather: install the same mingled" in str(newer)


def test_the_names_that_a_user_gives() -> None:
    assert wanted(["git, torch", "CUDA"]) == ("torch", "cuda", "git")
    assert wanted(["all"]) == tuple(ITEMS)
    assert wanted([""]) == ()
    with pytest.raises(BadInput, match=r"job bert: --require-same 'tourch': there are python, tor"):
        wanted(["torch,tourch"], "job bert: ")


# ---------------------------------------------------------------- from the wire


@pytest.mark.parametrize(
    "values",
    [
        {"torch": ""},
        {"torch": "1" * (VALUE_CHARS_MAX + 1)},
        {"torch": "2.13\x1b[2J"},
        {"driver": "5\u202e50"},
        {"git": "\u00e9"},
        {"why": (("torch", "line\nbreak"),)},
        {"why": (("torch", "x" * 1000),)},
        {"why": (("torch", "x"),) * (ITEMS_MAX + 1)},
    ],
)
def test_values_that_nobody_should_read(values: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Software(**values)


@pytest.mark.parametrize("items", [("x" * 100,), ("a\x1b",), ("torch",) * (ITEMS_MAX + 1)])
def test_requirements_that_are_none(items: tuple[str, ...]) -> None:
    line = encode(samples.PEER[0]).replace(
        b'"require_same":["torch","git"]', b'"require_same":' + msgspec.json.encode(items)
    )
    with pytest.raises(BadInput):
        messages.peer_decoder.decode(line)


def test_older_sides_say_nothing_of_it() -> None:
    line = b'{"type":"join","job":"bert","form":"process","size_min":1,"size_max":1}'
    join = local.request_decoder.decode(line)
    assert isinstance(join, local.Join)
    assert (join.software, join.require_same) == (None, ())
