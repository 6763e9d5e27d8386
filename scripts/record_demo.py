"""Record docs/demo.svg: a LAN of three machines on this one, a terminal on each, the same line
typed in all of them, a real training.

    python scripts/record_demo.py [FILE]        as root or rootless, as for `mingle demo`
"""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

if TYPE_CHECKING:
    from mingled.lab.node import Node

ROOT = Path(__file__).resolve().parents[1]
SCRIPT_FOLDER = ROOT / "examples/digits"
LINE = "mingle-wait --job digits --nnodes 3 -- torchrun train.py"
ORDER = (1, 3, 2)
"""Who types first. The order does not matter, which is what the picture shows."""

COLUMNS = 112
WITHIN_S = 240.0

THEME = TerminalTheme(
    (30, 32, 40),
    (214, 217, 224),
    [(30, 32, 40), (224, 108, 117), (152, 195, 121), (229, 192, 123), (97, 175, 239),
     (198, 120, 221), (86, 182, 194), (171, 178, 191)],
)  # fmt: skip

FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""rich's own, without the fonts that it would fetch from elsewhere."""


class Transcript(NamedTuple):
    """What was on one machine's terminal."""

    host: str
    command: str
    lines: tuple[str, ...]


def picture(transcripts: Sequence[Transcript]) -> str:
    """All of them below each other, as SVG."""
    with open(os.devnull, "w") as nowhere:
        console = Console(
            record=True,
            width=COLUMNS,
            file=nowhere,
            force_terminal=True,
            color_system="truecolor",
            legacy_windows=False,
        )
        for number, transcript in enumerate(transcripts):
            if number:
                console.print()
            console.print(Text.assemble((f"{transcript.host}$ ", "bold green"), transcript.command))
            for line in transcript.lines:
                console.print(_styled(line))
        console.print()
        return console.export_svg(
            title="the same line on three machines", theme=THEME, code_format=FORMAT, unique_id="m"
        )


def _styled(line: str) -> Text:
    """The name of the job dim, so that what is said stands out."""
    head, colon, said = line.partition(": job digits: ")
    if not colon:
        return Text(line, style="bold" if "accuracy" in line else "")
    return Text.assemble((head + colon, "dim"), (said, "cyan" if "rank 0 is" in said else ""))


def lines_of(output: bytes) -> tuple[str, ...]:
    """The lines for people in what a terminal was sent; the training's last is for programs."""
    lines = output.decode(errors="replace").replace("\r\n", "\n").split("\n")
    kept = (line.rstrip() for line in lines)
    return tuple(line for line in kept if line and not line.startswith("{"))


# ---------------------------------------------------------------- the run


class _Terminal:
    """One machine's, with a command running in it."""

    def __init__(self, host: str, start: Callable[[int], Callable[[], int]]) -> None:
        self.host = host
        self.fd, inner = pty.openpty()
        self.output = b""
        self.wait = start(inner)
        os.close(inner)

    def read(self) -> bool:
        """Whether there may be more."""
        try:
            chunk = os.read(self.fd, 65_536)
        except OSError:  # EIO: nobody has the other side open any more
            return False
        self.output += chunk
        return bool(chunk)


def record() -> list[Transcript]:
    """Run it. Raises `RuntimeError` where a machine fails, `MingleError` where no LAN can be."""
    from mingled.lab import Lan

    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # Not a living line, which would be gone from the picture, but each of its states.
    env = {"PATH": path, "TERM": "dumb", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    until = time.monotonic() + WITHIN_S
    with Lan(nodes=3) as lan:
        terminals: list[_Terminal] = []
        for number in ORDER:
            node = lan.node(number)

            def start(inner: int, node: Node = node) -> Callable[[], int]:
                process = node.popen(
                    LINE.split(),
                    stdin=inner,
                    stdout=inner,
                    stderr=inner,
                    env=env,
                    cwd=SCRIPT_FOLDER,
                )
                return process.wait

            terminals.append(_Terminal(node.name, start))
            if number != ORDER[-1]:  # the next one comes when this one has been counted
                _follow(terminals, until, f"{len(terminals)}/3 here".encode())
        _follow(terminals, until, None)
        for terminal in terminals:
            if code := terminal.wait():
                raise RuntimeError(f"{terminal.host}: exit {code}: {terminal.output.decode()}")
    return [Transcript(t.host, LINE, lines_of(t.output)) for t in terminals]


def _follow(terminals: Sequence[_Terminal], until: float, word: bytes | None) -> None:
    """Read until the last of them has said `word`; None: until all have ended."""
    open_ = {terminal.fd: terminal for terminal in terminals}
    while open_ and not (word is not None and word in terminals[-1].output):
        ready, _, _ = select.select(list(open_), [], [], max(0.0, until - time.monotonic()))
        if not ready:
            said = b"\n".join(t.output for t in terminals).decode(errors="replace")
            raise RuntimeError(f"not done within {WITHIN_S:g} s: {said}")
        for fd in ready:
            if not open_[fd].read():
                del open_[fd]


def main(words: Sequence[str]) -> int:
    path = Path(words[0] if words else ROOT / "docs/demo.svg")
    path.write_text(picture(record()))
    sys.stderr.write(f"{path}: {path.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
