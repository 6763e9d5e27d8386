"""What a Dockerfile says, and a process that runs as a container's first one does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from mingled.lab import Node
from tests.lan.helpers import BIN, Running, start

AS_CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""What follows is process 1: as it ends, the kernel kills all others at once, daemons included."""


class Image(NamedTuple):
    """A Dockerfile with a single stage."""

    instructions: tuple[tuple[str, str], ...]  #: (RUN, its words), in order

    def each(self, name: str) -> list[str]:
        return [words for instruction, words in self.instructions if instruction == name]

    @property
    def cmd(self) -> list[str]:
        """The last CMD, in exec form."""
        return [str(word) for word in json.loads(self.each("CMD")[-1])]

    @property
    def workdir(self) -> str:
        return self.each("WORKDIR")[-1]

    @property
    def copies(self) -> list[tuple[list[str], str]]:
        """Each COPY: the sources in the build's folder, and where they go."""
        split = [words.split() for words in self.each("COPY")]
        return [(words[:-1], words[-1]) for words in split]


def image(path: Path) -> Image:
    """Of that Dockerfile: comments gone, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    parts = [line.partition(" ") for line in joined if line.strip()]
    return Image(tuple((name.upper(), " ".join(words.split())) for name, _, words in parts))


def container(
    node: Node, argv: Iterable[str], workdir: Path, env: Mapping[str, str] | None = None
) -> Running:
    """`argv` in a container of that node, whose image has Python's commands in PATH."""
    path = f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    given = {"PATH": path, "OMP_NUM_THREADS": "1", **(env or {})}
    # Docker and the kubelet run no shell in between: neither do we.
    return start(node, *AS_CONTAINER, "env", f"--chdir={workdir}", *argv, env=given)
