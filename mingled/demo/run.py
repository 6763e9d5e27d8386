"""The main job, shown on one machine: a LAN of nodes, `mingle-wait` on each, real training."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from mingled.errors import BadInput, MingleError
from mingled.lab import Lan, available

SCRIPT = Path(__file__).with_name("digits.py")

ACCURACY_MIN = 0.95
"""Below this the demo has failed: the ranks did not really train together."""

TIMEOUT_S = 300
"""The slowest machine that this was tried on needs 40 s."""

NODES_MAX = 16
"""Each node runs two Python processes with torch, about 250 MB apiece."""

_RELEASED = re.compile(r"found in ([\d.]+) s, all here after ([\d.]+) s")

_EXIT_BARRIER = re.compile(
    r" (torch/distributed/elastic/agent/server/api\.py:\d+\]) Error waiting on exit barrier"
)
"""torchrun on rank 0's node ended a moment before another one, and the store with it. The others
log a traceback then, and end with exit 0."""

Say = Callable[[str], None]


class _Running(Protocol):
    """A started command, in a namespace or not."""

    @property
    def stdout(self) -> IO[str] | None: ...

    @property
    def stderr(self) -> IO[str] | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


class _Machine(NamedTuple):
    """Where one node's command is started."""

    name: str
    start: Callable[[list[str]], _Running]


