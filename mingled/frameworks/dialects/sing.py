"""The variables of a scheduler that names its pods JOB-RANK.SUFFIX."""

from __future__ import annotations

from mingled.core.config import Config
from mingled.core.local import Join
from mingled.core.words import HOST_LABEL, HOST_NAME, Form, host_label
from mingled.errors import BadInput
from mingled.frameworks.dialects.model import ALL, Dialect, Given, Spoken

LOCAL = "local"
"""The suffix of multicast DNS: such names mingled answers itself."""

SUFFIX = "SING_HOSTNAME_SUFFIX"


def suffix_of(flag: str | None, wishes: dict[str, str], job: str) -> str:
    """`flag`, else the environment's, else `local`. Raises `BadInput`."""
    found = wishes.get(SUFFIX, "") or LOCAL if flag is None else flag
    named = "--sing-suffix" if flag is not None else SUFFIX
    if not HOST_NAME.fullmatch(found):
        raise BadInput(
            f"job {job}: {named} {found[:64]!r} is no domain; give one as in local or "
            "team.svc.cluster.local"
        )
    return found


def _host(config: Config, given: Given) -> str:
    return f"{host_label(config.job, config.rank)}.{given.sing_suffix}"


def _label(join: Join) -> str | None:
    rank = join.rank_max
    label = host_label(join.job, rank)
    if not HOST_LABEL.fullmatch(label):
        return (
            f"makes a host name of the job's, and {label} is none; choose a job ID of letters, "
            f"digits and inner hyphens with at most {62 - len(str(rank))} characters"
        )
    return None


def _size(config: Config, given: Given) -> int | None:
    if config.form is Form.PLAIN:
        return None
    return len(config.members)


SING = Dialect(
    name="sing",
    reader="scripts written for a scheduler that sets `SING_*`",
    forms=ALL,
    variables=(
        Spoken(
            "SING_RANK", "this participant's place (node rank of a launcher)", lambda c, g: c.rank
        ),
        Spoken("SING_WORLD_SIZE", "participants in the job", _size),
        Spoken("SING_JOB_NAME", "job ID", lambda c, g: c.job),
        Spoken(
            SUFFIX,
            "`--sing-suffix`; default: the same variable, else `local`",
            lambda c, g: g.sing_suffix,
        ),
        Spoken("SING_MASTER_ADDR", "literal IP of rank 0's node", lambda c, g: c.master_addr),
        Spoken("SING_HOST_ADDR", "`${JOB_NAME}-${RANK}.${HOSTNAME_SUFFIX}`", _host),
    ),
    refusal=_label,
)
