"""What is taken from a scheduler: only what nobody has said, and never without a word about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mingled.core.words import Form
from mingled.errors import BadInput
from mingled.frameworks.environment import defaults
from mingled.frameworks.schedulers import Fact, Found, find


class Known(NamedTuple):
    """What was said without the scheduler."""

    job: str | None
    form: Form | None  #: None: the scheduler decides between launcher and process
    size: tuple[int, int] | None  #: (min, max)
    rank: bool  #: there is one
    automatic: str = ""  #: why ranks had better be handed out; empty where one is welcome
    process: bool = False  #: where the scheduler decides: what runs is plainly one process


class Words(NamedTuple):
    """How the user says it instead, for a sentence."""

    job: str
    nodes: str
    tasks: str


class Taken(NamedTuple):
    """None: not taken."""

    form: Form
    job: str | None
    size: int | None
    rank: int | None
    sentence: str  #: what comes from where


def take(known: Known, env: Mapping[str, str], host: str, words: Words) -> Taken | None:
    """What the scheduler adds to `known`; None where nothing is missing, or there is none.

    A rank is an explicit one: where it is 0, that process has to come back after a loss. So it is
    taken only for a fixed size, only if that is the scheduler's own, and not where
    `known.automatic` speaks against it. `env` is read without what we exported ourselves.

    Raises:
        BadInput: a variable holds what cannot be, or what is missing is not known here either;
            names the variable, or what to add.
    """
    # A rank alone is the plain form, and whole.
    plain = known.rank and known.form is not Form.LAUNCHER
    wants_size = known.size is None and not plain
    fixed = known.size is None or known.size[0] == known.size[1]
    wants_rank = not known.rank and fixed and not known.automatic
    if known.job is not None and not wants_size and not wants_rank:
        return None
    try:
        found = find(defaults(env), host)
        return None if found is None else _take(known, found, words, wants_size)
    except BadInput as error:
        of_job = "" if known.job is None else f"job {known.job}: "
        raise BadInput(f"{of_job}{error}") from None


def _take(known: Known, found: Found, words: Words, wants_size: bool) -> Taken | None:
    form = known.form or _form(known, found)
    size, rank = (
        (found.nodes, found.node_rank) if form is Form.LAUNCHER else (found.tasks, found.task_rank)
    )
    job = found.job if known.job is None else None
    if known.job is None and job is None:
        raise BadInput(
            f"{found.scheduler} does not say which job this is ({found.why_no_job}); add "
            f"{words.job}, the same on every machine"
        )
    if wants_size and size is None:
        meant = words.nodes if known.form is Form.LAUNCHER else words.tasks
        meant = meant if known.form else f"{words.nodes}, or {words.tasks}"
        raise BadInput(
            f"{found.scheduler} does not say how many take part ({found.why_no_size}); or add "
            f"{meant}"
        )
    why = _why_automatic(known, size)
    given = None if known.rank or why else rank
    local = found.local_rank
    if form is Form.LAUNCHER and local is not None and local.value and (wants_size or given):
        raise BadInput(
            f"a launcher is one per node, and this is one of several processes that "
            f"{found.scheduler} has started here ({local.name}={local.value}); start one per node, "
            f"or say {words.tasks} for single processes"
        )
    if given is not None and known.size is not None and given.value >= known.size[1]:
        raise BadInput(
            f"{given.name}={given.value} in the environment, from {found.scheduler}, is outside "
            f"the size {known.size[1]}; correct one of the two"
        )
    size = size if wants_size else None
    parts = _parts(form, found if job is not None else None, size, given)
    if not parts:
        return None
    inside = f" (inside {', '.join(found.outer)})" if found.outer else ""
    sentence = f"from {found.scheduler}{inside}: {', '.join(parts)}"
    if why and rank is not None and not known.rank:
        sentence += f"; ranks are handed out, not {rank.name}, {why}"
    return Taken(form, job, _value(size), _value(given), sentence)


def _form(known: Known, found: Found) -> Form:
    return Form.LAUNCHER if found.for_nodes and not known.process else Form.PROCESS


def _why_automatic(known: Known, size: Fact | None) -> str:
    if known.automatic:
        return known.automatic
    if known.size is None or (size is None and known.size[0] == known.size[1]):
        return ""
    if known.size[0] != known.size[1]:
        return "since the size is a range"
    if size is not None and size.value != known.size[0]:
        return f"since {size.name} is {size.value}"
    return ""


def _parts(form: Form, of_job: Found | None, size: Fact | None, rank: Fact | None) -> list[str]:
    parts = [] if of_job is None else [f"job ({', '.join(of_job.job_from)})"]
    if size is not None:
        nodes = f"{size.value} node{'' if size.value == 1 else 's'}"
        parts.append(
            f"{nodes if form is Form.LAUNCHER else f'world size {size.value}'} ({size.name})"
        )
    if rank is not None:
        noun = "node rank" if form is Form.LAUNCHER else "rank"
        parts.append(f"{noun} {rank.value} ({rank.name})")
    return parts


def _value(fact: Fact | None) -> int | None:
    return None if fact is None else fact.value


# ---------------------------------------------------------------- for mingled.join

_CALL = Words("job=...", "nnodes=N", "world_size=W")


class Arguments(NamedTuple):
    """Those of `mingled.join` that a scheduler can know."""

    job: str | None
    nnodes: int | str | None
    node_rank: int | None
    world_size: int | None
    rank: int | None


def arguments(
    given: Arguments, *, launcher: bool, env: Mapping[str, str], host: str
) -> tuple[Arguments, str]:
    """`given` with what the scheduler adds, and the sentence that says so; empty where nothing is.

    `launcher`: an argument of the launcher form is given. The call is made by a single process, so
    without one the scheduler's processes count.

    Raises:
        BadInput: as `take`.
    """
    ours = defaults(env)
    if launcher:
        form, rank = Form.LAUNCHER, given.node_rank is not None or bool(ours.get("NODE_RANK"))
        size = _sizes(given.nnodes)
    else:
        form, rank = Form.PROCESS, given.rank is not None or bool(ours.get("RANK"))
        size = _sizes(given.world_size or ours.get("WORLD_SIZE") or None)
    taken = take(Known(given.job, form, size, rank), env, host, _CALL)
    if taken is None:
        return given, ""
    if taken.job is not None:
        given = given._replace(job=taken.job)
    if launcher:
        nnodes = given.nnodes if taken.size is None else taken.size
        node_rank = given.node_rank if taken.rank is None else taken.rank
        return given._replace(nnodes=nnodes, node_rank=node_rank), taken.sentence
    size_, rank_ = taken.size, taken.rank
    return given._replace(
        world_size=given.world_size if size_ is None else size_,
        rank=given.rank if rank_ is None else rank_,
    ), taken.sentence


def _sizes(said: int | str | None) -> tuple[int, int] | None:
    """What makes no sense is a range here: no rank is taken, and whoever reads it next refuses."""
    if said is None:
        return None
    low, _, high = str(said).partition(":")
    try:
        return int(low), int(high or low)
    except ValueError:
        return 0, 1
