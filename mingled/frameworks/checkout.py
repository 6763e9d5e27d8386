"""The working folder's git commit, and whether its tracked files differ from it.

The commit is read from `.git`. Only git itself knows about changes, so `git status` is asked, for a
limited time, beside whatever else is done meanwhile. It must not change anything, nor run what the
repository's own configuration names: no lock, no index written (`GIT_OPTIONAL_LOCKS=0`), no
fsmonitor, no hooks, no look into submodules, no fetching of what a partial clone lacks. Filters and
included files cannot be switched off, so where `.git/config` has any, git is not asked. git itself
refuses repositories of other users.

Untracked files do not count, as with `git describe --dirty`: every run leaves some.
"""

from __future__ import annotations

import os
import select
import signal
import time

import msgspec
from msgspec.structs import replace

from mingled.frameworks.reading import content, text

GIT_S = 2.0
"""For `git status`: a few milliseconds mostly, seconds in a large folder on a cold disk."""

REAP_S = 0.5
"""For git to end once it has closed its output, or was killed: under a millisecond."""

REFS_MAX = 5
"""From one symbolic ref to the next, as git itself limits it."""

LINE_BYTES_MAX = 64 * 1024
"""Of git's answer: what matters is in its first lines."""

PACKED_REFS_BYTES_MAX = 16 * 1024 * 1024
"""A repository with 200,000 refs."""

STATUS = (
    # Empty: git before 2.36 took any other word as a command's path.
    *("-c", "core.fsmonitor=", "-c", "core.hooksPath=/dev/null", "-c", "protocol.allow=never"),
    *("status", "--porcelain=v2", "--branch", "--no-ahead-behind", "--no-renames"),
    *("--untracked-files=no", "--ignore-submodules=dirty"),
)

KEPT = ("HOME", "XDG_CONFIG_HOME", "PATH", "USER", "LOGNAME")
"""Of our environment. Not GIT_DIR and its like, which lead elsewhere, as inside a git hook."""


class Checkout(msgspec.Struct, frozen=True):
    """What is known of it; `why`: of what is not."""

    commit: str | None = None  #: hexadecimal, 40 or 64 digits
    dirty: bool | None = None
    why: str = ""


class Look:
    """A look at one folder, begun at once; `end` has the result. A context: no git is left behind
    after the block."""

    def __init__(self, folder: str) -> None:
        self._pid: int | None = None
        self._pipe = -1
        self._answered = False
        self._checkout = Checkout()
        top = _top(folder)
        if top is None:
            self._checkout = Checkout(why="the working folder is in no git repository")
            return
        private = _private_folder(top)
        common = _common_folder(private)
        self._checkout = Checkout(commit=_commit(private, common))
        flaw = _flaw(private, common)
        if not flaw:
            flaw = self._start(top)
        self._checkout = replace(self._checkout, why=flaw)

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def end(self) -> Checkout:
        """Waits for git as long as it may take."""
        if self._pid is None:
            return self._checkout
        answer = self._read(time.monotonic() + GIT_S)
        if answer is None:
            self._close()
            return replace(self._checkout, why=f"git status took more than {GIT_S:g} s")
        ended_well = self._close()
        head, dirty = _parse(answer)
        # What git itself says counts; the exit status of one that was cut short does not.
        if not head or not (ended_well or dirty):
            return replace(self._checkout, why="git status fails there: another user's folder?")
        if not _is_commit(head):
            return Checkout(why="there is no commit yet")
        return Checkout(commit=head, dirty=dirty)

    def _start(self, top: str) -> str:
        """Why git cannot be asked; empty: it is being asked."""
        git = _git()
        if git is None:
            return "there is no git command to look for changes with"
        environ = {name: os.environ[name] for name in KEPT if name in os.environ}
        environ |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1"}
        self._pipe, writer = os.pipe()
        try:
            self._pid = os.posix_spawn(
                git,
                [git, "-C", top, *STATUS],
                environ,
                file_actions=(
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, writer, 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ),
                setsigmask=(),
                setsigdef=(signal.SIGPIPE,),
            )
        except OSError as error:
            self._close()
            return f"git cannot be run: {error.strerror}"
        finally:
            os.close(writer)
        return ""

    def _read(self, until: float) -> bytes | None:
        """Its answer, or as much of it as is needed; None when the time is over."""
        answer = bytearray()
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while len(answer) < LINE_BYTES_MAX and not _parse(bytes(answer))[1]:
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                return None
            piece = os.read(self._pipe, 65_536)
            if not piece:
                self._answered = True
                break
            answer += piece
        return bytes(answer)

    def _close(self) -> bool:
        """No pipe and no git any more; one that has not given its whole answer is killed. Did it
        end well?"""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        pid, self._pid = self._pid, None
        return pid is not None and _reap(pid, kill=not self._answered)