class _Followed:
    """One node's command, its output told line by line and remembered with its time."""

    def __init__(self, machine: _Machine, command: list[str], say: Say) -> None:
        self.name = machine.name
        self.stderr: list[tuple[float, str]] = []
        self.stdout: list[tuple[float, str]] = []
        self._say = say
        self._process = machine.start(command)
        self._threads = [
            threading.Thread(target=self._follow, args=(stream, lines), daemon=True)
            for stream, lines in (
                (self._process.stdout, self.stdout),
                (self._process.stderr, self.stderr),
            )
        ]
        for thread in self._threads:
            thread.start()

    def _follow(self, stream: IO[str] | None, lines: list[tuple[float, str]]) -> None:
        assert stream is not None
        hushed = ""
        for raw in stream:
            line = raw.rstrip("\n")
            lines.append((time.time(), line))
            late = _EXIT_BARRIER.search(line)
            if late:
                hushed, line = (
                    late[1],
                    "torchrun: rank 0's ended first, and the store with it: no harm",
                )
            elif hushed and hushed in line:
                continue
            if line and not line.startswith("{"):
                self._say(f"{self.name:>5} | {line}")

    def wait(self, until: float) -> int:
        """The exit status. Raises `MingleError` past `until` (wall clock)."""
        try:
            code = self._process.wait(timeout=max(0.1, until - time.time()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise MingleError(
                f"job demo on {self.name}: not done within {TIMEOUT_S} s; its last lines are above"
            ) from None
        for thread in self._threads:
            thread.join(timeout=10)
        return code

    def released(self) -> tuple[float, float, float]:
        """When mingle-wait let CMD go, and what it said of its wait: found, all here (seconds)."""
        for at, line in self.stderr:
            match = _RELEASED.search(line)
            if match:
                return at, float(match[1]), float(match[2])
        raise MingleError(f"job demo on {self.name}: mingle-wait never said who rank 0 is")

    def timing(self) -> dict[str, Any] | None:
        """The training script's last word, on the node of rank 0."""
        for _, line in reversed(self.stdout):
            if line.startswith("{"):
                return dict(json.loads(line))
        return None


def run(nnodes: int, say: Say) -> float:
    """Show it; the test accuracy. Raises `BadInput` and `MingleError`."""
    if not 1 <= nnodes <= NODES_MAX:
        raise BadInput(f"--nnodes {nnodes}: the demo takes 1 to {NODES_MAX} nodes")
    for module, package in (("torch", "torch"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(module) is None:
            raise BadInput(f"the demo trains with {package}: pip install 'mingled[demo]'")
    command = ["mingle-wait", "--job", "demo", "--nnodes", str(nnodes), "--", "torchrun"]
    with _machines(nnodes, say) as machines:
        say(f"on each of them: {' '.join(command)} train.py")
        say("")
        started = time.time()
        nodes = [_Followed(m, [*command, str(SCRIPT)], say) for m in machines]
        codes = [node.wait(started + TIMEOUT_S) for node in nodes]
    failed = [f"{n.name} ended with exit {c}" for n, c in zip(nodes, codes, strict=True) if c]
    if failed:
        raise MingleError(f"job demo: {', '.join(failed)}; its lines are above")
    return _conclude(nodes, started, say)


@contextmanager
def _machines(nnodes: int, say: Say) -> Iterator[list[_Machine]]:
    """Namespaces where this machine allows them, else separate runtime folders on loopback."""
    possible = available()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # One thread each: several nodes share this machine's cores, and torchrun would say the same.
    # Nodes without a DNS server: torch would warn that it cannot look its peers' names up.
    env = {"PATH": path, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with ExitStack() as stack:
        if possible.kind != "none":
            lan = stack.enter_context(Lan(nodes=nnodes))
            names = ", ".join(f"{n.name} {n.address}" for n in lan.nodes)
            how = "as root" if possible.kind == "root" else "rootless"
            size = f"{nnodes} node{'s' if nnodes > 1 else ''}"
            say(f"a LAN of {size} in network namespaces ({how}): {names}")

            def on(index: int) -> Callable[[list[str]], _Running]:
                node = lan.node(index + 1)
                return lambda command: node.popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
                )

            yield [_Machine(node.name, on(n)) for n, node in enumerate(lan.nodes)]
            return
        say(f"no network namespaces here: {possible.reason}")
        say(f"so {nnodes} nodes share this machine's loopback, with a runtime folder each")
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mingle-demo-"))
        yield [_local(f"node{n + 1}", Path(folder), env) for n in range(nnodes)]


def _local(name: str, folder: Path, env: dict[str, str]) -> _Machine:
    runtime = folder / name
    runtime.mkdir(mode=0o700)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MINGLE")}
    environ = {**inherited, **env, "XDG_RUNTIME_DIR": str(runtime), "MINGLE_INTERFACE": "lo"}
    return _Machine(
        name,
        lambda command: subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        ),
    )


def _conclude(nodes: list[_Followed], started: float, say: Say) -> float:
    timing = next((t for t in (n.timing() for n in nodes) if t is not None), None)
    if timing is None:
        raise MingleError("job demo: rank 0 reported nothing; its lines are above")
    leader = next(n for n in nodes if n.timing() is not None)
    ended = time.time()
    released = max(node.released()[0] for node in nodes)
    found_s = max(node.released()[1] for node in nodes)
    barrier_s = max(waited - found for _, found, waited in (node.released() for node in nodes))
    accuracy = float(timing["accuracy"])
    named = ("import_torch_s", "init_process_group_s", "training_s", "evaluation_s")
    rest = timing["ended_at"] - timing["started_at"] - sum(timing[name] for name in named)
    say("")
    say(
        f"rank 0 became {leader.name}, reached by the others at {timing['master_addr']} "
        f"port {timing['master_port']}; nobody typed that"
    )
    say(f"test accuracy {accuracy:.1%} on {timing['test_images']} digits that nobody trained on")
    say("where the time went:")
    for words, seconds in (
        ("start of mingle-wait and of the daemons", released - started - found_s - barrier_s),
        ("discovery (until rank 0's node was in touch)", found_s),
        ("barrier (until all were here, the path proven)", barrier_s),
        ("torchrun up to the script (imports torch)", timing["started_at"] - released),
        ("the script's own import of torch", timing["import_torch_s"]),
        ("init_process_group", timing["init_process_group_s"]),
        ("training and test", timing["training_s"] + timing["evaluation_s"]),
        ("loading the data, and the rest of the script", rest),
        ("the ends of torchrun and mingle-wait", ended - timing["ended_at"]),
        ("all of it, from first command to last exit", ended - started),
    ):
        say(f"  {seconds:7.2f} s  {words}")
    if accuracy <= ACCURACY_MIN:
        raise MingleError(f"job demo: accuracy {accuracy:.1%} is not above {ACCURACY_MIN:.0%}")
    return accuracy
