"""Inputs made from others. Bytes changed at random hardly ever stay JSON, and behind the parser
nothing would be tried: so lines of JSON are also changed as what they are."""

from __future__ import annotations

import random
from typing import Any

import msgspec

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    -1,
    65_536,
    2**63,
    1e308,
    "",
    "none",
    "0" * 32,
    "f" * 32,
    "a" * 26,
    "10.0.0.2",
    "fe80::1%eth0",
    "\x1b[2J\u202e",
    "x" * 300,
    [],
    {},
    [[]],
    ["10.0.0.1"] * 17,
)

PIECES = (b"\n", b"{", b"}", b'"', b"[" * 40, b",", b"\xff", b"\x00", b"-1", b"1e999", b"\\ud800")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Of a JSON input mostly JSON again."""
    for _ in range(1 + rng.randrange(3)):
        data = (rng.random() < 0.7 and json_mutated(data, rng)) or _bytes_mutated(data, rng)
    return data


def json_mutated(data: bytes, rng: random.Random) -> bytes | None:
    """None: there is no line of JSON in it."""
    at = data.find(b"{")
    lines = data[at:].split(b"\n") if at >= 0 else []
    whole = [n for n, line in enumerate(lines) if line.startswith(b"{")]
    if not whole:
        return None
    number = rng.choice(whole)
    match rng.randrange(8):
        case 0:
            lines.insert(number, lines[rng.choice(whole)])
        case 1:
            other = rng.choice(whole)
            lines[number], lines[other] = lines[other], lines[number]
        case 2 if len(whole) > 1:
            del lines[number]
        case _:
            try:
                message = msgspec.json.decode(lines[number])
                donor = msgspec.json.decode(lines[rng.choice(whole)])
            except (msgspec.DecodeError, ValueError, RecursionError):  # damaged before
                return None
            _change(message, donor, rng)
            lines[number] = msgspec.json.encode(message)
    return data[:at] + b"\n".join(lines)


def _change(message: Any, donor: Any, rng: random.Random) -> None:
    places = _places(message)
    if not places:
        return
    container, key = rng.choice(places)
    others = [c[k] for c, k in _places(donor)]
    match rng.randrange(6):
        case 0:
            del container[key]
        case 1 | 2 if others:
            container[key] = rng.choice(others)
        case 3 if isinstance(container, list):
            container.insert(key, container[key])
        case _:
            container[key] = rng.choice(VALUES)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in it, outermost first."""
    found: list[tuple[Any, Any]] = []
    rest = [value]
    while rest:
        one = rest.pop()
        keys = list(one) if isinstance(one, dict) else []
        keys = list(range(len(one))) if isinstance(one, list) else keys
        found += [(one, key) for key in keys]
        rest += [one[key] for key in keys]
    return found


def _bytes_mutated(data: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(data))
    end = min(len(data), start + rng.randrange(9))
    match rng.randrange(5):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + data[end:]
        case 2:
            return data[:start] + rng.choice(PIECES) + data[end:]
        case 3:
            return data[:end] + data[start:]
        case _:
            return data[:start] + rng.randbytes(end - start) + data[end:]
