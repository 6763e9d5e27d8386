"""Cluster keys in files: found, read, written. A key is 256 bits; whoever has it belongs.

A file holds one key a line, as 64 hexadecimal digits. The first is presented, all are accepted: so
keys can be changed on running machines (`mingle key rotate`). Only its owner and root may write it,
and beside them only one group may read it.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mingled.core.secrets import KEY_BYTES, KEYS_MAX, key_id_of, secret_of
from mingled.errors import BadInput, NotPermitted

SYSTEM = Path("/etc/mingled/key")
"""Of the machine: the system's daemon uses it, and whoever may read it."""

NONE = "none"
"""Instead of a file: no key, although there may be one."""

VARIABLE = "MINGLE_KEY_FILE"
SECRET_VARIABLE = "MINGLE_SECRET_FILE"

FILE_BYTES_MAX = 16 * 1024
"""Of a key file: eight keys with room for remarks."""

SECRET_BYTES_MIN = 16
SECRET_BYTES_MAX = 64 * 1024
"""Of a job's secret: less could be guessed, more is some other file."""

_LINE = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}")


def own(environ: Mapping[str, str] = os.environ) -> Path:
    """This user's own key file, there or not."""
    # A container's user may have no home: then "~" stays, and nothing is there.
    home = environ.get("HOME") or os.path.expanduser("~")
    return Path(environ.get("XDG_CONFIG_HOME") or Path(home) / ".config") / "mingled" / "key"


def find(environ: Mapping[str, str] = os.environ, *, system: bool = False) -> Path | None:
    """Where the key is: where MINGLE_KEY_FILE says, else this user's own, else the machine's.
    `system`: a daemon for all users has none of its own. None: there is no key."""
    named = environ.get(VARIABLE, "")
    if named:
        return None if named == NONE else Path(os.path.expanduser(named))
    places = (SYSTEM,) if system else (own(environ), SYSTEM)
    return next((path for path in places if _there(path)), None)


def _there(path: Path) -> bool:
    """A link that leads nowhere is there as well: its key may be on a disk that is mounted later,
    and to go on without it would let everybody in."""
    try:
        path.lstat()
    except PermissionError:
        return True  # in a folder that is closed to us: what it is, `load` says
    except OSError:
        return False
    return True


def load(path: Path | None) -> tuple[bytes, ...]:
    """The keys of a file, the one to present first; none where there is no file to read. Raises
    `BadInput` for what is no key file, `NotPermitted` for one that others can read, or that we may
    not: going on without a key would let everybody in."""
    if path is None:
        return ()
    text = _private(path, FILE_BYTES_MAX, "key file").decode("utf-8", "replace")
    keys: list[bytes] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if line and not _LINE.fullmatch(line):
            raise BadInput(
                f"{path}, line {number} on {socket.gethostname()}: no key; each is "
                f"{2 * KEY_BYTES} hexadecimal digits (0-9a-f), as `mingle key new` writes them"
            )
        if line and bytes.fromhex(line) not in keys:
            keys.append(bytes.fromhex(line))
    if not keys or len(keys) > KEYS_MAX:
        raise BadInput(
            f"{path} on {socket.gethostname()}: {len(keys)} keys, want 1 to {KEYS_MAX}; "
            "`mingle key new` makes one"
        )
    return tuple(keys)


def load_secret(path: Path) -> str:
    """A job's own secret from a file, as `core.secrets.secret_of`; a newline at its end does not
    count. Raises `BadInput` and `NotPermitted` as `load` does."""
    content = _private(path, SECRET_BYTES_MAX, "secret file").rstrip(b"\r\n")
    if len(content) < SECRET_BYTES_MIN:
        raise BadInput(
            f"{path} on {socket.gethostname()}: {len(content)} bytes could be guessed, want "
            f"{SECRET_BYTES_MIN} or more; for example: openssl rand -hex 32 > {path}"
        )
    return secret_of(content)


class Told(NamedTuple):
    """What a join says of secrets."""

    secret: str  #: of the job; empty: it has none
    key_id: str  #: of the user's own key, which the daemon must have; empty: whichever it has


