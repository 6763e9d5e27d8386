"""What a dialect is: one way to say a sealed config, in the words of who reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from mingled.core.config import Config
from mingled.core.local import Join
from mingled.core.words import Form

ALL = frozenset(Form)
SIZED = frozenset({Form.LAUNCHER, Form.PROCESS})


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What a value may depend on besides the config."""

    wishes: Mapping[str, str]  #: the environment as the user made it, without what we set in it
    sing_suffix: str  #: of SING_HOST_ADDR
    hostfile: str  #: path of the one that was written; empty: none was asked for


class Spoken(msgspec.Struct, frozen=True):
    """One variable of a dialect."""

    name: str
    meaning: str
    value: Callable[[Config, Given], str | int | None]  #: None: not set


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the registry: variables, or a text.

    `refusal` and `check` return what is wrong, as the rest of a sentence that begins with the job
    and the dialect's name; None where all is well. `refusal` is asked before anybody waits, `check`
    once the round is sealed: on every node, with the same roster.
    """

    name: str
    reader: str  #: who reads it, for the docs
    forms: frozenset[Form]
    one_process: bool = False  #: of the launcher form only with one process per node
    variables: tuple[Spoken, ...] = ()
    hostfile: Callable[[Config], str] | None = None  #: its text; raises `BadInput`
    text: Callable[[Mapping[str, str]], str] | None = None  #: of variables; raises `BadInput`
    syntax: str = ""  #: of the text, for the docs
    refusal: Callable[[Join], str | None] | None = None
    check: Callable[[Config], str | None] | None = None

    @property
    def spoken(self) -> bool:
        """It is variables, for a CMD: not a syntax alone."""
        return self.text is None

    def values(self, config: Config, given: Given) -> dict[str, str]:
        """Its variables, of those that this config knows."""
        said = ((item.name, item.value(config, given)) for item in self.variables)
        return {name: str(value) for name, value in said if value is not None}


def one_process(config: Config) -> bool:
    """Is this participant one process of the framework? Then its global rank is the config's."""
    return config.form is not Form.LAUNCHER or config.nproc_per_node == 1
