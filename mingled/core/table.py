"""The one transition table. Every change of a job's state on a node goes through `step`.

The state diagram in the documents is generated from TRANSITIONS (`scripts/generate_docs.py`).
"""

from __future__ import annotations

import enum


class State(enum.StrEnum):
    """Where one job stands on one node."""

    IDLE = "idle"  #: nobody waits here; a sealed round may still run
    SEARCHING = "searching"  #: looking for a leader
    CONNECTING = "connecting"  #: racing to a leader's addresses
    FOLLOWING = "following"  #: locked to one leader, which gathers
    PROVING = "proving"  #: PREPARE came; the path to rank 0 is being proven
    PREPARED = "prepared"  #: ACK is sent: only ABORT or COMMIT may follow
    UNSURE = "unsure"  #: the link broke after ACK; the outcome is asked for
    LEADING = "leading"  #: the claim is advertised; gathering, or holding a sealed round
    PREPARING = "preparing"  #: PREPARE is out; no yielding until its outcome


class Trigger(enum.StrEnum):
    """What moves it."""

    SEARCH = "search"  #: somebody waits and there is no leader
    CLAIM = "claim"  #: explicit rank 0, or nobody else was heard
    CONNECT = "connect"  #: an advert is tried, or a redirect followed
    LOCK = "lock"  #: the connection stands
    LOSE = "lose"  #: the leader cannot be reached, hung up, or dismissed us
    PREPARE = "prepare"  #: everybody is here: a round is proposed to all, to be proven
    NACK = "nack"  #: a path could not be proven, and the leader is told which
    ACK = "ack"  #: every path is proven, and the leader is told so
    ABORT = "abort"  #: this attempt is off, gathering goes on
    COMMIT = "commit"  #: the round is sealed
    DOUBT = "doubt"  #: the link broke between ACK and the outcome
    GIVE_UP = "give up"  #: the outcome cannot be known
    YIELD = "yield"  #: a rival leader wins
    REST = "rest"  #: nobody waits here any more


_S, _T = State, Trigger

TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (_S.IDLE, _T.SEARCH): _S.SEARCHING,
    (_S.IDLE, _T.CLAIM): _S.LEADING,
    (_S.SEARCHING, _T.CLAIM): _S.LEADING,
    (_S.SEARCHING, _T.CONNECT): _S.CONNECTING,
    (_S.SEARCHING, _T.REST): _S.IDLE,
    (_S.CONNECTING, _T.LOCK): _S.FOLLOWING,
    (_S.CONNECTING, _T.LOSE): _S.SEARCHING,
    (_S.CONNECTING, _T.CLAIM): _S.LEADING,
    (_S.CONNECTING, _T.REST): _S.IDLE,
    (_S.FOLLOWING, _T.PREPARE): _S.PROVING,
    (_S.FOLLOWING, _T.CONNECT): _S.CONNECTING,
    (_S.FOLLOWING, _T.LOSE): _S.SEARCHING,
    (_S.FOLLOWING, _T.CLAIM): _S.LEADING,
    (_S.FOLLOWING, _T.REST): _S.IDLE,
    (_S.PROVING, _T.ACK): _S.PREPARED,
    (_S.PROVING, _T.NACK): _S.FOLLOWING,
    (_S.PROVING, _T.ABORT): _S.FOLLOWING,
    (_S.PROVING, _T.LOSE): _S.SEARCHING,
    (_S.PREPARED, _T.COMMIT): _S.FOLLOWING,
    (_S.PREPARED, _T.ABORT): _S.FOLLOWING,
    (_S.PREPARED, _T.DOUBT): _S.UNSURE,
    (_S.UNSURE, _T.COMMIT): _S.FOLLOWING,
    (_S.UNSURE, _T.ABORT): _S.FOLLOWING,
    (_S.UNSURE, _T.GIVE_UP): _S.SEARCHING,
    (_S.LEADING, _T.PREPARE): _S.PREPARING,
    (_S.LEADING, _T.YIELD): _S.CONNECTING,
    (_S.LEADING, _T.SEARCH): _S.SEARCHING,
    (_S.LEADING, _T.REST): _S.IDLE,
    (_S.PREPARING, _T.COMMIT): _S.LEADING,
    (_S.PREPARING, _T.ABORT): _S.LEADING,
}


OUTCOME_OPEN = (State.PREPARED, State.UNSURE)
"""We have acknowledged: nothing here may end before ABORT, COMMIT, or the doubt is over."""

BETWEEN = (State.PROVING, *OUTCOME_OPEN, State.PREPARING)
"""Between PREPARE and its outcome, on either side."""


class ForbiddenTransition(AssertionError):
    """A bug of ours, never a peer's doing: the table has no such line."""


def step(state: State, trigger: Trigger) -> State:
    """The next state. Raises `ForbiddenTransition` where the table has none."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise ForbiddenTransition(f"no transition from {state} by {trigger}") from None
