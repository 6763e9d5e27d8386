"""The exact candidates for a daemon: netlink is asked by a child process that ends at once.

pyroute2 would add 13 MiB to a daemon that idles for days, and 110 ms of blocking to its loop. A
child costs 0.2 s of a core each time that the interfaces change, and nothing stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterable

import msgspec

from mingled.core.events import Address
from mingled.net.facts import Facts
from mingled.net.interfaces import candidates
from mingled.net.restricting import restriction

TIMEOUT_S = 10.0
"""Of the child: on a busy node the imports alone can take a second."""


class _Question(msgspec.Struct, frozen=True):
    only: tuple[str, ...]
    subnets: tuple[str, ...]


async def exact_candidates(
    only: Iterable[str] = (),
    subnets: Iterable[str] = (),
    *,
    seen: Facts | None = None,
    timeout_s: float = TIMEOUT_S,
) -> tuple[Address, ...]:
    """`candidates(only, subnets, exact=True)` without blocking the loop. Where the child cannot be
    started, fails or takes too long, what the quick way finds, or has found: `seen`.

    Raises:
        BadInput: a subnet that is none.
    """
    question = _Question(tuple(only), tuple(subnets))
    restriction(question.only, question.subnets)  # for its errors, which the child cannot raise
    answer = await _ask(msgspec.json.encode(question).decode(), timeout_s)
    try:
        return msgspec.json.decode(answer, type=tuple[Address, ...])
    except msgspec.DecodeError:
        return await asyncio.to_thread(candidates, question.only, question.subnets, seen=seen)


async def _ask(question: str, timeout_s: float) -> bytes:
    """What the child said; nothing where there was no good end to it."""
    # -P: the working directory must not be able to put its own modules before ours.
    command = (sys.executable, "-P", "-m", "mingled.net.apart", question)
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        child = await asyncio.create_subprocess_exec(*command, stdin=null, stdout=pipe, stderr=null)
    except OSError:  # no process or descriptor left
        return b""
    try:
        async with asyncio.timeout(timeout_s):
            answer, _ = await child.communicate()
    except TimeoutError:
        return b""
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    return answer if child.returncode == 0 else b""


def _main() -> None:
    question = msgspec.json.decode(sys.argv[1], type=_Question)
    found = candidates(question.only, question.subnets, exact=True)
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    _main()
