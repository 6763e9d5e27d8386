"""Every dialect by its name, and what was chosen of them for one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from mingled.core.config import Config
from mingled.core.local import Join
from mingled.core.peers import listed
from mingled.core.words import Form, host_label
from mingled.errors import BadInput
from mingled.frameworks.dialects import hostfiles, jax, pytorch, sing, tensorflow, texts
from mingled.frameworks.dialects.model import Dialect, Given
from mingled.frameworks.environment import Environment, defaults, environment

DIALECTS: tuple[Dialect, ...] = (
    pytorch.TORCH,
    pytorch.TORCHRUN,
    sing.SING,
    jax.JAX,
    tensorflow.TENSORFLOW,
    hostfiles.DEEPSPEED,
    hostfiles.OPENMPI,
    pytorch.ACCELERATE,
    pytorch.LIGHTNING,
    texts.JSON,
    texts.DOTENV,
    texts.DOCKER,
)

BY_NAME: Mapping[str, Dialect] = {dialect.name: dialect for dialect in DIALECTS}

SPOKEN = tuple(d.name for d in DIALECTS if d.spoken)
"""Those that are variables."""


class Chosen(msgspec.Struct, frozen=True):
    """The dialects that one job is to be told in, beside the usual variables."""

    dialects: tuple[Dialect, ...] = ()
    sing_suffix: str = sing.LOCAL

    @property
    def publishes(self) -> bool:
        """The daemon is to answer JOB-RANK.local."""
        return sing.SING in self.dialects and self.sing_suffix == sing.LOCAL

    @property
    def wants_hostfile(self) -> bool:
        return any(d.hostfile is not None for d in self.dialects)

    def notes(self, config: Config) -> list[str]:
        """What the user is to know of it, besides what the config says."""
        if not self.publishes:
            return []
        name = f"{host_label(config.job, config.rank)}.{sing.LOCAL}"
        return [f"{name} is answered by mDNS, which shows the job's name on this network"]

    def refuse(self, join: Join) -> None:
        """Before anybody waits. Raises `BadInput` where a dialect cannot serve this join."""
        for dialect in self.dialects:
            why = _unfit(dialect, join)
            if why is not None:
                raise BadInput(f"job {join.job}: {dialect.name} {why}")

    def environment(self, config: Config, *, present: Mapping[str, str], owner: int) -> Environment:
        """The usual variables and those of the dialects. A hostfile is written for as long as
        process `owner` lives. Raises `BadInput` where the sealed round does not suit a dialect."""
        given = Given(
            wishes=defaults(present),
            sing_suffix=self.sing_suffix,
            hostfile=self._hostfile(config, owner),
        )
        more: dict[str, str] = {}
        for dialect in self.dialects:
            why = dialect.check(config) if dialect.check is not None else None
            if why is not None:
                raise BadInput(f"job {config.job}: {dialect.name} {why}")
            more |= dialect.values(config, given)
        return environment(config, present=present, more=more)

    def _hostfile(self, config: Config, owner: int) -> str:
        for dialect in self.dialects:
            if dialect.hostfile is not None:
                return str(hostfiles.write(config, dialect.hostfile(config), owner))
        return ""


def chosen(names: Sequence[str], flag: str, job: str) -> tuple[Dialect, ...]:
    """The dialects of a list with commas between. Raises `BadInput` for what is no name, or no
    variables."""
    found = []
    for name in listed(names):
        dialect = BY_NAME.get(name)
        if dialect is None or not dialect.spoken:
            what = "is a text to print (--format)" if dialect is not None else "is none it knows"
            raise BadInput(
                f"job {job}: {flag} {name[:64]!r} {what}; {flag} takes {', '.join(SPOKEN)}"
            )
        if dialect not in found:
            found.append(dialect)
    if names and not found:
        raise BadInput(f"job {job}: {flag} names nothing; it takes {', '.join(SPOKEN)}")
    return tuple(found)


_FORMS = {
    Form.LAUNCHER: "one launcher per node (--nnodes)",
    Form.PROCESS: "single processes (--world-size)",
    Form.PLAIN: "a rank without a size (--rank alone)",
}


def _unfit(dialect: Dialect, join: Join) -> str | None:
    if dialect.refusal is not None and (why := dialect.refusal(join)) is not None:
        return why
    if join.form not in dialect.forms:
        fitting = " or ".join(_FORMS[form] for form in Form if form in dialect.forms)
        return f"is for {fitting}, and this is {_FORMS[join.form]}; change the flags, or the name"
    if join.form is Form.LAUNCHER and dialect.one_process and join.nproc > 1:
        return (
            f"speaks to one process, and --nproc-per-node {join.nproc} is for a launcher that "
            "starts several; delete --nproc-per-node, or give each its own mingle-wait with "
            "--world-size W"
        )
    return None
