"""`mingle service`: the daemon as a service of this machine, under systemd."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import click
import msgspec

from mingled import __version__, client, locks
from mingled.cli import trusted
from mingled.core import local
from mingled.errors import BadInput, DaemonError, MingleError, NotPermitted
from mingled.wording import clean

FILES = {
    # in the package: on the machine
    "mingled.sysusers": "/etc/sysusers.d/mingled.conf",
    "mingled.tmpfiles": "/etc/tmpfiles.d/mingled.conf",
    "mingled.socket": "/etc/systemd/system/mingled.socket",
    "mingled.service": "/etc/systemd/system/mingled.service",
    "mingled-user.service": "/etc/systemd/user/mingled.service",
}

UNITS = ("mingled.socket", "mingled.service")

RUNS = ("active", "reloading")

WRITTEN_FOR = "/opt/mingled/bin/"
"""The programs' folder in the units as they are packed."""

_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")
"""What needs no quoting in a unit."""

COMMAND_S = 60.0
"""For one of systemd's commands: a daemon that does not become ready takes 20 s to be told."""


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """One unit in the JSON output of `mingle service status`."""

    name: str
    installed: bool
    enabled: bool
    state: str  #: systemd's ActiveState: active, reloading, inactive, failed, activating, ...
    result: str  #: why it is not active, where it failed: exit-code, watchdog, ...
    pid: int  #: 0: none
    restarts: int  #: by systemd itself, since it was started
    text: str  #: what the daemon says of itself


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON output of `mingle service status`."""

    host: str
    installed_release: str  #: of the mingle that answers
    running_release: str  #: of the daemon that serves the system's socket; empty: none does
    units: tuple[Unit, ...]


@click.group()
def command() -> None:
    """The daemon as a service of this machine, for every user on it (systemd).

    \b
    sudo /usr/bin/python3 -m venv /opt/mingled
    sudo /opt/mingled/bin/pip install .    # in a clone
    sudo /opt/mingled/bin/mingle service install
    """


@command.command()
def install() -> None:
    """Put the units into place and start the daemon; again after an upgrade, or at any time."""
    _need_systemd()
    _need_root("install")
    trusted.check(trusted.installation())
    folder = _programs()
    state = unit("mingled.service").state
    runs = state in RUNS
    if state in ("inactive", "failed"):
        _need_free(client.SYSTEM_SOCKET)
    # Empty also for a daemon that cannot be asked: of another protocol, or at another socket.
    running = running_release()
    changed = [path for name, path in FILES.items() if _put(Path(path), text_of(name, folder))]
    for path in changed:
        _say(f"wrote {path}")
    # Whoever made a key before there was a group has given it to root alone: tmpfiles mends that.
    _run("systemd-sysusers", FILES["mingled.sysusers"])
    _run("systemd-tmpfiles", "--create", FILES["mingled.tmpfiles"])
    _run("systemctl", "daemon-reload")
    _run("systemctl", "enable", "--quiet", *UNITS)
    _forget_failures(UNITS)
    if runs and (changed or running != __version__):
        # The socket only where it is another now: meanwhile nobody can connect.
        moved = FILES["mingled.socket"] in changed
        _run("systemctl", "restart", *(UNITS if moved else UNITS[1:]))
        before = running or "another release"
        _say(f"restarted the daemon: {before} before, {__version__} now; jobs that run go on")
    else:
        _run("systemctl", "start", *UNITS)
    if not changed and running == __version__:
        _say(f"mingled {__version__} is installed and runs already: nothing to do")
    else:
        _say(f"mingled {__version__} runs for every user of {socket.gethostname()}, and at boot")


@command.command()
def uninstall() -> None:
    """Stop the daemon and take the units away. Jobs that run go on, unwatched; keys and the
    configuration stay."""
    _need_systemd()
    _need_root("uninstall")
    there = [Path(path) for path in FILES.values() if Path(path).exists()]
    if not there:
        _say("no unit of mingled is installed here: nothing to do")
        return
    units = [name for name in UNITS if Path(FILES[name]) in there]
    if units:
        _run("systemctl", "disable", "--quiet", "--now", *units)
        _forget_failures(units)
    for path in there:
        path.unlink(missing_ok=True)
        _say(f"removed {path}")
    _run("systemctl", "daemon-reload")
    kept = [
        str(p) for p in (Path("/etc/mingled/mingled.toml"), Path("/etc/mingled/key")) if p.exists()
    ]
    _say(f"left in place: user mingle{''.join(f', {path}' for path in kept)}")


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def status(as_json: bool) -> None:
    """Whether the daemon is installed as a service, runs, and of which release it is.

    Exits with 80 where it does not run.
    """
    _need_systemd()
    found = Service(
        host=socket.gethostname(),
        installed_release=__version__,
        running_release=running_release(),
        units=tuple(map(unit, UNITS)),
    )
    if as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        for one in found.units:
            _show(one)
        if found.running_release:
            click.echo(f"release: {clean(found.running_release)}")
        if found.running_release not in ("", __version__):
            _say(
                f"the daemon that runs is {clean(found.running_release)}, installed is "
                f"{__version__}: sudo systemctl restart mingled"
            )
    service = found.units[-1]
    if not service.installed:
        raise DaemonError(
            f"mingled is no service on {found.host}; sudo {Path(sys.prefix, 'bin', 'mingle')} "
            "service install"
        )
    if service.state not in RUNS:
        raise DaemonError(
            f"the service mingled on {found.host} is {service.state} ({service.result}); see "
            "journalctl -u mingled, then sudo systemctl start mingled"
        )


def _show(one: Unit) -> None:
    words = [one.name, one.state if one.installed else "not installed"]
    if one.installed:
        words.append("at boot" if one.enabled else "not at boot")
    if one.pid:
        words.append(f"pid {one.pid}")
    if one.restarts:
        words.append(f"restarted {one.restarts} times by systemd")
    if one.text:
        words.append(clean(one.text))
    click.echo("  ".join(words))


# ---------------------------------------------------------------- parts


def text_of(name: str, folder: Path) -> str:
    """A file of the package with the programs in `folder`."""
    text = resources.files("mingled").joinpath("units", name).read_text(encoding="utf-8")
    return text.replace(WRITTEN_FOR, f"{folder}/")


def unit(name: str) -> Unit:
    """As systemd has it now."""
    wanted = (
        "LoadState",
        "UnitFileState",
        "ActiveState",
        "Result",
        "MainPID",
        "NRestarts",
        "StatusText",
    )
    said = _run("systemctl", "show", name, f"--property={','.join(wanted)}")
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    return Unit(
        name=name,
        installed=found.get("LoadState") == "loaded",
        enabled=found.get("UnitFileState") == "enabled",
        state=found.get("ActiveState", "unknown"),
        result=found.get("Result", ""),
        pid=_number(found.get("MainPID")),
        restarts=_number(found.get("NRestarts")),
        text=found.get("StatusText", ""),
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() else 0


def running_release() -> str:
    """Of the service's daemon; empty: it does not run. Asking is no reason to start it, as any
    connection to its socket is."""
    if unit("mingled.service").state not in RUNS:
        return ""
    # At the system's socket, whatever MINGLE_SOCKET says of other daemons.
    try:
        answer = client.ask(client.connect(client.SYSTEM_SOCKET), local.Status())
    except MingleError:
        return ""
    return answer.release if isinstance(answer, local.Report) else ""


def _forget_failures(units: Sequence[str]) -> None:
    """A unit that failed would stay in `systemctl --failed` without its file, and one that did so
    too often within 10 s could not be started."""
    with contextlib.suppress(MingleError):  # systemd has none of them in memory
        _run("systemctl", "reset-failed", *units)


def _programs() -> Path:
    folder = Path(sys.prefix, "bin")
    if not _PLAIN.fullmatch(str(folder)):
        raise BadInput(
            f"{folder} on {socket.gethostname()}: a unit's path is letters, digits and _ . + - /; "
            f"{trusted.MEND}"
        )
    return folder


def _need_systemd() -> None:
    # sd_booted(3)
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        raise DaemonError(
            f"systemd does not run on {socket.gethostname()}: have your service manager run "
            f"{Path(sys.prefix, 'bin', 'mingled')} as a user of its own, or leave it to "
            "mingle-wait, which starts a private daemon"
        )


def _need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise NotPermitted(
            f"mingle service {what} on {socket.gethostname()} is for root: sudo "
            f"{Path(sys.prefix, 'bin', 'mingle')} service {what}"
        )


def _need_free(path: Path) -> None:
    """systemd would put its socket over that of a daemon that was started by hand, which nobody
    could reach any more. The lock of one that was killed goes: the service's user may not open
    what root has made."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        locks.release(locks.acquire(lock_path, wait=False), lock_path)
    except BlockingIOError:
        raise DaemonError(
            f"{path} on {socket.gethostname()}: a mingled that is no service serves it already; "
            "stop that (mingle status names its pid), then run this again: jobs that run go on"
        ) from None
    except OSError:
        pass  # no folder, no daemon


def _put(path: Path, text: str) -> bool:
    """Write it, all or nothing; False: it is so already."""
    try:
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
            return False
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise MingleError(
            f"{path} on {socket.gethostname()}: {error.strerror}; mend it, then run this again"
        ) from None
    return True


def _run(*words: str) -> str:
    """What it says on stdout. Raises `MingleError` where it fails, with what it says."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", check=False, timeout=COMMAND_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MingleError(f"`{' '.join(words)}` on {socket.gethostname()}: {error}") from None
    if done.returncode:
        said = clean(" ".join(done.stderr.split())) or f"exit code {done.returncode}"
        raise MingleError(
            f"`{' '.join(words)}` on {socket.gethostname()}: {said}; see journalctl -u mingled"
        )
    return done.stdout


def _say(sentence: str) -> None:
    click.echo(f"mingle service: {sentence}", err=True)
