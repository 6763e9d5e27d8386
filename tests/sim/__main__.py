"""python -m tests.sim --seed S | --seeds A..B  [--nodes N]"""

from __future__ import annotations

import argparse
import sys

from tests.sim.run import Run, run, sweep


def _range(text: str) -> range:
    first, _, last = text.partition("..")
    return range(int(first), int(last) + 1)


def _print(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


def _failure(played: Run) -> None:
    _print(*played.transcript, f"seed {played.seed} FAILED: {played.error}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--seed", type=int, help="play one seed and print its transcript")
    choice.add_argument("--seeds", type=_range, metavar="A..B", help="play A to B, both included")
    parser.add_argument("--nodes", type=int, help="this many hosts, instead of 1 to 6 by seed")
    args = parser.parse_args()
    if args.seed is not None:
        played = run(args.seed, args.nodes, transcript=True)
        if played.error is not None:
            _failure(played)
            return 1
        _print(*played.transcript, f"seed {args.seed}: ok, {played.released} released")
        return 0
    result = sweep(args.seeds, args.nodes)
    if result.failed is not None:
        _failure(result.failed)
    _print(
        f"{result.count} seeds, {result.released} participants released, "
        f"{result.seeds_per_minute:.0f} seeds per minute"
    )
    return 0 if result.failed is None else 1


if __name__ == "__main__":
    sys.exit(main())
