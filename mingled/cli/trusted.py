"""Whether code may run for every user of this machine: nobody but root can change it."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import mingled
from mingled.errors import BadInput

HOMES = (Path("/home"), Path("/root"))
USERS_FROM = 1_000
"""Below are the system's own accounts, whose homes are folders of the system."""

MEND = "make the installation anew: sudo /usr/bin/python3 -m venv --clear /opt/mingled"
"""By the system's own Python: a plain `python3` may be one below a home, as before."""


def installation() -> tuple[Path, ...]:
    """What a daemon of this installation would run: the program, its interpreter, its modules, also
    those that a .pth file or the system's packages bring. First on the path is where the program
    that asks lies, or the folder that it was called in."""
    return (
        Path(sys.prefix, "bin", "mingled"),
        Path(sys.executable),
        Path(sys.base_prefix),
        Path(os.__file__),
        Path(mingled.__file__).parent,
        Path(sys.prefix),
        *(Path(entry) for entry in sys.path[1:] if os.path.exists(entry)),
    )


def check(places: Iterable[Path]) -> None:
    """Each of `places`, with every folder and link on the way there, and everything below those
    that are ours (a virtual environment, the package). Raises `BadInput` naming what is wrong."""
    homes = _homes()
    for place in places:
        for way in _ways(place):
            for home in homes:
                if home in (way, *way.parents):
                    raise _bad(way, f"lies below a home ({home}), which the unit cannot see")
            for step in (*reversed(way.parents), way):
                _check_one(step)
    ours = {Path(mingled.__file__).parent}
    if sys.prefix != sys.base_prefix:
        ours.add(Path(sys.prefix))
    for top in ours & set(places):
        for below in _below(top):
            _check_one(below)


def _check_one(path: Path) -> None:
    try:
        about = path.lstat()
    except OSError as error:
        raise _bad(path, error.strerror or str(error)) from None
    if about.st_uid != 0:
        raise _bad(path, f"belongs to {_user(about.st_uid)}, who could change what runs")
    if stat.S_ISLNK(about.st_mode):
        return  # its mode means nothing; where it leads is looked at by itself
    if about.st_mode & stat.S_IWOTH:
        raise _bad(path, "can be written by everybody")
    if about.st_mode & stat.S_IWGRP and about.st_gid != 0:
        raise _bad(path, f"can be written by group {about.st_gid}")
    if about.st_mode & stat.S_IWGRP and _has_acl(path):
        raise _bad(path, "can be written by whom its access list names (getfacl)")


def _has_acl(path: Path) -> bool:
    """Then the mode's group bits are the most that anybody in the list has (acl(5))."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access", follow_symlinks=False))
    except OSError:  # it has none, or its file system knows none
        return False


def _ways(place: Path) -> Iterator[Path]:
    """The paths that a lookup of `place` takes: itself, and where each link on the way leads."""
    seen: set[Path] = set()
    left = [place]
    while left:
        path = Path(os.path.abspath(left.pop()))
        if path in seen:
            continue
        seen.add(path)
        yield path
        for step in (path, *path.parents):
            if step.is_symlink():
                left += [step.parent / os.readlink(step), step.resolve()]


def _below(top: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(top):
        for name in (*names, *files):
            yield Path(folder, name)


def _homes() -> tuple[Path, ...]:
    own = {
        Path(user.pw_dir)
        for user in pwd.getpwall()
        if user.pw_uid == 0 or user.pw_uid >= USERS_FROM
    }
    return tuple(sorted({*HOMES, *own} - {Path("/")}))


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _bad(path: Path, what: str) -> BadInput:
    return BadInput(
        f"{path} on {socket.gethostname()} {what}; a daemon for all users must not run it: {MEND}"
    )
