"""The words of the project as types. Each is valid once it exists: construction is the check."""

from __future__ import annotations

import enum
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from mingled.errors import BadInput

JOB_ID_BYTES_MAX = 255
"""A job ID never becomes a path or a DNS label (its hash does): this only keeps messages small."""

SIZE_MAX = 65_536
"""Participants in one job. Far above any roster that fits in one frame; stops absurd sizes."""

NPROC_MAX = 4096
"""Processes that one launcher may start on its node."""


_HOST_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOST_LABEL = re.compile(_HOST_LABEL)
HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_HOST_LABEL}(\.{_HOST_LABEL})*\.?")
"""RFC 1123. In a file, anything else could be a pattern or another line."""


class Form(enum.StrEnum):
    """What one participant stands for."""

    LAUNCHER = "launcher"  #: one participant per node; it starts `nproc_per_node` processes
    PROCESS = "process"  #: one participant is one process; several per node are normal
    PLAIN = "plain"  #: a rank and no size: rank 0 is announced, everybody else gets its address


class Standing(enum.IntEnum):
    """What a claim to rank 0 rests on; the greater wins over the lesser."""

    NEWCOMER = 0  #: elected, and not in the job's last round: it may lack the checkpoint
    INCUMBENT = 1  #: elected, and a member of the job's last round
    EXPLICIT = 2  #: rank 0 was asked for


class JobId(str):
    """What a user calls a job. Identity is byte-exact: no case folding, no normalisation."""

    def __new__(cls, text: str) -> JobId:
        if not text:
            raise BadInput(
                "the job ID is empty; give every machine the same name, as in --job bert"
            )
        try:
            size_bytes = len(text.encode())
        except UnicodeEncodeError:
            raise BadInput(f"job ID {text!r}: not valid Unicode text") from None
        if size_bytes > JOB_ID_BYTES_MAX:
            raise BadInput(
                f"job ID {text[:32]!r}...: {size_bytes} bytes, at most {JOB_ID_BYTES_MAX} allowed"
            )
        bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")), None)
        if bad is not None:
            raise BadInput(
                f"job ID {text!r}: holds the control character U+{ord(bad):04X}; "
                "use letters, digits and punctuation"
            )
        return super().__new__(cls, text)


class _Hex(str):
    """Lower-case hexadecimal of a fixed length."""

    pattern = re.compile(r"[0-9a-f]{32}")

    def __new__(cls, text: str) -> _Hex:
        if not cls.pattern.fullmatch(text):
            raise BadInput(f"{cls.__name__} {text[:64]!r}: not {cls.pattern.pattern}")
        return super().__new__(cls, text)


class NodeId(_Hex):
    """One daemon's life, 128 bits drawn at its start: cloned disks and shared homes stay apart."""

    def __new__(cls, text: str) -> NodeId:
        return super().__new__(cls, text)  # type: ignore[return-value]


class Nonce(_Hex):
    """One claim to lead one job, 128 random bits: what an advert, a session and a roster name."""

    def __new__(cls, text: str) -> Nonce:
        return super().__new__(cls, text)  # type: ignore[return-value]


class ParticipantId(_Hex):
    """One join of one job."""

    def __new__(cls, text: str) -> ParticipantId:
        return super().__new__(cls, text)  # type: ignore[return-value]


class Label(str):
    """What stands for a job on the network: 26 characters of base32, from which no name is read."""

    pattern = re.compile(r"[a-z2-7]{26}")

    def __new__(cls, text: str) -> Label:
        if not cls.pattern.fullmatch(text):
            raise BadInput(f"label {text[:64]!r}: not {cls.pattern.pattern}")
        return super().__new__(cls, text)


def host_label(job: str, rank: int) -> str:
    """What stands before the first dot in the host name of one rank: `bert-0`."""
    return f"{job}-{rank}"


def distinct(places: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Host names for people, each machine once: with its address where two share a name, as cloned
    disks make them."""
    seen = dict.fromkeys(places)
    names = Counter(host for host, _ in seen)
    return tuple(f"{host} ({address})" if names[host] > 1 else host for host, address in seen)
