"""Variables as a text that no shell reads: JSON, dotenv, Docker's env-file."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mingled.core import codec
from mingled.errors import BadInput
from mingled.frameworks.dialects.model import ALL, Dialect

_BARE = re.compile(r"[A-Za-z0-9_./:,@%+=-]*")
"""Readers of dotenv differ in nearly everything else: comments, `$`, trailing blanks."""

_NOT_IN_QUOTES = re.compile(r"['$\x00-\x1f\x7f]|\\(\\|\Z)")
"""Within single quotes python-dotenv reads doubled backslashes and `${...}`, Compose and Node do
not."""

_NOT_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f]")


def json(values: Mapping[str, str]) -> str:
    """One object."""
    return codec.json(dict(values)).decode() + "\n"


def dotenv(values: Mapping[str, str]) -> str:
    """`NAME=value`, in single quotes where need be: what python-dotenv, Compose and Node read
    alike. Raises `BadInput`."""
    lines = []
    for name, value in values.items():
        if _BARE.fullmatch(value):
            lines.append(f"{name}={value}\n")
        elif _NOT_IN_QUOTES.search(value):
            raise _cannot(
                "dotenv", name, value, "a quote, a $, some backslashes or a control character"
            )
        else:
            lines.append(f"{name}='{value}'\n")
    return "".join(lines)


def docker(values: Mapping[str, str]) -> str:
    """`NAME=value`, the value up to the end of the line as it is: `docker run --env-file` knows no
    quotes (docker/cli `opts/file.go`). Raises `BadInput`."""
    for name, value in values.items():
        if _NOT_IN_A_LINE.search(value):
            raise _cannot("docker", name, value, "a line break or another control character")
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _cannot(syntax: str, name: str, value: str, why: str) -> BadInput:
    return BadInput(
        f"{name}={value[:64]!r}: {syntax} cannot carry {why}; choose a plainer job ID, or "
        "--format json"
    )


JSON = Dialect(
    name="json",
    reader="programs: `config` (roster included), `environment`, and `adopt`, the token by which "
    "a process takes the lease over (`mingle-wait --adopt TOKEN PID`)",
    forms=ALL,
    text=json,
    syntax="one JSON object",
)

DOTENV = Dialect(
    name="dotenv",
    reader="python-dotenv, Compose's `env_file`, `node --env-file`",
    forms=ALL,
    text=dotenv,
    syntax="`NAME=value` or `NAME='value'`",
)

DOCKER = Dialect(
    name="docker",
    reader="`docker run --env-file`, `podman run --env-file`; with `--network host`, as the "
    "addresses are this machine's",
    forms=ALL,
    text=docker,
    syntax="`NAME=value`, no quotes",
)
