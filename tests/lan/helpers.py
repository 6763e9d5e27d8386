"""Commands of mingled on the nodes of a LAN, and what became of them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from mingled.lab import Lan, Node, Process

BIN = Path(sys.executable).parent
WAIT = str(BIN / "mingle-wait")
SOCKET = "/run/mingled/control.sock"
SHOW = ("env", "-0")
"""A CMD that prints its environment, and ends well."""

STAY = ("sh", "-c", "env -0; exec cat")
"""A CMD that prints its environment, and stays until its stdin ends."""

NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    # Python and the checkout may lie where nobody else can read.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
"""Runs what follows as another user than root."""

_PRIMED = """
import sys
from mingled import watching
from mingled.cli import child, supervise, wait
from mingled.frameworks import environment
sys.stderr.write("primed\\n")
sys.stdin.readline()
wait.main(sys.argv[1:])
"""

READY = "link port"
"""What a daemon says once clients can connect."""

PATIENCE_S = 60
"""No test waits for this: it is the end of one that fails."""

Env = Mapping[str, str | None]


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def env(self) -> dict[str, str]:
        """What SHOW printed."""
        return variables(self.out)


def variables(text: str) -> dict[str, str]:
    entries = (entry.partition("=") for entry in text.split("\0"))
    return {name: value for name, equals, value in entries if equals}


class Running:
    """A process on a node whose lines are read as they come."""

    def __init__(self, process: Process | subprocess.Popen[str], name: str) -> None:
        self.process = process
        self._name = name
        self._said = {"out": "", "err": ""}
        self._changed = threading.Condition()
        self._open = 2
        assert process.stdout is not None
        assert process.stderr is not None
        for kind, stream in (("out", process.stdout), ("err", process.stderr)):
            threading.Thread(target=self._read, args=(kind, stream), daemon=True).start()

    @property
    def err(self) -> str:
        return self._said["err"]

    @property
    def out(self) -> str:
        return self._said["out"]

    def until(self, *texts: str, kind: str = "err", times: int = 1) -> str:
        """Block until all of `texts` were said, each so often; all that was said by then."""

        def enough() -> bool:
            return self._open == 0 or all(self._said[kind].count(t) >= times for t in texts)

        with self._changed:
            self._changed.wait_for(enough, PATIENCE_S)
            said = self._said[kind]
        missing = [text for text in texts if said.count(text) < times]
        assert not missing, f"{self._name} never said {missing}, but:\n{self.out}\n{self.err}"
        return said

    def until_true(self, holds: Callable[[], bool]) -> None:
        """Block until `holds`, which is about what was said, does: asked at each new line."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._open == 0 or holds(), PATIENCE_S)
        came = done and holds()
        assert came, f"{self._name} never came to it:\n{self.out}\n{self.err}"

    def says_after(self, act: Callable[[], object], text: str) -> None:
        """Do `act`, then block until `text` was said once more than before it."""
        before = self.err.count(text)
        act()
        self.until(text, times=before + 1)

    def go(self) -> None:
        """A line to its stdin: what `ready_to_wait` waits for."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> Done:
        """Wait for its end."""
        code = self.process.wait(PATIENCE_S)
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0, PATIENCE_S)
        return Done(code if code >= 0 else 128 - code, self.out, self.err)

    def finish(self) -> Done:
        """End its stdin, then wait for its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.end()

    def well(self) -> Done:
        """Wait for its end, which is to be a good one."""
        done = self.end()
        assert done.code == 0, f"{self._name}: {done}"
        return done

    def _read(self, kind: str, stream: IO[str]) -> None:
        try:
            while chunk := os.read(stream.fileno(), 65_536).decode(errors="backslashreplace"):
                with self._changed:
                    self._said[kind] += chunk
                    self._changed.notify_all()
        except (OSError, ValueError):
            pass  # the LAN is closed
        with self._changed:
            self._open -= 1
            self._changed.notify_all()


def start(node: Node, *argv: str, env: Env | None = None) -> Running:
    process = node.popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )
    return Running(process, f"{node.name}: {' '.join(argv)}")


def wait(
    node: Node,
    job: str,
    *flags: str,
    cmd: Iterable[str] = SHOW,
    env: Env | None = None,
    timeout: str = "60s",
    by: Iterable[str] = (),
) -> Running:
    """`mingle-wait --job JOB FLAGS -- CMD` (no CMD: none); started. `by`: what starts it, such as
    `NOBODY`."""
    words = list(cmd)
    tail = ["--", *words] if words else []
    given = (*by, WAIT, "--job", job, "--timeout", timeout, *flags, *tail)
    return start(node, *given, env=env)


def ready_to_wait(
    node: Node, job: str, *flags: str, cmd: Iterable[str] = SHOW, timeout: str = "60s"
) -> Running:
    """The same with Python up and everything imported: `go` has it join at once."""
    words = ("--job", job, "--timeout", timeout, *flags, "--", *cmd)
    running = python(node, _PRIMED, *words)
    running.until("primed")
    return running