def told(secret_file: str, environ: Mapping[str, str]) -> Told:
    """`secret_file`: as the user has given it, before MINGLE_SECRET_FILE; empty: not at all. A key
    file that the user names or has counts also where the machine's daemon serves: its job must not
    go on without that key. Raises as `load` and `load_secret`."""
    path = secret_file or environ.get(SECRET_VARIABLE, "")
    secret = load_secret(Path(os.path.expanduser(path))) if path else ""
    if not environ.get(VARIABLE) and not _there(own(environ)):
        return Told(secret, "")
    return Told(secret, key_id_of(next(iter(load(find(environ))), b"")))


def _private(path: Path, bytes_max: int, what: str) -> bytes:
    where = f"{what} {path} on {socket.gethostname()}"
    try:
        # A pipe would be waited for; a daemon must not.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise BadInput(f"{where}: it is no regular file; correct the path")
            _check_owner(about, path, where)
            content = file.read(bytes_max + 1)
    except FileNotFoundError:
        raise BadInput(
            f"{where}: no such file; correct the path, or make it (mingle key new)"
        ) from None
    except PermissionError:
        raise NotPermitted(
            f"{where}: you may not read it; join its group, use the machine's daemon (mingled), "
            f"or set {VARIABLE} to another file"
        ) from None
    except OSError as error:
        raise BadInput(f"{where}: {error.strerror}; correct the path") from None
    if len(content) > bytes_max:
        raise BadInput(f"{where}: over {bytes_max} bytes; is it another file?")
    return content


def _check_owner(about: os.stat_result, path: Path, where: str) -> None:
    folder = stat.S_IMODE(path.parent.stat().st_mode)
    if folder & stat.S_IWOTH and not folder & stat.S_ISVTX:
        raise NotPermitted(
            f"{where}: everybody may replace files in its folder; chmod o-w {path.parent}"
        )
    mode = stat.S_IMODE(about.st_mode)
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise NotPermitted(
            f"{where}: mode {mode:04o} lets others read or change it; chmod 600 {path} (640 lets "
            "one group read it)"
        )
    if about.st_uid not in (0, os.geteuid()):
        raise NotPermitted(
            f"{where}: belongs to uid {about.st_uid}, neither to root nor to you; chown it"
        )


def write(path: Path, keys: Sequence[bytes], *, new: bool) -> None:
    """All or nothing: a file beside it takes its place. `new`: refuse to replace one. The mode and
    group of a file that is replaced are kept; a new one is for its owner alone. Raises
    `BadInput`."""
    before: os.stat_result | None = None
    path = path.resolve()  # behind a link its target is changed, and the link stays
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = "".join(f"{key.hex()}\n" for key in keys)
    try:
        if not new:
            before = path.stat()
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            if before is not None:
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if new:
            os.link(temporary, path)  # of two at the same time one is refused
            temporary.unlink()
        else:
            temporary.replace(path)
    except FileExistsError:
        temporary.unlink(missing_ok=True)
        raise BadInput(
            f"{path} on {socket.gethostname()} is there already; `mingle key rotate` changes keys "
            "without an outage, or move it away first"
        ) from None
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BadInput(
            f"{path} on {socket.gethostname()}: {error.strerror}; choose another place with --file"
        ) from None


class Keyring:
    """The keys of one file as they are now: read again when the file has changed."""

    def __init__(self, path: Path | None, *, may_come: bool = False) -> None:
        """`may_come`: there need be no such file as yet. Raises as `load`."""
        self.path = path
        self._seen = self._look()
        absent = may_come and path is not None and not _there(path)
        self.keys = () if absent else load(path)

    def _look(self) -> tuple[int, ...] | None:
        try:
            about = self.path.stat() if self.path is not None else None
        except OSError:
            return None
        return (about.st_mtime_ns, about.st_ino, about.st_size, about.st_mode) if about else None

    def refresh(self) -> bool:
        """True where the keys are others now. One that cannot be used raises as `load` does, once,
        and the keys before it stay in force."""
        looked = self._look()
        if looked == self._seen:
            return False
        self._seen = looked
        before, self.keys = self.keys, load(self.path)
        return self.keys != before
