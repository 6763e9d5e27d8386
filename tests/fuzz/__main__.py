"""Coverage-guided fuzzing of one target, by atheris (libFuzzer).

python -m tests.fuzz peer-frame --runs 1000000
python -m tests.fuzz core --seconds 600 --corpus ~/fuzz/core
python -m tests.fuzz core crashes/crash-0123...    # one input again, with its traceback

An input that crashes is written to the folder `--crashes` and its traceback printed; exit 77.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

NAMES = (
    "socket-line",
    "peer-hello",
    "peer-frame",
    "mdns-text",
    "mdns-packet",
    "datagram",
    "configuration",
    "core",
)
"""Of the targets. Not asked of the registry: atheris has to be there before what it measures."""

RSS_MIB_MAX = 512
"""Of the whole process, the fuzzer's own corpus included: what leaks is found by a million runs."""

INPUT_S_MAX = 10
"""No input may take longer."""

JSON_SHARE = 0.5
"""Of the inputs of a target that takes JSON: changed as JSON, not as bytes."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("inputs", nargs="*", type=Path, help="only these files, once each")
    parser.add_argument("--runs", type=int, default=-1, help="inputs; else until interrupted")
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--max-len", type=int, help="bytes of an input")
    parser.add_argument("--seed", type=int, default=1, help="the same one, the same run")
    parser.add_argument("--corpus", type=Path, help="folder to keep what was found interesting")
    parser.add_argument("--crashes", type=Path, default=Path("crashes"))
    args = parser.parse_args()
    if args.inputs:
        from tests.fuzz.targets import TARGETS

        for path in args.inputs:
            TARGETS[args.target].run(path.read_bytes())
        return
    with tempfile.TemporaryDirectory(prefix="mingled-fuzz-") as seeds:
        _fuzz(args, Path(seeds))


def _fuzz(args: argparse.Namespace, seeds: Path) -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: scripts/bootstrap --with fuzz (Python 3.11 to 3.13)")
    from tests.fuzz.mutations import json_mutated

    with atheris.instrument_imports(include=["mingled", "tomllib"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[args.target]
    for number, seed in enumerate(target.seeds()):
        (seeds / f"{number:03}").write_bytes(seed)
    args.crashes.mkdir(parents=True, exist_ok=True)
    folders = [str(seeds)]
    if args.corpus is not None:  # what is new goes into the first
        args.corpus.mkdir(parents=True, exist_ok=True)
        folders.insert(0, str(args.corpus))
    options = {
        "runs": args.runs,
        "max_total_time": args.seconds,
        "max_len": args.max_len or target.bytes_max,
        "seed": args.seed,
        "timeout": INPUT_S_MAX,
        "rss_limit_mb": RSS_MIB_MAX,
        "artifact_prefix": f"{args.crashes}/",
        "print_final_stats": 1,
    }
    words = [f"-{name}={value}" for name, value in options.items()]

    def mutate(data: bytes, bytes_max: int, seed: int) -> bytes:
        rng = random.Random(seed)
        structured = json_mutated(data, rng) if rng.random() < JSON_SHARE else None
        if structured is None or len(structured) > bytes_max:
            return bytes(atheris.Mutate(data, bytes_max))
        return structured

    atheris.Setup(
        [sys.argv[0], *words, *folders],
        target.run,
        **({"custom_mutator": mutate} if target.json else {}),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
