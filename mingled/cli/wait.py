"""`mingle-wait`: wait for a job's rank 0, then run CMD, or print what to evaluate."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
import msgspec

from mingled import __version__, client
from mingled.cli import child, printing, shell
from mingled.cli.display import Display
from mingled.cli.forms import RESTARTS_MAX, STOP_GRACE, Flags, OnLost, check_watched, reaction, wish
from mingled.cli.scheduling import completed
from mingled.core import local
from mingled.errors import BadInput, MingleError
from mingled.frameworks.dialects import registry
from mingled.frameworks.environment import TUNING, check_interfaces
from mingled.frameworks.software import software
from mingled.wording import clean, split_warning

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

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
  87       cancelled (mingle cancel); or the wait was ended: mingle leave, a newer join
  88       CMD was stopped, since a member was lost (--on-lost)
  89       the run that was waited for has ended
  126/127  CMD cannot be run / is not there
  130/143  Ctrl-C / SIGTERM while waiting; 128+n: CMD was killed by signal n
  else     CMD's own
"""


@click.command(
    # CMD's own options are CMD's, also without the --.
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
    epilog=_EXITS,
)
@click.option(
    "--job",
    metavar="ID",
    help="What the job is called, the same on every machine.  [default: a scheduler's]",
)
@click.option(
    "--nnodes",
    "--nodes",
    metavar="N|MIN:MAX",
    help="One launcher (torchrun) on each of N nodes. A torchrun line's own --nnodes will do.",
)
@click.option(
    "--node-rank",
    type=int,
    metavar="R",
    help="This node's rank.  [default: a scheduler's, or automatic]",
)
@click.option(
    "--nproc-per-node",
    metavar="G",
    help="Processes that the launcher starts here: a number, gpu, cpu or auto.  [default: 1]",
)
@click.option("--world-size", type=int, metavar="W", help="W single processes, one join each.")
@click.option(
    "--rank",
    type=int,
    metavar="R",
    help="This process's rank.  [default: a scheduler's, or automatic]",
)
@click.option(
    "--timeout",
    default="10m",
    show_default=True,
    metavar="TIME",
    help="How long to wait, as in 90s, 10m, 1h30m, or none.",
)
@click.option(
    "--last-call",
    metavar="TIME",
    help="With MIN:MAX nodes: from MIN on, wait until nobody new came for so long.  "
    "[default: the daemon's, 3s]",
)
@click.option("--no-wait", is_flag=True, help="Refuse, where a round of the job runs already.")
@click.option("--any-user", is_flag=True, help="Let other users' participants into the job.")
@click.option(
    "--on-lost",
    type=click.Choice(["warn", "stop", "restart", "ignore"]),
    default="warn",
    show_default=True,
    help="When another member is lost while CMD runs: say so; or stop CMD; or stop it, join again "
    "and start it anew, as also when CMD fails; or nothing. CMD's own exit 0 ends the job.",
)
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"How often --on-lost restart starts CMD again.  [default: {RESTARTS_MAX}]",
)
@click.option(
    "--stop-grace",
    default=STOP_GRACE,
    show_default=True,
    metavar="TIME",
    help="For CMD, from the SIGTERM of --on-lost to SIGKILL. torchrun gives its workers 30 s.",
)
@click.option(
    "--interface",
    "interfaces",
    multiple=True,
    metavar="NAME",
    help="Use only this interface or address of this machine; may be repeated.  "
    "[env: MINGLE_INTERFACE]",
)
@click.option(
    "--subnet",
    "subnets",
    multiple=True,
    metavar="CIDR",
    help="Use only addresses in this subnet, as in 10.0.0.0/24.  [env: MINGLE_SUBNET]",
)
@click.option(
    "--peers",
    multiple=True,
    metavar="HOST,...",
    help="Where multicast does not reach: hosts to ask, or a DNS name of them all.  "
    "[env: MINGLE_PEERS]",
)
@click.option(
    "--require-same",
    multiple=True,
    metavar="WHAT,...",
    help="Refuse whoever runs another python, torch, cuda, nccl, driver, git commit, cmd or "
    "script; all: any of these.  [env: MINGLE_REQUIRE_SAME]",
)
@click.option(
    "--secret-file",
    default="",
    metavar="PATH",
    help="Let in only who has the same file, beside the same job ID and cluster key.  "
    "[env: MINGLE_SECRET_FILE]",
)
@click.option(
    "--for",
    "dialects",
    multiple=True,
    metavar="NAME,...",
    help="Set what these read, too: " + ", ".join(registry.SPOKEN) + ".",
)
@click.option(
    "--sing-suffix",
    metavar="DOMAIN",
    help="Of SING_HOST_ADDR, JOB-RANK.DOMAIN; `local` is answered by mDNS, which shows the job's "
    "name on the network.  [env: SING_HOSTNAME_SUFFIX; default: local]",
)
@click.option("--exec", "exec_", is_flag=True, help="Become CMD instead of staying as its parent.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["shell", *registry.BY_NAME]),
    metavar="NAME",
    help="Without CMD: what to print on stdout. json, dotenv, docker (an --env-file); deepspeed, "
    "openmpi: the path of a hostfile; else shell text, as --for NAME sets it.  [default: shell]",
)
@click.version_option(__version__, prog_name="mingle-wait")
@click.option("--adopt", metavar="TOKEN", hidden=True)
@click.argument(
    "cmd",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="[-- CMD ...]",
    shell_complete=lambda ctx, parameter, incomplete: _files(incomplete),
)
def command(
    job: str | None,
    nnodes: str | None,
    node_rank: int | None,
    nproc_per_node: str | None,
    world_size: int | None,
    rank: int | None,
    timeout: str,
    last_call: str | None,
    no_wait: bool,
    any_user: bool,
    on_lost: OnLost,
    max_restarts: int | None,
    stop_grace: str,
    interfaces: tuple[str, ...],
    subnets: tuple[str, ...],
    peers: tuple[str, ...],
    require_same: tuple[str, ...],
    secret_file: str,
    dialects: tuple[str, ...],
    sing_suffix: str | None,
    exec_: bool,
    format_: str | None,
    adopt: str | None,
    cmd: tuple[str, ...],
) -> None:
    """Wait until everybody in job ID is there, then run CMD with rank 0's address.

    \b
    On every machine the same line:
      mingle-wait --job bert --nnodes 4 -- torchrun train.py
      mingle-wait --job bert --world-size 4 -- python train.py
      eval "$(mingle-wait --job bert --rank 1)"

    \b
    What Slurm, Open MPI, Kubernetes or SING_* know need not be said:
      srun --ntasks-per-node 1 mingle-wait -- torchrun train.py
    """
    if adopt is not None:
        _adopt(adopt, cmd)
        return
    if exec_ and not cmd:
        raise BadInput(f"job {job}: --exec without CMD; add -- CMD, or delete --exec")
    if cmd and format_ is not None:
        raise BadInput(f"job {job}: --format is for a wait without CMD; {_instead(format_)}")
    shape = (job, nnodes, node_rank, nproc_per_node, world_size, rank)
    if format_ in registry.SPOKEN:
        dialects += (format_,)
    flags = Flags(
        *shape,
        timeout,
        last_call,
        not no_wait,
        any_user,
        stop_grace,
        interfaces,
        subnets,
        peers,
        require_same,
        secret_file,
        dialects,
        sing_suffix,
    )
    react = reaction(job, on_lost, max_restarts, cmd=bool(cmd), exec_=exec_)
    flags, scheduled = completed(flags, cmd, os.environ, host=os.uname().nodename, on_lost=on_lost)
    wanted = wish(flags, cmd, os.environ, adopt=not cmd)
    check_watched(wanted.join.form, react, wanted.join.job)
    printing.check(format_, wanted.join.job)
    path = child.look_up(cmd[0], wanted.join.job) if cmd else ""
    _check_interfaces()
    join = wanted.join
    display = Display(join.job, join.form)
    if scheduled:
        display.line(scheduled)
    warning = split_warning(join.job, join.size_min, join.size_max)
    if warning is not None:
        display.told(local.Notice(kind="warning", sentence=warning))

    def joined(failed: str) -> client.Lease:
        # Anew each time: a script may be mended between two rounds.
        meanwhile = _import_supervise if cmd else None
        stated = software(cmd, Path(), meanwhile) if join.compares else None
        listens = bool(cmd) and not exec_
        request = msgspec.structs.replace(join, lost=failed, software=stated, listens=listens)
        try:
            return client.join(request, display.told)
        finally:
            display.close()

    try:
        lease = joined("")
        if not cmd:
            printing.show(lease, wanted.chosen, format_ or printing.SHELL, display)
            return
        from mingled.cli import supervise

        if exec_:
            argv, env = supervise.prepared(lease, wanted, cmd, display)
            child.replace(path, argv, env, join.job)
        supervisor = supervise.Supervisor(
            wanted, path, cmd, reaction=react, display=display, joined=joined
        )
        raise SystemExit(supervisor.run(lease))
    except KeyboardInterrupt:
        raise _Ended(signal.SIGINT, join.job) from None
    except _Ended as end:
        raise _Ended(end.args[0], join.job) from None


