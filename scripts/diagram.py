"""The state diagram as SVG, from the one transition table: drawn here, so that it looks the same on
the site, on a forge and on paper, and nobody has to fetch a renderer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import hypot

from mingled.core.table import State, Trigger

PLACES: dict[State, tuple[int, int]] = {
    State.IDLE: (120, 60),
    State.SEARCHING: (420, 60),
    State.CONNECTING: (740, 60),
    State.LEADING: (120, 300),
    State.FOLLOWING: (740, 300),
    State.PREPARING: (120, 500),
    State.PROVING: (740, 500),
    State.UNSURE: (340, 420),
    State.PREPARED: (470, 500),
}
"""Of each state's middle: the leader's on the left, the follower's on the right."""

WIDTH, HEIGHT = 880, 560
BOX = (120, 40)
BEND = 0.09
"""How far an arrow leaves the straight line, of its length: there and back are two arrows."""

LONG = 350
BESIDE = ' style="text-anchor: end"'

Point = tuple[float, float]

STYLE = """
  .paper { fill: #fff }
  .state { fill: #e8eaf6; stroke: #3f51b5; stroke-width: 1.5 }
  .name { font: 600 14px sans-serif; fill: #1a237e; text-anchor: middle }
  .way { fill: none; stroke: #666; stroke-width: 1.2; marker-end: url(#tip) }
  .why { font: 12px sans-serif; fill: #222; text-anchor: middle; paint-order: stroke;
         stroke: #fff; stroke-width: 4px; stroke-linejoin: round }
"""


def svg(transitions: Mapping[tuple[State, Trigger], State]) -> str:
    """The whole table. Raises `KeyError` for a state that has no place yet."""
    ways: dict[tuple[State, State], list[Trigger]] = {}
    for (before, trigger), after in transitions.items():
        ways.setdefault((before, after), []).append(trigger)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>The states of one job on one node</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="#666"/></marker></defs>',
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
    ]
    arrows = [_arrow(before, after, names) for (before, after), names in ways.items()]
    # Words last: no line is to run through them.
    lines += [line for line, _ in arrows]
    lines += [_box(state) for state in PLACES]
    lines += [words for _, words in arrows]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _box(state: State) -> str:
    x, y = PLACES[state]
    width, height = BOX
    return (
        f'<rect class="state" x="{x - width // 2}" y="{y - height // 2}" width="{width}" '
        f'height="{height}" rx="8"/><text class="name" x="{x}" y="{y + 5}">{state}</text>'
    )


def _arrow(before: State, after: State, triggers: Iterable[Trigger]) -> tuple[str, str]:
    """The line from box to box, and its words at its middle."""
    (x1, y1), (x2, y2) = PLACES[before], PLACES[after]
    length = hypot(x2 - x1, y2 - y1)
    # To the left of the way, as seen by whoever goes it.
    bend_x, bend_y = (y2 - y1) * BEND, -(x2 - x1) * BEND
    if length < BOX[0]:  # a short one has no room for its words otherwise
        bend_x, bend_y = bend_x * 3, bend_y * 3
    middle = ((x1 + x2) / 2 + bend_x * 2, (y1 + y2) / 2 + bend_y * 2)
    start, end = _edge((x1, y1), middle), _edge((x2, y2), middle)
    # Long arrows cross: their words stand nearer to where they begin.
    x, y = _on(start, middle, end, 0.5 if length < LONG else 0.27)
    path = f"M{_point(start)}Q{_point(middle)} {_point(end)}"
    side = "" if x1 != x2 else ' style="text-anchor: start"' if x > x1 else BESIDE
    words = f'<text class="why" x="{x:.1f}" y="{y + 4:.1f}"{side}>{", ".join(triggers)}</text>'
    return f'<path class="way" d="{path}"/>', words


def _on(start: Point, middle: Point, end: Point, share: float) -> Point:
    """A point of the curve, `share` of the way along it."""
    rest = 1 - share
    x, y = (
        rest * rest * a + 2 * share * rest * b + share * share * c
        for a, b, c in zip(start, middle, end, strict=True)
    )
    return x, y


def _edge(box: Point, towards: Point) -> Point:
    """Where the line from the middle of a box to `towards` leaves the box."""
    dx, dy = towards[0] - box[0], towards[1] - box[1]
    width, height = BOX[0] / 2 + 2, BOX[1] / 2 + 2
    share = min(width / abs(dx) if dx else 9, height / abs(dy) if dy else 9)
    return box[0] + dx * share, box[1] + dy * share


def _point(at: Point) -> str:
    return f"{at[0]:.1f} {at[1]:.1f}"
