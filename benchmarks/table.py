"""Results as a table for people, or as JSON."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import msgspec

from benchmarks.result import Result, Samples

HEAD = ("what", "median [min-max]", "reference [min-max]", "ratio", "goal", "")


def machine() -> dict[str, str]:
    """What the numbers depend on, and nothing that names this machine."""
    versions = {"mingled": metadata.version("mingled"), "zeroconf": metadata.version("zeroconf")}
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions["torch"] = metadata.version("torch")
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        **versions,
    }


def as_json(results: Sequence[Result]) -> str:
    """`{"machine": {...}, "results": [...]}`, with every single value."""
    rows: list[dict[str, Any]] = []
    for each in results:
        row: dict[str, Any] = msgspec.to_builtins(each)
        for key in ("measured", "reference"):
            samples = getattr(each, key)
            if samples is not None:
                row[key] |= {
                    "median": samples.median,
                    "min": samples.lowest,
                    "max": samples.highest,
                }
        row |= {"ratio": each.ratio, "ratio_of_min": each.ratio_of_lowest, "met": each.met}
        rows.append(row)
    return msgspec.json.format(
        msgspec.json.encode({"machine": machine(), "results": rows}), indent=2
    ).decode()


def as_text(results: Sequence[Result]) -> str:
    """A Markdown table; references and notes are explained below it."""
    rows = [HEAD, *(_cells(each) for each in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    said = ", ".join(f"{name} {value}" for name, value in machine().items())
    notes = [f"- {each.measured.what}: {_remark(each)}" for each in results if _remark(each)]
    return "\n".join([said, "", *lines, "", *notes])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "| " + " | ".join(cells) + " |"


def _cells(each: Result) -> tuple[str, ...]:
    return (
        each.measured.what,
        f"{_span(each.measured)} {each.unit}",
        _span(each.reference) if each.reference else "",
        f"{each.ratio:.2f}" if each.ratio is not None else "",
        each.goal.text if each.goal else "",
        {True: "met", False: "MISSED", None: ""}[each.met],
    )


def _remark(each: Result) -> str:
    against = f"against {each.reference.what}" if each.reference else ""
    return "; ".join(part for part in (against, each.note) if part)


def _span(samples: Samples) -> str:
    if samples.lowest == samples.highest:
        return _number(samples.median)
    return f"{_number(samples.median)} [{_number(samples.lowest)}-{_number(samples.highest)}]"


def _number(value: float) -> str:
    """Three digits, as no more are ever true."""
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def progress(text: str) -> None:
    """For whoever waits: on stderr, as stdout is the data."""
    print(text, file=sys.stderr, flush=True)