def _files(incomplete: str) -> list[CompletionItem[str]]:
    """CMD's words are mostly files: the script that is to run, and what it reads."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _import_supervise() -> None:
    """It is needed next: it costs nothing while git looks at the working folder."""
    importlib.import_module("mingled.cli.supervise")


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


def _instead(format_: str) -> str:
    if format_ in registry.SPOKEN:
        return f"write --for {format_} instead"
    return "delete it, or CMD"


# ---------------------------------------------------------------- errors become exit codes


def _fail(code: int, sentence: str, evaluated: bool) -> NoReturn:
    click.echo(f"mingle-wait: {clean(sentence)}", err=True)
    # `eval "$(mingle-wait ...)"` would return 0 on failure: what is evaluated must fail.
    if evaluated and not sys.stdout.isatty():
        with contextlib.suppress(OSError):
            sys.stdout.write(shell.failure(code))
            sys.stdout.flush()
    raise SystemExit(code)


def _is_evaluated(args: list[str]) -> bool:
    """Is stdout for `eval`? Asked of words that may make no sense, so click is not."""
    flags = {"-h", "--help"}
    for option in command.params:
        flags |= {name for name in option.opts if getattr(option, "is_flag", False)}
    words = iter(args)
    for word in words:
        if word == "--":
            return next(words, None) is None
        if not word.startswith("-"):
            return False
        # A flag that nobody knows is taken to have a value, so that `eval` fails after a typo.
        _, equals, value = word.partition("=")
        if not equals and word not in flags:
            value = next(words, "")
        if word.startswith("--adopt"):
            return False
        if word.startswith("--format") and value not in printing.EVALUATED:
            return value not in registry.BY_NAME  # a typo: in doubt, `eval` must fail
    return True


class _Ended(BaseException):
    """A signal came while waiting."""


def _ended(number: int, _frame: object) -> NoReturn:
    raise _Ended(number)


def _open_streams() -> None:
    """Descriptors 0 to 2 are there, if only as /dev/null: a socket of ours must not become CMD's
    stderr, and a closed stderr is no reason not to train."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number: fd
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def main(args: list[str] | None = None) -> None:
    """Entry point of `mingle-wait`, and of `mingle wait`."""
    _open_streams()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _ended)
    words = sys.argv[1:] if args is None else args
    evaluated = _is_evaluated(words)
    try:
        command.main(args=words, prog_name="mingle-wait", standalone_mode=False)
    except (KeyboardInterrupt, click.exceptions.Abort):
        _fail(128 + signal.SIGINT, "ended by SIGINT", evaluated)
    except _Ended as end:
        number, *job = end.args
        of_job = f"job {job[0]}: " if job else ""
        name = signal.Signals(number).name
        _fail(128 + number, f"{of_job}ended by {name} while waiting", evaluated)
    except click.UsageError as error:
        hint = f" (try: {error.ctx.command_path} --help)" if error.ctx else ""
        _fail(2, f"{error.format_message()}{hint}", evaluated)
    except MingleError as error:
        _fail(error.exit_code, str(error), evaluated)
    except Exception as error:  # not ours: say it whole, but let `eval` fail too
        traceback = importlib.import_module("traceback")
        for line in traceback.format_exc().splitlines():
            click.echo(clean(line), err=True)
        _fail(1, f"{type(error).__name__}: {error}", evaluated)


if __name__ == "__main__":
    main()
