"""`mingle-wait`: wait for a job's rank 0, then run CMD, or print what to evaluate."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import click

from mingled import client
from mingled.cli import child, shell, torchrun
from mingled.cli.display import Display, released_line
from mingled.cli.forms import Flags, Wish, wish
from mingled.core.words import Form
from mingled.errors import BadInput, MingleError
from mingled.frameworks.environment import TUNING, check_interfaces, environment

_EXITS = """\b
Exit codes:
  0        CMD succeeded, or the variables were printed
  2        usage: the sentence names the flag to add or delete
  80       no daemon could be reached or started, or it died meanwhile
  81       refused: rank taken, sizes differ, another form
  82       --timeout is over
  83       another node claims rank 0 as well
  84       two versions that do not understand each other
  85       the socket or the job belongs to another user
  86       the outcome cannot be known
  87       the wait was ended: mingle leave, or a newer join
  126/127  CMD cannot be run / is not there
  130/143  Ctrl-C / SIGTERM while waiting; 128+n: CMD was killed by signal n
  else     CMD's own
"""


@click.command(
    context_settings={"ignore_unknown_options": False, "help_option_names": ["-h", "--help"]},
    epilog=_EXITS,
)
@click.option("--job", metavar="ID", help="What the job is called, the same on every machine.")
@click.option(
    "--nnodes",
    "--nodes",
    metavar="N|MIN:MAX",
    help="One launcher (torchrun) on each of N nodes. A torchrun line's own --nnodes will do.",
)
@click.option("--node-rank", type=int, metavar="R", help="This node's rank; default: automatic.")
@click.option(
    "--nproc-per-node",
    metavar="G",
    help="Processes that the launcher starts here: a number, gpu, cpu or auto.  [default: 1]",
)
@click.option("--world-size", type=int, metavar="W", help="W single processes, one join each.")
@click.option("--rank", type=int, metavar="R", help="This process's rank; default: automatic.")
@click.option(
    "--timeout",
    default="10m",
    show_default=True,
    metavar="TIME",
    help="How long to wait, as in 90s, 10m, 1h30m, or none.",
)
@click.option("--exec", "exec_", is_flag=True, help="Become CMD instead of staying as its parent.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["shell", "json"]),
    default="shell",
    show_default=True,
    help="Without CMD: what to print on stdout.",
)
@click.option("--adopt", metavar="TOKEN", hidden=True)
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD ...]")
def command(
    job: str | None,
    nnodes: str | None,
    node_rank: int | None,
    nproc_per_node: str | None,
    world_size: int | None,
    rank: int | None,
    timeout: str,
    exec_: bool,
    format_: str,
    adopt: str | None,
    cmd: tuple[str, ...],
) -> None:
    """Wait until everybody in job ID is there, then run CMD with rank 0's address.

    \b
    On every machine the same line:
      mingle-wait --job bert --nnodes 4 -- torchrun train.py
      mingle-wait --job bert --world-size 4 -- python train.py
      eval "$(mingle-wait --job bert --rank 1)"
    """
    if adopt is not None:
        _adopt(adopt, cmd)
        return
    flags = Flags(job, nnodes, node_rank, nproc_per_node, world_size, rank, timeout)
    if exec_ and not cmd:
        raise BadInput(f"job {job}: --exec without CMD; add -- CMD, or delete --exec")
    wanted = wish(flags, cmd, os.environ, adopt=not cmd)
    path = child.look_up(cmd[0], wanted.join.job) if cmd else ""
    _check_interfaces()
    display = Display(wanted.join.job, wanted.join.form)
    try:
        lease = client.join(wanted.join, display.told)
    finally:
        display.close()
    if cmd:
        _run(lease, wanted, path, cmd, display, exec_)
    else:
        _print(lease, format_, display)


def _adopt(token: str, words: tuple[str, ...]) -> None:
    if len(words) != 1 or not words[0].isdigit():
        raise BadInput(
            "--adopt TOKEN PID is what the printed text itself calls; evaluate that text"
        )
    client.adopt(token, int(words[0]))


def _check_interfaces() -> None:
    if any(os.environ.get(name) for name, _ in TUNING):
        from mingled.net.interfaces import interface_names

        check_interfaces(os.environ, interface_names())


def _say(lease: client.Lease, display: Display, replaced: list[tuple[str, str, str]]) -> None:
    display.line(released_line(lease.config, lease.found_s, lease.waited_s))
    for name, old, new in replaced:
        display.line(f"{name}={old} in the environment is replaced by {new}")


def _run(
    lease: client.Lease,
    wanted: Wish,
    path: str,
    cmd: tuple[str, ...],
    display: Display,
    exec_: bool,
) -> None:
    changes = environment(lease.config, present=os.environ)
    _say(lease, display, changes.replaced)
    argv = list(cmd)
    if wanted.line is not None and wanted.line.direct:
        argv = torchrun.rewrite(wanted.line, lease.config)
        display.line("runs " + " ".join(argv))
    env = changes.merged(os.environ)
    job = lease.config.job
    if exec_:
        child.replace(path, argv, env, job)
    try:
        status = child.run(path, argv, env, job=job, connection=lease.connection, told=display.told)
    except MingleError:
        lease.leave(lost=True, reason="CMD could not be run")
        raise
    code = child.exit_code(status)
    lease.leave(lost=code != 0, reason=child.describe(status))
    raise SystemExit(code)


def _print(lease: client.Lease, format_: str, display: Display) -> None:
    changes = environment(lease.config, present=os.environ)
    _say(lease, display, changes.replaced)
    token = f"{lease.connection.path}#{lease.token}"
    if format_ == "json":
        import msgspec

        text = msgspec.json.encode({"config": lease.config, "adopt": token}).decode() + "\n"
    else:
        adopt = [os.path.abspath(sys.argv[0]), "--adopt", token]
        if not os.access(adopt[0], os.X_OK):  # run as a module
            adopt = [sys.executable, "-m", "mingled.cli.wait", "--adopt", token]
        text = shell.assignments(changes.values, changes.unset, adopt=adopt)
    sys.stdout.write(text)
    sys.stdout.flush()
    if lease.config.form is Form.PLAIN and lease.config.interface is None:
        display.line("rank 0 has several addresses; set NCCL_SOCKET_IFNAME yourself if need be")


# ---------------------------------------------------------------- errors become exit codes


def _fail(code: int, sentence: str) -> NoReturn:
    if sentence:
        click.echo(f"mingle-wait: {sentence}", err=True)
    # `eval "$(mingle-wait ...)"` would return 0 on failure: what is evaluated must fail.
    if "--" not in sys.argv and not sys.stdout.isatty() and "json" not in " ".join(sys.argv):
        try:
            sys.stdout.write(shell.failure(code))
            sys.stdout.flush()
        except OSError:
            pass
    raise SystemExit(code)


def _terminated(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main(args: list[str] | None = None) -> None:
    """Entry point of `mingle-wait`, and of `mingle wait`."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        command.main(args=args, prog_name="mingle-wait", standalone_mode=False)
    except KeyboardInterrupt:
        _fail(128 + signal.SIGINT, "interrupted")
    except click.exceptions.Abort:
        _fail(128 + signal.SIGINT, "interrupted")
    except click.UsageError as error:
        hint = f" (try: {error.ctx.command_path} --help)" if error.ctx else ""
        _fail(2, f"{error.format_message()}{hint}")
    except MingleError as error:
        _fail(error.exit_code, str(error))
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGTERM:
            _fail(128 + signal.SIGTERM, "terminated")
        raise


if __name__ == "__main__":
    main()
