"""`mingled`: the daemon in the foreground, or, for a client that needs one, a private one."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource

from mingled import __version__
from mingled.cli import configuration
from mingled.core.peers import check_peers, check_subnets, listed
from mingled.errors import BadInput, MingleError
from mingled.wording import clean

if TYPE_CHECKING:
    from mingled.options import Options


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mingled")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=configuration.as_defaults,
    help="Read defaults from this file.  [default: /etc/mingled/mingled.toml; env: MINGLE_CONFIG]",
)
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="MINGLE_SOCKET",
    default=Path("/run/mingled/control.sock"),
    show_default=True,
    help="The Unix socket to serve. Clients look here, or where MINGLE_SOCKET says.",
)
@click.option(
    "--link-port",
    type=click.IntRange(1, 65_535),
    envvar="MINGLE_LINK_PORT",
    help="TCP port of the peer link; a busy one moves on to the next.  [default: 29490]",
)
@click.option(
    "--interface",
    "interfaces",
    multiple=True,
    envvar="MINGLE_INTERFACE",
    metavar="NAME",
    help="Use only this interface or address; may be given more than once.",
)
@click.option(
    "--subnet",
    "subnets",
    multiple=True,
    envvar="MINGLE_SUBNET",
    metavar="CIDR",
    help="Use only addresses in this subnet, as in 10.0.0.0/24; may be given more than once.",
)
@click.option(
    "--peers",
    multiple=True,
    envvar="MINGLE_PEERS",
    metavar="HOST,...",
    help="Hosts to ask where multicast does not reach, or a DNS name of them all.",
)
@click.option(
    "--discovery",
    multiple=True,
    envvar="MINGLE_DISCOVERY",
    metavar="WAY,...",
    help="How to look for others.  [default: mdns,broadcast,peers]",
)
@click.option(
    "--broadcast-port",
    type=click.IntRange(1, 65_535),
    envvar="MINGLE_BROADCAST_PORT",
    default=29_491,
    show_default=True,
    help="UDP port of the broadcast and of peers, the same on every machine.",
)
@click.option(
    "--key-file",
    envvar="MINGLE_KEY_FILE",
    metavar="PATH",
    help="The cluster's keys; none: go without.  [default: /etc/mingled/key, if there]",
)
@click.option(
    "--metrics-file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="MINGLE_METRICS_FILE",
    callback=configuration.metrics_file,
    help="Write metrics there every 15 s, for node_exporter's textfile collector (*.prom).",
)
@click.option(
    "--log-level",
    type=click.Choice(configuration.LEVELS),
    envvar="MINGLE_LOG_LEVEL",
    default="info",
    show_default=True,
)
@click.option(
    "--check", is_flag=True, help="Read the configuration, say what is wrong with it, and end."
)
@click.option("--private", is_flag=True, is_eager=True, hidden=True)
@click.option("--daemonize", is_flag=True, hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
def command(
    log_level: str,
    check: bool,
    private: bool,
    daemonize: bool,
    ready_fd: int | None,
    **_other: Any,
) -> None:
    """Advertise and browse jobs on this machine's networks, for every user on it.

    Needs no configuration. Stop it with Ctrl-C or SIGTERM: jobs that run go on, whoever waits is
    told. SIGHUP has it read its configuration again.
    """
    if daemonize and os.fork():
        os._exit(0)  # the client goes on once `ready_fd` speaks

    import asyncio

    from mingled.daemon import Daemon
    from mingled.edges import systemd

    _log(log_level)
    _raise_descriptors()

    def ready() -> None:
        if ready_fd is not None:
            _say(ready_fd, "ready")

    ctx = click.get_current_context()
    try:
        options = _options(ctx)
        if check:
            _check(options)
            return
        given = None if private else systemd.take_socket()
        if given is not None:
            options = msgspec.structs.replace(options, socket=systemd.path_of(given))
        elif not private:
            _make_folder(options.socket.parent)
        daemon = Daemon(
            options,
            given=given,
            manager=None if private else systemd.Manager(),
            reread=None if private else lambda: _reread(options),
        )
        asyncio.run(daemon.run(ready))
    except MingleError as error:
        sentence = _with_origin(ctx, str(error))
        if ready_fd is not None:
            _say(ready_fd, sentence)
        _complain(sentence)
        raise SystemExit(error.exit_code) from None


def _options(ctx: click.Context) -> Options:
    """Of what was given, in the environment and in the file. Raises `BadInput`."""
    from mingled.options import LINK_PORT, Options

    given = ctx.params
    _refuse_empty(ctx)
    options = Options(
        socket=given["socket_path"],
        socket_mode=0o600 if given["private"] else 0o666,
        private=given["private"],
        link_port=given["link_port"] or LINK_PORT,
        interfaces=listed(given["interfaces"]),
        subnets=listed(given["subnets"]),
        peers=listed(given["peers"]),
        rungs=listed(given["discovery"]) or configuration.RUNGS,
        broadcast_port=given["broadcast_port"],
        key_file=_key_file(given["key_file"], private=given["private"]),
        key_may_come=not given["key_file"],
        # Of private ones many would write one file.
        metrics_file=None if given["private"] else given["metrics_file"],
        log_level=given["log_level"],
    )
    configuration.check_rungs(options.rungs)
    check_peers(options.peers)
    check_subnets(options.subnets)
    return options


def _reread(before: Options) -> Options:
    """The same command line with the file as it is now. Raises `BadInput`."""
    words = sys.argv[1:]
    try:
        with command.make_context("mingled", list(words)) as ctx:
            try:
                found = _options(ctx)
            except MingleError as error:
                raise type(error)(_with_origin(ctx, str(error))) from None
    except click.ClickException as error:
        raise BadInput(_said_by(error)) from None
    # The service manager's socket is where it is, whatever the file says.
    return msgspec.structs.replace(found, socket=before.socket)


def _check(options: Options) -> None:
    from mingled import keys

    keys.load(options.key_file)
    click.echo("mingled: the configuration is good", err=True)


def _log(level: str) -> None:
    """To the journal with levels and fields where stderr goes there; else lines on stderr."""
    import faulthandler

    from mingled import journal, logs

    if journal.connected():
        # The watchdog's SIGABRT leaves in the journal where the loop was stuck.
        faulthandler.enable()
        journal.configure(level.upper())
    else:
        logs.configure(level.upper())


def _key_file(given: str | None, *, private: bool) -> Path | None:
    from mingled import keys

    environ = os.environ | ({keys.VARIABLE: given} if given else {})
    # A daemon for all users has no key of one of them; who starts one without root has it for
    # himself. The service's user has no home with a key.
    return keys.find(environ, system=not private and os.geteuid() == 0)


_LISTS = ("interfaces", "subnets", "peers", "discovery")


def _refuse_empty(ctx: click.Context) -> None:
    """A flag with nothing in it; an empty variable of the environment counts as none."""
    from mingled.cli.forms import check_given

    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name in _LISTS and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            check_given(parameter.opts[0], ctx.params[name])


def _with_origin(ctx: click.Context, sentence: str) -> str:
    """What to correct is where it was said: a flag, a variable, or the file."""
    for parameter in ctx.command.params:
        flag, name = parameter.opts[0], parameter.name or ""
        if name not in _LISTS or flag not in sentence:
            continue
        variable = f"MINGLE_{flag[2:].upper()}"
        origin = configuration.origin(ctx, name, variable, flag[2:])
        if f"correct {flag}" in sentence and origin:
            sentence = sentence.replace(f"correct {flag}", f"correct {origin}")
        elif origin:
            sentence += f" ({flag} is {origin})"
    return sentence


def _said_by(error: click.ClickException) -> str:
    """click's sentence, and where a value that it refuses came from."""
    sentence = error.format_message().rstrip(".")
    if isinstance(error, click.BadParameter) and error.ctx is not None and error.param is not None:
        flag, name = error.param.opts[0], error.param.name or ""
        key = flag[2:].replace("-", "_")
        origin = configuration.origin(error.ctx, name, f"MINGLE_{key.upper()}", key)
        if origin:
            sentence += f" (it is {origin})"
    return sentence


