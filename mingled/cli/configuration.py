"""The daemon's configuration file: TOML, each key a flag of `mingled`. Flags and the environment
beat it.

    # /etc/mingled/mingled.toml
    interface = ["eth0", "ib0"]
    peers = ["head.lab.example"]
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mingled.core.peers import check_peers, check_subnets, listed
from mingled.errors import BadInput
from mingled.frameworks.environment import defaults
from mingled.processes import user_name

PATH = Path("/etc/mingled/mingled.toml")

META = "mingled.cli.configuration"
"""Under this a click context has the path of the file that was read."""

RUNGS = ("mdns", "broadcast", "peers")

LEVELS = ("debug", "info", "warning", "error")

KEYS: dict[str, tuple[str, str]] = {
    # key: (kind, as an example)
    "socket": ("text", '"/run/mingled/control.sock"'),
    "link_port": ("port", "29490"),
    "broadcast_port": ("port", "29491"),
    "interface": ("list", '["eth0"]'),
    "subnet": ("list", '["10.0.0.0/24"]'),
    "peers": ("list", '["gpu1", "head.lab.example"]'),
    "discovery": ("list", '["mdns", "broadcast", "peers"]'),
    "key_file": ("text", '"/etc/mingled/key"'),
    "metrics_file": ("text", '"/var/lib/node_exporter/mingled.prom"'),
    "log_level": ("level", '"info"'),
}
"""What may stand in the file."""

_OPTIONS = {
    "socket": "socket_path",
    "interface": "interfaces",
    "subnet": "subnets",
}
"""The parameter of `mingled`'s command that a key stands for, where it is called otherwise."""


def load(path: Path, *, needed: bool, optional: bool = True) -> dict[str, Any]:
    """The file as defaults of `mingled`'s options. One that is not there is an error only where it
    was asked for. So is one that this user may not read where `optional`: an administrator's secret
    must not stop a user's private daemon, but the machine's must not go on without its key and its
    restrictions. Raises `BadInput` naming file, line and what is allowed."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not needed:
            return {}
        raise _bad(path, None, "no such file; correct --config (MINGLE_CONFIG)") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, PermissionError):
            if optional and not needed:
                click.echo(f"mingled: goes on without {path}, which it may not read", err=True)
                return {}
            reason += f"; let {user_name(os.geteuid())} read it, or name another with --config"
        raise _bad(path, None, f"cannot be read: {reason}") from None
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise _bad(path, None, f"is no TOML: {error}") from None
    found = {}
    for key, value in values.items():
        line = _line_of(text, key)
        if key not in KEYS:
            raise _bad(path, line, f"no key {key!r}; there are {', '.join(KEYS)}")
        kind, example = KEYS[key]
        try:
            found[_OPTIONS.get(key, key)] = _value(kind, key, value)
        except BadInput as error:
            what = f"{key} = {value!r}: {error}; want something like {key} = {example}"
            raise _bad(path, line, what) from None
    return found


def _value(kind: str, key: str, value: object) -> Any:
    if kind == "port":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65_536:
            raise BadInput("not a port from 1 to 65535")
        return value
    if kind in ("text", "level"):
        if not isinstance(value, str) or not value or "\0" in value:
            raise BadInput("not a text")
        if kind == "level" and value not in LEVELS:
            raise BadInput(f"no level of the log; there are {', '.join(LEVELS)}")
        if key == "metrics_file":
            check_metrics_file(value)
        return value
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadInput("not a list of texts")
    words = listed(texts)
    if not words and key != "discovery":
        raise BadInput("it is empty; delete the line for no restriction")
    if key == "peers":
        check_peers(words)
    elif key == "subnet":
        check_subnets(words)
    elif key == "discovery":
        check_rungs(words)
    return words


def check_rungs(words: tuple[str, ...]) -> None:
    """Each is a rung of discovery, and there is one; `BadInput` otherwise."""
    wrong = [word for word in words if word not in RUNGS]
    if wrong or not words:
        raise BadInput(
            f"{', '.join(wrong) or 'nothing'} is no way of discovery; there are {', '.join(RUNGS)}"
        )


def check_metrics_file(path: str | Path) -> None:
    """Its name is one that node_exporter reads; `BadInput` otherwise."""
    if not Path(path).name.endswith(".prom"):
        raise BadInput("its name does not end in .prom, and node_exporter reads no other")


def metrics_file(_ctx: click.Context, _param: click.Parameter, given: Path | None) -> Path | None:
    """click's callback of `--metrics-file`."""
    try:
        if given is not None:
            check_metrics_file(given)
    except BadInput as error:
        raise click.BadParameter(f"{given}: {error}") from None
    return given


def _line_of(text: str, key: str) -> int | None:
    pattern = re.compile(rf"""\s*\[?\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.match(line):
            return number
    return None


def _bad(path: Path, line: int | None, what: str) -> BadInput:
    where = f"{path}, line {line}" if line is not None else str(path)
    return BadInput(f"{where} on {socket.gethostname()}: {what}")


def as_defaults(ctx: click.Context, _param: click.Parameter, given: Path | None) -> None:
    """click's callback of `--config`, before the other options are read."""
    path, named = place(given)
    # `--private` is read before this option.
    private = ctx.params.get("private", False)
    ctx.default_map = load(path, needed=named, optional=private)
    ctx.meta[META] = path


def place(given: Path | None = None) -> tuple[Path, bool]:
    """Where the file is, and whether somebody said so."""
    in_environment = os.environ.get("MINGLE_CONFIG")
    named = given or (Path(in_environment) if in_environment else None)
    return named or PATH, named is not None


def origin(ctx: click.Context, parameter: str, variable: str, key: str) -> str:
    """Where the value of a parameter came from, if neither from a flag nor from us; empty then."""
    match ctx.get_parameter_source(parameter):
        case ParameterSource.ENVIRONMENT:
            return variable
        case ParameterSource.DEFAULT_MAP:
            return f"{key} in {ctx.meta.get(META, PATH)}"
    return ""


def forget_exported(environ: MutableMapping[str, str]) -> None:
    """What an earlier job's `mingle-wait` has set here is not the user's wish: a daemon that a
    training script starts is to see every interface."""
    wishes = defaults(environ)
    for name in [n for n in environ if n.startswith("MINGLE_") and n not in wishes]:
        del environ[name]
