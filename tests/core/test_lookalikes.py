"""IDs that are equal but for case or Unicode form: two jobs, and whoever waits is told."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mingled.core import lookalikes
from mingled.core.secrets import label_of
from mingled.core.words import JobId
from mingled.errors import BadInput
from tests.core.stage import Stage, noticed, ready

NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ("bert", "Bert", "case"),
        ("straße", "STRASSE", "case"),
        (NFC, NFD, "Unicode form"),
        ("bert", "\uff42ert", "Unicode form"),
        (NFC, NFD.upper(), "case and Unicode form"),
        ("bert", "bert", None),
        ("bert", "bert2", None),
        ("bert", "ber", None),
    ],
)
def test_fault_40_what_two_ids_differ_in(one: str, other: str, what: str | None) -> None:
    assert lookalikes.difference(one, other) == lookalikes.difference(other, one) == what


@given(st.text(), st.text())
def test_fault_40_any_two_texts(one: str, other: str) -> None:
    assert (lookalikes.difference(one, other) is None) or one != other
    assert lookalikes.sentence(one, one, "here is") == ""


@given(st.text(min_size=1, max_size=20))
def test_fault_40_identity_is_byte_exact(text: str) -> None:
    forms = {text, text.swapcase(), unicodedata.normalize("NFD", text)}
    try:
        jobs = [JobId(form) for form in forms]
    except BadInput:
        return
    assert len(set(jobs)) == len({label_of(job) for job in jobs}) == len(forms)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("bert", "Bert", ("bert", "Bert", "case")),
        (NFC, NFD, (ascii(NFC), ascii(NFD), "Unicode form")),
    ],
)
def test_fault_40_two_of_one_user_are_two_jobs_and_both_are_told(
    one: str, other: str, words: tuple[str, str, str]
) -> None:
    stage = Stage(2)
    first = stage.join(1, job=JobId(one), rank=0)
    stage.wait(0.5)
    second = stage.join(1, job=JobId(other), rank=1)
    stage.wait(0.5)
    mine, theirs, what = words
    tail = f"in {what} alone: these are two jobs; give every machine the same ID, letter for letter"
    assert noticed(first) == [
        f"job {one}: gpu1 also has the job {theirs}, which differs from {mine} {tail}"
    ]
    assert noticed(second) == [
        f"job {other}: gpu1 also has the job {mine}, which differs from {theirs} {tail}"
    ]
    assert first.waits
    assert second.waits
    assert len(stage.core(1).jobs) == 2
    # Neither was held up by that.
    others = [stage.join(2, job=JobId(one), rank=1), stage.join(2, job=JobId(other), rank=0)]
    stage.wait(2.0)
    assert [ready(c).rank for c in (first, second, *others)] == [0, 1, 1, 0]


def test_fault_40_another_users_job_is_not_named() -> None:
    stage = Stage(1)
    hers = stage.join(1, job=JobId("Secret"), user="eve")
    mine = stage.join(1, job=JobId("secret"))
    stage.wait(0.5)
    assert noticed(hers) == noticed(mine) == []


def test_fault_40_one_that_another_machine_leads_is_named_with_the_hint() -> None:
    stage = Stage(2)
    stage.join(2, job=JobId("Bert"), rank=0)
    vain = stage.join(1, job=JobId("bert"), rank=1)
    stage.wait(15.0)
    assert noticed(vain)[0] == (
        "job bert: another machine has the job Bert, which differs from bert in case alone: these "
        "are two jobs; give every machine the same ID, letter for letter"
    )
    alone = stage.join(1, job=JobId("gpt"), rank=1)
    stage.wait(15.0)
    assert len(noticed(alone)) == 1
    assert "another machine has" not in noticed(alone)[0]