def _ready_fd(words: Sequence[str]) -> int | None:
    """Where a client waits to hear, read before click has read anything."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, _, value = word.partition("=")
        text = value or following
        if name == "--ready-fd" and text.isascii() and text.isdecimal():
            return int(text)
    return None


def _complain(sentence: str) -> None:
    """On stderr. The journal takes the level from there, where that goes to it
    (SyslogLevelPrefix=): else why the daemon does not start would be no error."""
    import logging

    from mingled import journal

    level = f"<{journal.priority(logging.ERROR)}>" if journal.connected() else ""
    click.echo(f"{level}mingled: {clean(sentence)}", err=True)


def _say(fd: int, word: str) -> None:
    try:
        os.write(fd, clean(word).encode() + b"\n")
        os.close(fd)
    except OSError:
        pass  # the client did not wait


def _tell_client(sentence: str) -> None:
    """Before the command's body has begun, which tells it itself."""
    fd = _ready_fd(sys.argv[1:])
    if fd is not None:
        _say(fd, sentence)


def _raise_descriptors() -> None:
    """As many descriptors as we may have: each follower and each client takes some, and the usual
    soft limit of 1,024 would let one user's clients shut out the rest."""
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # also where the unit's filter forbids it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _make_folder(folder: Path) -> None:
    """The socket's folder, where we may make it; where we may not, binding says why."""
    before = os.umask(0o022)  # every user is to reach the socket in it
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o755, exist_ok=True)
    os.umask(before)


def main() -> None:
    configuration.forget_exported(os.environ)
    try:
        command.main(prog_name="mingled", standalone_mode=False)
    except (KeyboardInterrupt, click.exceptions.Abort):
        raise SystemExit(130) from None
    except click.ClickException as error:
        sentence = _said_by(error)
        _tell_client(sentence)
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(error.ctx.get_usage(), err=True)
        _complain(sentence)
        raise SystemExit(error.exit_code) from None
    except MingleError as error:  # the configuration file's
        _tell_client(str(error))
        _complain(str(error))
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
