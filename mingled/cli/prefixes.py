"""Commands that run another command, torchrun among them: `env A=1 uv run torchrun train.py`.

The short list of those that are read rightly is `COMMANDS`, and Python itself. Each has options
before the command that it runs; only those that take a value must be known here. A newer option
with a value, which is not known, makes its value look like the command: then the line is simply not
recognised as torchrun's, and nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

_PYTHON = re.compile(r"python([0-9]+(\.[0-9]+)?t?)?")
_PYTHON_VALUE = frozenset({"-W", "-X", "-m", "-c", "--check-hash-based-pycs"})


class Target(msgspec.Struct, frozen=True):
    """The program that is looked for: each of its names, and of its modules, to whether it is the
    variant that `Prefix.launch` tells of."""

    names: dict[str, bool]
    modules: dict[str, bool]


TORCHRUN = Target(
    {"torchrun": False}, {"torch.distributed.run": False, "torch.distributed.launch": True}
)

ACCELERATE = Target(
    {"accelerate": False, "accelerate-launch": True},
    {"accelerate.commands.launch": True, "accelerate.commands.accelerate_cli": False},
)


class Command(msgspec.Struct, frozen=True):
    """How one such command's line reads."""

    value: frozenset[str] = frozenset()  #: options that take a value
    refuse: frozenset[str] = frozenset()  #: options after which no plain command follows
    operands: int = 0  #: words of its own before the command
    subcommand: str | None = None  #: as in `uv run`; options may stand before and after it
    module: frozenset[str] = frozenset()  #: options that make the command a Python module


def words(text: str) -> frozenset[str]:
    """A table of option names, blanks between."""
    return frozenset(text.split())


COMMANDS: dict[str, Command] = {
    "env": Command(
        value=words("-u --unset -C --chdir -a --argv0"),
        refuse=words("-S --split-string -0 --null --help --version"),
    ),
    "uv": Command(
        value=words(
            "--extra --no-extra --group --no-group --only-group --env-file -w --with "
            "--with-editable --with-requirements --index --default-index -i --index-url "
            "--extra-index-url -f --find-links -P --upgrade-package --upgrade-group "
            "--index-strategy --keyring-provider --resolution --prerelease --fork-strategy "
            "-C --config-setting --config-settings-package --no-build-isolation-package "
            "--exclude-newer --exclude-newer-package --link-mode --reinstall-package "
            "--no-build-package --no-binary-package --no-sources-package --refresh-package "
            "--package -p --python --python-platform --cache-dir --color --allow-insecure-host "
            "--directory --project --config-file --preview-features"
        ),
        refuse=words("-s --script --gui-script"),
        subcommand="run",
        module=words("-m --module"),
    ),
    "poetry": Command(value=words("-C --directory -P --project"), subcommand="run"),
    "nice": Command(value=words("-n --adjustment")),
    "nohup": Command(),
    "setsid": Command(),
    "stdbuf": Command(value=words("-i --input -o --output -e --error")),
    "taskset": Command(refuse=words("-p --pid"), operands=1),
    "numactl": Command(
        value=words(
            "-i --interleave -w --weighted-interleave -p --preferred -P --preferred-many "
            "-C --physcpubind -N --cpunodebind -c --cpubind -m --membind"
        ),
        refuse=words("-s --show -H --hardware"),
    ),
    "time": Command(value=words("-f --format -o --output")),
    "timeout": Command(value=words("-k --kill-after -s --signal"), operands=1),
}
"""The commands that torchrun is found behind."""


class Prefix(msgspec.Struct, frozen=True):
    """What stands before the program's own words."""

    end: int  #: index of the first word after the program itself
    launch: bool  #: it is `torch.distributed.launch`, or `accelerate-launch`
    commands: tuple[str, ...]  #: what it stands behind, Python not counted
    sets: dict[str, str]  #: variables that an `env` on the line sets
    removes: dict[str, str]  #: variables that one removes ("" for all), to the option that does

    def hides(self, names: Iterable[str]) -> str | None:
        """The `env` option that keeps one of these variables from torchrun, as it is written."""
        if "" in self.removes:
            return self.removes[""]
        return next((self.removes[name] for name in names if name in self.removes), None)


def read(argv: Sequence[str], target: Target = TORCHRUN) -> Prefix | None:
    """Where the program's own words begin in `argv`; None where it is not found."""
    at, is_module = 0, False
    commands: list[str] = []
    sets: dict[str, str] = {}
    removes: dict[str, str] = {}
    while at < len(argv):
        name = argv[at].rpartition("/")[2]
        launch = target.modules.get(argv[at]) if is_module else target.names.get(name)
        if launch is not None:
            return Prefix(at + 1, launch, tuple(commands), sets, removes)
        if is_module:
            return None
        if _PYTHON.fullmatch(name):
            at, seen = _options(argv, at + 1, _PYTHON_VALUE, last=words("-m -c"))
            module = dict(seen).get("-m")
            if "-c" in dict(seen) or (module is not None and module not in target.modules):
                return None
            if module is not None:
                return Prefix(at, target.modules[module], tuple(commands), sets, removes)
            if at < len(argv) and argv[at].rpartition("/")[2] not in target.names:
                return None  # Python runs a file of this name; it is no command
            continue
        if (command := COMMANDS.get(name)) is None:
            return None
        commands.append(name)
        at, seen = _options(argv, at + 1, command.value)
        if command.subcommand is not None:
            if at >= len(argv) or argv[at] != command.subcommand:
                return None
            at, more = _options(argv, at + 1, command.value)
            seen += more
        if any(option in command.refuse for option, _ in seen):
            return None
        is_module = any(option in command.module for option, _ in seen)
        at += command.operands
        if name == "env":
            at = _env(argv, at, seen, sets, removes)
    return None


def _options(
    argv: Sequence[str], at: int, value: frozenset[str], last: frozenset[str] = frozenset()
) -> tuple[int, list[tuple[str, str]]]:
    """Steps over options as getopt reads them before a command.

    Returns the index of the first word that is none (behind a `--`), and the options seen with
    their values. One of `last` ends them, as Python's `-m` does.
    """
    seen: list[tuple[str, str]] = []
    while at < len(argv) and argv[at].startswith("-") and argv[at] != "-":
        word, at = argv[at], at + 1
        if word == "--":
            break
        names = [word.partition("=")[0]] if word.startswith("--") else ["-" + c for c in word[1:]]
        for place, name in enumerate(names):
            text = word.partition("=")[2] if word.startswith("--") else word[place + 2 :]
            if name not in value:
                seen.append((name, ""))
                continue
            # `--name=` has its value, an empty one; every other empty one is the next word.
            if not text and not word.endswith("=") and at < len(argv):
                text, at = argv[at], at + 1
            seen.append((name, text))
            break
        if seen[-1][0] in last:
            break
    return at, seen


def _env(
    argv: Sequence[str],
    at: int,
    seen: Iterable[tuple[str, str]],
    sets: dict[str, str],
    removes: dict[str, str],
) -> int:
    """What `env` does to the environment, into `sets` and `removes`; the command's index."""
    for option, text in seen:
        if option in ("-i", "--ignore-environment"):
            sets.clear()
            removes[""] = f"env {option}"
        if option in ("-u", "--unset"):
            sets.pop(text, None)
            removes[text] = f"env -u {text}"
    if at < len(argv) and argv[at] == "-":
        sets.clear()
        removes[""] = "env -"
        at += 1
    while at < len(argv) and "=" in argv[at]:
        name, _, value = argv[at].partition("=")
        sets[name] = value
        at += 1
    return at
