"""`mingle://JOB?world_size=4&...`: a job, and what to join it with, as text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from mingled.errors import BadInput

SCHEME = "mingle"

_EXAMPLE = f"{SCHEME}://bert?world_size=4"


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def _flag(text: str) -> bool:
    return {"1": True, "true": True, "0": False, "false": False}[text.lower()]


PARAMETERS: dict[str, tuple[Callable[[str], object], str]] = {
    "world_size": (int, "a number"),
    "rank": (int, "a number"),
    "timeout": (_seconds, "seconds above 0"),
    "any_user": (_flag, "1 or 0"),
    "wait": (_flag, "1 or 0"),
    "interface": (str, ""),
    "subnet": (str, ""),
    "peers": (str, ""),
    "require_same": (str, ""),
    "secret_file": (str, ""),
}
"""Each parameter: what reads it, and what it wants to be."""


def parameters(url: str) -> tuple[str, dict[str, Any]]:
    """The job, and keyword arguments for `mingled.join`. A job ID may be percent-encoded.

    Raises `BadInput`: one sentence that names the URL and what is wrong with it.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise BadInput(f"{url}: {error}; write it as in {_EXAMPLE}") from None
    # Not `hostname`, which would be in lower case.
    job = unquote(parts.netloc)
    if not job or parts.path.strip("/") or parts.fragment:
        raise BadInput(
            f"{url}: want one job ID after {SCHEME}://, as in {_EXAMPLE}; what is special in URLs "
            "is written %2F for a slash, %23 for #"
        )
    if re.search(r":\d+$", job) and "%" not in parts.netloc:
        raise BadInput(
            f"{url}: no port is needed, mingled finds one: delete {job[job.rindex(':') :]}, or "
            "write the colon of a job ID as %3A"
        )
    options: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in PARAMETERS:
            raise BadInput(
                f"{url}: there is no parameter {name}, only {', '.join(PARAMETERS)}; a process "
                "group counts processes: world_size"
            )
        if name in options:
            raise BadInput(f"{url}: {name} is given twice; give it once")
        read, wanted = PARAMETERS[name]
        try:
            options[name] = read(text)
        except (ValueError, KeyError):
            raise BadInput(f"{url}: {name}={text}: want {wanted}") from None
    # torch adds -1 for what its caller left out.
    for name in ("world_size", "rank"):
        if options.get(name) == -1:
            del options[name]
    return job, options
