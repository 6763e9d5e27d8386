"""This machine's firewall rules, as the tools print them. Reading them needs privileges."""

from __future__ import annotations

import asyncio
import os
import shutil

import msgspec

READ_S = 4.0
"""A rule set of 100,000 lines takes a second."""

TOOLS = {
    "nft": ("nft", "-j", "list", "ruleset"),
    "iptables": ("iptables-save",),
    "ip6tables": ("ip6tables-save",),
}


class Ruleset(msgspec.Struct, frozen=True, kw_only=True):
    """`why_not`: it could not be read. Empty text with no reason: there are no rules."""

    tool: str
    text: str = ""
    why_not: str = ""


async def gather() -> tuple[Ruleset, ...]:
    """Of each tool that is installed."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    found = {tool: shutil.which(words[0], path=path) for tool, words in TOOLS.items()}
    return tuple(
        await asyncio.gather(
            *(_read(tool, where, *TOOLS[tool][1:]) for tool, where in found.items() if where)
        )
    )


async def _read(tool: str, *words: str) -> Ruleset:
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
    except OSError as error:
        return Ruleset(tool=tool, why_not=error.strerror or str(error))
    try:
        async with asyncio.timeout(READ_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return Ruleset(tool=tool, why_not=f"{tool} says nothing within {READ_S:g} s")
    if process.returncode != 0:
        lines = err.decode(errors="replace").strip().splitlines()
        return Ruleset(tool=tool, why_not=lines[0][:200] if lines else f"{tool} failed")
    return Ruleset(tool=tool, text=out.decode(errors="replace"))
