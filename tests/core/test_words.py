"""Words are valid once they exist."""

from __future__ import annotations

import pytest

from mingled.core.words import JOB_ID_BYTES_MAX, JobId, Label, NodeId, Nonce
from mingled.errors import BadInput


@pytest.mark.parametrize(
    "text", ["bert", "a/b/../c", "Größe 7", "日本", ".", "x" * JOB_ID_BYTES_MAX]
)
def test_fault_39_job_ids_that_work(text: str) -> None:
    assert JobId(text) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("x" * 256, "256 bytes"),
        ("ä" * 128, "256 bytes"),
        ("a\nb", r"U\+000A"),
        ("a\0b", r"U\+0000"),
        ("a\x1b[31m", r"U\+001B"),
        ("a\u202eb", r"U\+202E"),
        ("\udc80", "not valid Unicode"),
    ],
)
def test_fault_39_job_ids_that_cannot_work(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        JobId(text)


def test_fault_40_identity_is_byte_exact() -> None:
    assert JobId("Bert") != JobId("bert")
    assert JobId("\u00e9") != JobId("e\u0301")


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "G" * 32, "0" * 31 + "\n"])
def test_identifiers_are_32_hex_digits(text: str) -> None:
    for kind in (NodeId, Nonce):
        with pytest.raises(BadInput, match=kind.__name__):
            kind(text)


def test_labels() -> None:
    assert Label("a" * 26) == "a" * 26
    with pytest.raises(BadInput, match="label"):
        Label("A" * 26)
