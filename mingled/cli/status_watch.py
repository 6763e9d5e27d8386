"""`mingle status --watch`: the same, again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.live import Live

from mingled.cli.json_lines import print_json
from mingled.cli.status_table import console, picture, show, timeless
from mingled.core import local

LOOK_S = 1.0
"""The daemons are asked this often: times in the picture go on each second."""


def follow(
    reports: list[local.Report], again: Callable[[], list[local.Report]], *, as_json: bool
) -> None:
    """Until no daemon is left. A terminal gets one living picture; a pipe, and JSON, one at the
    start and one at each change, an array a line."""
    out = console()
    if as_json or not out.is_terminal:
        _tell_changes(reports, again, as_json=as_json)
        return
    with Live(console=out, auto_refresh=False, vertical_overflow="ellipsis") as live:
        while reports:
            live.update(picture(reports, out.width), refresh=True)
            time.sleep(LOOK_S)
            reports = again()


def _tell_changes(
    reports: list[local.Report], again: Callable[[], list[local.Report]], *, as_json: bool
) -> None:
    told: tuple[local.Report, ...] | None = None
    while reports:
        now = timeless(reports)
        if now != told:
            if as_json:
                print_json(reports)
            else:
                if told is not None:
                    sys.stdout.write("\n")
                show(reports)
            sys.stdout.flush()
            told = now
        time.sleep(LOOK_S)
        reports = again()