def _reap(pid: int, *, kill: bool) -> bool:
    """Waits for its end, not for ever: in a folder whose server is gone nothing ends it."""
    until = time.monotonic() + REAP_S
    try:
        if kill:
            os.kill(pid, signal.SIGKILL)
        while time.monotonic() < until:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return status == 0
            time.sleep(REAP_S / 1000)
    except (ChildProcessError, ProcessLookupError):
        return False  # somebody else here reaps all children, or SIGCHLD is ignored
    return False if kill else _reap(pid, kill=True)


def _parse(answer: bytes) -> tuple[str, bool]:
    """The commit that is checked out, and whether a change is listed. Whole lines count."""
    head, dirty = "", False
    for line in answer.split(b"\n")[:-1]:
        if line.startswith(b"# branch.oid "):
            head = line.removeprefix(b"# branch.oid ").decode(errors="replace")
        elif not line.startswith(b"#"):
            dirty = True
    return head, dirty


def _git() -> str | None:
    """Only from folders that are named in full: `.` on PATH may be anybody's."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, "git")
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


# ---------------------------------------------------------------- reading .git


def _top(folder: str) -> str | None:
    """The folder that has `.git`, itself or above."""
    while True:
        if os.path.lexists(os.path.join(folder, ".git")):
            return folder
        above = os.path.dirname(folder)
        if above == folder:
            return None
        folder = above


def _private_folder(top: str) -> str:
    """`.git`, or where it points to in a worktree and a submodule."""
    path = os.path.join(top, ".git")
    if os.path.isdir(path):
        return path
    pointer = text(path).strip()
    return os.path.join(top, pointer.removeprefix("gitdir:").strip())


def _common_folder(private: str) -> str:
    """Where a worktree's repository keeps what all of its worktrees share."""
    pointer = text(os.path.join(private, "commondir")).strip()
    return os.path.join(private, pointer) if pointer else private


def _flaw(private: str, common: str) -> str:
    """Why git is not to be asked; empty: it may be."""
    for path in (os.path.join(common, "config"), os.path.join(private, "config.worktree")):
        if not os.path.lexists(path):
            continue
        found = content(path)
        if found is None:
            return "its .git/config cannot be read"
        sections = found.lower().split(b"[")[1:]
        if any(section.startswith((b"filter", b"include")) for section in sections):
            return "its .git/config names filters or other files, which may run commands"
    return ""


def _commit(private: str, common: str) -> str | None:
    """What HEAD leads to; None where that is kept in a way that is not read here (reftable)."""
    value = text(os.path.join(private, "HEAD")).strip()
    for _ in range(REFS_MAX):
        if not value.startswith("ref:"):
            break
        ref = value.removeprefix("ref:").strip()
        if not ref.startswith("refs/") or ".." in ref:
            return None
        value = _ref(private, ref) or _ref(common, ref) or _packed(common, ref)
    return value if _is_commit(value) else None


def _ref(folder: str, ref: str) -> str:
    return text(os.path.join(folder, ref)).strip()


def _packed(common: str, ref: str) -> str:
    found = content(os.path.join(common, "packed-refs"), PACKED_REFS_BYTES_MAX) or b""
    wanted = b" " + ref.encode()
    for line in found.split(b"\n"):
        if line.endswith(wanted):
            return line.removesuffix(wanted).decode(errors="replace")
    return ""


def _is_commit(value: str) -> bool:
    return len(value) in (40, 64) and not value.strip("0123456789abcdef")