def python(node: Node, script: str, *arguments: str, env: Env | None = None) -> Running:
    return start(node, sys.executable, "-c", script, *arguments, env=env)


def daemon(node: Node, socket: str = SOCKET) -> Running:
    """A `mingled` of the system's kind, ready for clients."""
    running = launch(node, socket)
    running.until(READY)
    return running


def launch(node: Node, socket: str = SOCKET) -> Running:
    """The same, started only: it says READY."""
    return start(node, str(BIN / "mingled"), "--socket", socket)


def daemons_on(nodes: Iterable[Node]) -> list[Running]:
    """One where clients look for the system's, on each."""
    started = [launch(node) for node in nodes]
    for running in started:
        running.until(READY)
    return started


def over(node: Node, folder: Path, path: str, text: str) -> None:
    """On this node alone `path` reads as `text`."""
    file = folder / f"{node.name}-{path.replace('/', '-')}"
    file.write_text(text)
    node.run(["mount", "--bind", str(file), path], check=True)


def one_round(lan: Lan, envs: Mapping[int, dict[str, str]]) -> int:
    """What launchers were told, by the number of their node, is one and the same round with ranks
    0 to N - 1, and true: one leads, where all are sent to. The number of rank 0's node."""
    told = list(envs.values())
    shared = ("MINGLE_CLAIM", "MINGLE_ROUND", "MASTER_ADDR", "MASTER_PORT", "MINGLE_HOSTS")
    for name in (*shared, "MINGLE_LEADER_HOST"):
        assert len({env[name] for env in told}) == 1, (name, told)
    assert {env["PET_NNODES"] for env in told} == {str(len(told))}
    by_rank = {int(env["PET_NODE_RANK"]): number for number, env in envs.items()}
    assert sorted(by_rank) == list(range(len(told)))
    addresses = [lan.node(by_rank[rank]).address for rank in sorted(by_rank)]
    assert told[0]["MINGLE_HOSTS"] == ",".join(addresses)
    assert told[0]["MASTER_ADDR"] == addresses[0]
    assert told[0]["MINGLE_LEADER_HOST"] == lan.node(by_rank[0]).name
    return by_rank[0]


def status(node: Node, env: Env | None = None) -> list[dict[str, Any]]:
    """What `mingle status --json` says there."""
    done = node.run([str(BIN / "mingle"), "status", "--json"], env=env, check=True)
    reports: list[dict[str, Any]] = msgspec.json.decode(done.stdout, type=list[dict[str, Any]])
    return reports


def job_on(node: Node, job: str) -> dict[str, Any]:
    """That job as the node's daemons report it."""
    found = [j for report in status(node) for j in report["jobs"] if j["job"] == job]
    (report,) = found
    return dict(report)


def fates(node: Node, job: str) -> list[str]:
    """The states of the last round's members, by rank."""
    return [member["state"] for member in job_on(node, job)["rounds"][-1]["members"]]


def until_fates(node: Node, job: str, wanted: list[str]) -> None:
    """Ask again and again until the node knows of them what it should."""
    until_s = time.monotonic() + PATIENCE_S
    while (known := fates(node, job)) != wanted:
        assert time.monotonic() < until_s, f"{node.name} says {known}, not {wanted}"


def daemons(node: Node) -> list[int]:
    """Process IDs, as this machine counts them, of every mingled on the node."""
    words = ("mingled.cli.mingled", "/mingled --socket")  # a private one, the system's
    return [pid for pid, line in processes(node) if any(word in line for word in words)]


def pidfd_of(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def ended(pids: Iterable[int]) -> bool:
    """Wait until they have all ended."""
    return all(_ended(pidfd) for pid in pids if (pidfd := pidfd_of(pid)) is not None)


def kill_daemon(node: Node) -> None:
    """SIGKILL the one mingled of that node; back when it is gone."""
    (pid,) = daemons(node)
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert _ended(pidfd)


def nothing_left(lan: Lan) -> None:
    """Wait for the end of every private daemon; then no file and no process is there any more."""
    for node in lan.nodes:
        assert ended(daemons(node)), node.name
        left = "find /tmp /run /dev/shm -xdev ! -type d"
        not_ours = r"find /tmp/mingled-* \( ! -perm 0700 -o ! -uid $(id -u) \) 2>/dev/null"
        for look in (left, not_ours):
            found = node.run(["sh", "-c", look]).stdout
            assert not found, f"{node.name}: {found}"
        others = [line for _, line in processes(node) if "mingle" in line]
        assert not others, f"{node.name}: {others}"


def _ended(pidfd: int) -> bool:
    with open(pidfd):
        return bool(select.select([pidfd], [], [], PATIENCE_S)[0])


def processes(node: Node) -> list[tuple[int, str]]:
    """Everything that runs in the node's pid namespace."""
    own = os.stat(f"/proc/{node.holder.pid}/ns/pid").st_ino
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.stat(folder / "ns/pid").st_ino == own:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append((int(folder.name), line))
        except OSError:
            continue
    return found
