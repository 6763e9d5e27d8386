"""What a job's name becomes."""

from __future__ import annotations

import pytest

from mingled.core.secrets import NO_KEY_ID, hkdf, key_id_of, label_of
from mingled.core.words import JOB_ID_BYTES_MAX, JobId


def test_hkdf_rfc_5869_test_case_3() -> None:
    """SHA-256, salt and info empty."""
    okm = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert hkdf(b"\x0b" * 22, b"", 42).hex() == okm


def test_labels_differ_by_job_and_by_key() -> None:
    jobs = [JobId(text) for text in ("bert", "Bert", "bert2")]
    keys = (b"", b"k", b"kb")
    labels = {label_of(job, key) for job in jobs for key in keys}
    assert len(labels) == len(jobs) * len(keys)
    assert label_of(JobId("ert"), b"b") != label_of(JobId("bert"))
    assert label_of(JobId("bert")) == label_of(JobId("bert"))


@pytest.mark.parametrize(
    "job", ["../../etc", ".", "a.b._tcp.local.", "日本", "*", "x" * JOB_ID_BYTES_MAX, "a b"]
)
def test_fault_39_any_job_has_a_harmless_label(job: str) -> None:
    """Of base32 alone, whatever the job is called, and short enough for DNS."""
    label = label_of(JobId(job))
    assert len(label) == 26
    assert set(label) <= set("abcdefghijklmnopqrstuvwxyz234567")


def test_key_ids() -> None:
    assert key_id_of() == NO_KEY_ID
    assert key_id_of(b"a") != key_id_of(b"b")
    assert len(key_id_of(b"a")) == 4
