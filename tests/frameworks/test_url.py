"""`mingle://` URLs: what they say, and what is said of those that cannot work."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mingled.errors import BadInput
from mingled.frameworks.url import PARAMETERS, parameters


@pytest.mark.parametrize(
    ("url", "job", "options"),
    [
        ("mingle://bert", "bert", {}),
        ("mingle://bert?world_size=4", "bert", {"world_size": 4}),
        ("mingle://bert/?world_size=4&rank=0", "bert", {"world_size": 4, "rank": 0}),
        ("mingle://bert?world_size=4&rank=-1", "bert", {"world_size": 4}),
        ("mingle://Bert%3A2", "Bert:2", {}),
        ("mingle://ann%2Fbert%231?timeout=1.5", "ann/bert#1", {"timeout": 1.5}),
        (
            "mingle://bert?any_user=1&wait=false&interface=eth1,eth2&subnet=10.0.0.0/24",
            "bert",
            {"any_user": True, "wait": False, "interface": "eth1,eth2", "subnet": "10.0.0.0/24"},
        ),
        ("mingle://bert?store_interface_only=1", "bert", {"store_interface_only": True}),
        ("mingle://bert?peers=gpu1,[fd00::7]:29491", "bert", {"peers": "gpu1,[fd00::7]:29491"}),
    ],
)
def test_what_a_url_says(url: str, job: str, options: dict[str, Any]) -> None:
    assert parameters(url) == (job, options)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mingle://bert:29500?world_size=2", "no port is needed"),
        ("mingle://", "want one job ID after mingle://, as in mingle://bert"),
        ("mingle:///bert", "want one job ID"),
        ("mingle://ann/bert", "want one job ID .* %2F for a slash"),
        ("mingle://bert#1", "want one job ID .* %23 for #"),
        ("mingle://[bert", "write it as in mingle://bert"),
        ("mingle://bert?world_size=four", "world_size=four: want a number"),
        ("mingle://bert?world_size=", "world_size=: want a number"),
        ("mingle://bert?rank=0&rank=1", "rank is given twice"),
        ("mingle://bert?timeout=0", "timeout=0: want seconds above 0"),
        ("mingle://bert?timeout=nan", "timeout=nan: want seconds above 0"),
        ("mingle://bert?wait=perhaps", "wait=perhaps: want 1 or 0"),
        ("mingle://bert?nnodes=4", "no parameter nnodes, only world_size, rank, .*: world_size"),
    ],
)
def test_a_url_that_cannot_work(url: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        parameters(url)
    assert str(caught.value).startswith(url)


PIECES = st.sampled_from(["mingle:", "//", "bert", "?", "&", "=", "#", "%", "%2F", ":1", "[", "@"])
NAMES = st.sampled_from([*PARAMETERS, "nonsense", "rank"])
VALUES = st.sampled_from(["1", "-1", "nan", "9" * 5_000, "true", "", "\ud800"]) | st.text(
    max_size=9
)


@given(
    st.lists(PIECES | st.text(max_size=6), max_size=9),
    st.lists(st.tuples(NAMES, VALUES), max_size=3),
)
def test_whatever_a_url_is_it_is_read_or_bad_input(
    pieces: list[str], query: list[tuple[str, str]]
) -> None:
    asked = "&".join(f"{name}={value}" for name, value in query)
    for url in ("".join(pieces), f"mingle://bert?{asked}", f"{''.join(pieces)}?{asked}"):
        found = outcome(url)
        if isinstance(found, str):
            assert url in found
        else:
            assert found[0]
            assert set(found[1]) <= set(PARAMETERS)


def outcome(url: str) -> tuple[str, dict[str, Any]] | str:
    try:
        return parameters(url)
    except BadInput as error:
        return str(error)
