"""Which Python will run CMD, and where it looks for packages: read, never started.

Followed are a Python in CMD itself, and a script's `#!` line, as pip writes it for `torchrun`. What
needs more than that (a shell, `uv run`, a container, pyenv's shims) is not known.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import msgspec

from mingled.frameworks.reading import names_in, text

BEFORE = frozenset({"env", "exec", "nice", "nohup", "setsid", "time"})
"""Commands that only run the rest of their line, where no option of theirs is used."""

MOVES_PYTHON = ("PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONNOUSERSITE", "VIRTUAL_ENV")
"""Where `env` sets one of these, the command may find another Python, or that other packages."""

SCRIPT_HEAD_BYTES = 512
"""Of a script: its `#!` line, or the two lines that pip writes where that would be too long."""

SCRIPT_BYTES_MAX = 1024 * 1024
"""Above this a file at the place of a command is a program, not a script."""

PTH_FILES_MAX = 64
"""Of one folder, each with folders to add."""

PTH_NO_FOLDER = ("#", "import ", "import\t")
"""Lines of such a file that name none, as `site.py` reads it."""


class Interpreter(msgspec.Struct, frozen=True):
    """One Python."""

    version: str | None  #: as in 3.11.9; None: not known without starting it
    folders: tuple[str, ...]  #: where it looks for packages, in that order


def of_process() -> Interpreter:
    """The one that runs this."""
    return Interpreter(sys.version.split(maxsplit=1)[0], tuple(p or "." for p in sys.path))


def command_in(cmd: Sequence[str]) -> Sequence[str] | None:
    """CMD from the command on that counts: without `nohup`, `env A=1`; None where that cannot be
    told."""
    at = 0
    while at < len(cmd) and os.path.basename(cmd[at]) in BEFORE:
        is_env = os.path.basename(cmd[at]) == "env"
        at += 1
        while is_env and at < len(cmd) and _is_assignment(cmd[at]):
            if cmd[at].partition("=")[0] in MOVES_PYTHON:
                return None
            at += 1
    return cmd[at:] if at < len(cmd) and not cmd[at].startswith("-") else None


def runs_python(cmd: Sequence[str]) -> bool:
    """Is CMD plainly one Python process: a script, or a module that is not named as a launcher?"""
    rest = command_in(cmd)
    if not rest or not _is_python(rest[0]):
        return False
    module = rest[rest.index("-m") + 1 :] if "-m" in rest else []
    return not module or "launch" not in module[0]


def _is_assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.isidentifier()


def of_command(cmd: Sequence[str]) -> Interpreter | str:
    """The one that CMD will run, or why that is not known."""
    rest = command_in(cmd)
    if rest is None:
        return f"which Python {os.path.basename(cmd[0])} starts cannot be told"
    path = _on_path(rest[0])
    if path is None:
        return f"there is no {os.path.basename(rest[0])}"
    python = _python_of(path)
    if python is None:
        return f"which Python {os.path.basename(rest[0])} starts, if any, cannot be told"
    if _is_ours(python):
        return of_process()
    if os.environ.get("PYTHONHOME"):
        return "PYTHONHOME is set, for another Python than mingled's"
    return _elsewhere(python)


def _on_path(name: str) -> str | None:
    if "/" in name:
        return name if os.path.isfile(name) else None
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder or ".", name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _is_python(word: str) -> bool:
    """`python`, `python3`, `python3.13t`."""
    name = os.path.basename(word)
    return name.startswith("python") and not name[6:].strip("0123456789.t")


def _python_of(path: str) -> str | None:
    """The Python that runs the program at `path`: itself, or that of its `#!` line."""
    head = _head(path)
    if not head.startswith("#!"):
        return path if _is_python(path) else None
    if _is_python(path):
        return None  # pyenv's shim: a shell script that looks for the real one
    line, _, rest = head[2:].partition("\n")
    words = line.split()
    if len(words) == 2 and os.path.basename(words[0]) == "env" and _is_python(words[1]):
        found = _on_path(words[1])
    elif words[:1] == ["/bin/sh"] and rest.startswith("'''exec' "):
        # pip, where the path is too long or has a blank: '''exec' "/the path/python" "$0" "$@"
        command = rest.partition("\n")[0].removeprefix("'''exec' ")
        found = command[1:].partition('"')[0] if command[:1] == '"' else command.split(" ")[0]
    else:
        found = words[0] if words else None
    if found is None or not _is_python(found) or not os.path.isfile(found):
        return None
    return None if _head(found).startswith("#!") else found


def _head(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(SCRIPT_HEAD_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _is_ours(python: str) -> bool:
    """The same program, started from the same folder: a virtual environment is known by that."""
    ours = sys.executable
    return (
        bool(ours)
        and os.path.realpath(python) == os.path.realpath(ours)
        and os.path.realpath(os.path.dirname(python)) == os.path.realpath(os.path.dirname(ours))
    )


# ---------------------------------------------------------------- a Python that is not ours


def _elsewhere(python: str) -> Interpreter | str:
    """`site.py` by reading: a virtual environment's packages, or those of an installed Python."""
    base = os.path.realpath(python)
    base_prefix = os.path.dirname(os.path.dirname(base))
    name = os.path.basename(base)
    if "." not in name:
        found = [n for n in names_in(os.path.join(base_prefix, "lib")) if n.startswith("python3.")]
        if len(found) != 1:
            return f"the version of {python} cannot be told"
        name = found[0]
    folders = [f for f in os.environ.get("PYTHONPATH", "").split(os.pathsep) if f]
    prefix = os.path.dirname(os.path.dirname(os.path.abspath(python)))
    settings = text(os.path.join(prefix, "pyvenv.cfg"))
    if settings:
        folders += _with_added([f"{prefix}/lib/{name}/site-packages"])
    if not settings or _system_too(settings):
        sites = [
            f"{base_prefix}/local/lib/{name}/dist-packages",  # Debian's
            f"{base_prefix}/lib/python3/dist-packages",
            f"{base_prefix}/lib/{name}/site-packages",
        ]
        if not os.environ.get("PYTHONNOUSERSITE"):
            sites.insert(0, os.path.expanduser(f"~/.local/lib/{name}/site-packages"))
        folders += _with_added(sites)
    return Interpreter(_version(base, base_prefix, name), tuple(folders))


def _system_too(settings: str) -> bool:
    for line in settings.splitlines():
        key, _, value = line.partition("=")
        if key.strip().lower() == "include-system-site-packages":
            return value.strip().lower() == "true"
    return False


def _with_added(folders: list[str]) -> list[str]:
    """And the folders that `.pth` files there name, as an editable installation does."""
    found = []
    for folder in folders:
        found.append(folder)
        files = sorted(name for name in names_in(folder) if name.endswith(".pth"))
        for name in files[:PTH_FILES_MAX]:
            lines = text(os.path.join(folder, name)).splitlines()
            named = [line.strip() for line in lines if not line.startswith(PTH_NO_FOLDER)]
            found += [os.path.join(folder, name) for name in named if name]
    return found


def _version(base: str, base_prefix: str, name: str) -> str | None:
    """From its C header, which is where it has it from. A `pyvenv.cfg` says what was true when the
    environment was made, and Python may have been updated below it."""
    if sys.executable and base == os.path.realpath(sys.executable):
        return of_process().version
    header = text(f"{base_prefix}/include/{name}/patchlevel.h")
    for line in header.splitlines():
        words = line.split()
        if words[:2] == ["#define", "PY_VERSION"] and len(words) > 2:
            return words[2].strip('"')
    return None
