"""The whole error tree. Every error is one sentence for a person, and one exit code.

    MingleError                   1   something of ours went wrong
    ├── BadInput                  2   a value or a combination of flags that cannot work
    ├── DaemonError              80   no daemon could be reached or started, or it died meanwhile
    ├── Refused                  81   the other side said no, and why (rank taken, sizes differ)
    ├── JoinTimeout              82   the time given with --timeout is over
    ├── Conflict                 83   two participants claim rank 0
    ├── VersionSkew              84   two versions that do not understand each other
    ├── NotPermitted             85   the socket or the job belongs to somebody else
    ├── Indeterminate            86   the outcome cannot be known: neither success nor failure
    ├── Cancelled                87   the job was cancelled, or the wait was ended (leave, replaced)
    ├── Lost                     88   a member of the running round was lost (--on-lost)
    └── Closed                   89   the run has ended: there is no next round to wait for

126 and 127 mean, as in a shell, that CMD cannot be run or is not there; 128+n that a signal ended
it. An error that crosses a socket keeps its class: `code` names it there, `from_code` finds it.
"""

from __future__ import annotations

from typing import ClassVar


class MingleError(Exception):
    """Base of all errors that mingled raises on purpose. `str(error)` is one full sentence."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1


class BadInput(MingleError):
    code = "bad-input"
    exit_code = 2


class DaemonError(MingleError):
    code = "daemon"
    exit_code = 80


class Refused(MingleError):
    code = "refused"
    exit_code = 81


class JoinTimeout(MingleError):
    code = "timeout"
    exit_code = 82


class Conflict(MingleError):
    code = "conflict"
    exit_code = 83


class VersionSkew(MingleError):
    code = "version"
    exit_code = 84


class NotPermitted(MingleError):
    code = "not-permitted"
    exit_code = 85


class Indeterminate(MingleError):
    code = "indeterminate"
    exit_code = 86


class Cancelled(MingleError):
    code = "cancelled"
    exit_code = 87


class Lost(MingleError):
    code = "lost"
    exit_code = 88


class Closed(MingleError):
    code = "closed"
    exit_code = 89


_BY_CODE: dict[str, type[MingleError]] = {
    kind.code: kind
    for kind in (
        MingleError,
        BadInput,
        DaemonError,
        Refused,
        JoinTimeout,
        Conflict,
        VersionSkew,
        NotPermitted,
        Indeterminate,
        Cancelled,
        Lost,
        Closed,
    )
}


CODES = tuple(_BY_CODE)
"""Of all errors: what a daemon may answer with."""


def from_code(code: str, sentence: str) -> MingleError:
    """The error of the class that `code` names; `MingleError` for a code that only others know."""
    return _BY_CODE.get(code, MingleError)(sentence)
