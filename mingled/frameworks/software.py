"""What software a participant would run, found without importing torch and without starting Python.

    software(("torchrun", "train.py"), Path())      # what will run that command here
    software(None, Path())                          # what runs in this process

What cannot be told cheaply and for certain is None, with the reason in `Software.why`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mingled.core.software import NONE, VALUE_CHARS_MAX, WHY_CHARS_MAX, Software
from mingled.frameworks import checkout, interpreter
from mingled.frameworks.reading import content, names_in, text

HASH_CHARS = 12
"""Of a hash, in hexadecimal: enough to tell two apart, and to compare with `sha256sum`."""

SCRIPT_BYTES_MAX = 4 * 1024 * 1024
"""Nobody writes longer ones."""

SCRIPT_ENDINGS = (".py", ".sh")

DRIVER = ("/sys/module/nvidia/version", "/proc/driver/nvidia/version")

OF_THE_NODE = frozenset(
    (
        *("node-rank", "machine-rank", "rank", "local-rank", "local-addr"),
        *("rdzv-conf", "nproc-per-node"),
    )
)
"""Flags that say what is this node's own: with other values it is still the same CMD."""


def software(
    cmd: Sequence[str] | None, folder: Path, meanwhile: Callable[[], object] | None = None
) -> Software:
    """Of the command `cmd`, which is to run in `folder`; empty: what will run is not known. None:
    of this process. Takes a few milliseconds, or `checkout.GIT_S` where git is slow; never raises.
    `meanwhile` is done while git looks, where there is something else to do anyway."""
    try:
        where = os.path.abspath(folder)
    except OSError:  # the working folder was removed
        return Software(why=(("git", "the working folder is gone"),))
    with checkout.Look(where) as look:
        found = _Found()
        _packages(found, cmd)
        _driver(found)
        _command(found, _argv() if cmd is None else cmd, where)
        if meanwhile is not None:
            meanwhile()
        tree = look.end()
    found.set("git", tree.commit, tree.why)
    return Software(**found.values, dirty=tree.dirty, why=tuple(found.why.items()))


class _Found:
    """Values that are fit to be sent, and reasons for the others."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.why: dict[str, str] = {}

    def set(self, item: str, value: str | None, why: str) -> None:
        if value and len(value) <= VALUE_CHARS_MAX and value.isascii() and value.isprintable():
            self.values[item] = value
        if why:
            plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in why)
            self.why[item] = plain[:WHY_CHARS_MAX]


# ---------------------------------------------------------------- Python and its packages


def _packages(found: _Found, cmd: Sequence[str] | None) -> None:
    if cmd is None:
        python: interpreter.Interpreter | str = interpreter.of_process()
    elif cmd:
        python = interpreter.of_command(cmd)
    else:
        python = "what will run is not known without CMD"
    if isinstance(python, str):
        for item in ("python", "torch", "cuda", "nccl"):
            found.set(item, None, python)
        return
    unread = "" if python.version else "only that Python itself knows it"
    found.set("python", python.version, unread)
    torch, cuda = _torch(python.folders)
    found.set("torch", torch, "" if torch else "no torch is found for its Python")
    found.set("cuda", cuda, "" if cuda else "no torch that says so is found for its Python")
    nccl = NONE if cuda == NONE else _nccl(python.folders, cuda)
    found.set("nccl", nccl, "" if nccl else "no nvidia-nccl package is found for its Python")


def _torch(folders: Sequence[str]) -> tuple[str | None, str | None]:
    """Its version, and the CUDA or ROCm that it was built for."""
    for folder in folders:
        lines = text(os.path.join(folder, "torch", "version.py")).splitlines()
        if lines:
            values = dict(map(_assigned, lines))
            cuda, hip = values.get("cuda"), values.get("hip")
            return values.get("__version__"), f"rocm {hip}" if hip not in (None, NONE) else cuda
        version = _distribution(folder, "torch")
        if version is not None:  # one that is built and run in its own source folder
            return version, None
    return None, None


def _assigned(line: str) -> tuple[str, str | None]:
    """`cuda: Optional[str] = '12.8'` as ("cuda", "12.8"), and None as "none"."""
    name, equals, value = line.partition("=")
    value = value.partition("#")[0].strip()
    quoted = len(value) > 2 and value[0] == value[-1] and value[0] in "'\""
    word = value[1:-1] if quoted else NONE if value == "None" else None
    return name.partition(":")[0].strip(), word if equals else None


def _nccl(folders: Sequence[str], cuda: str | None) -> str | None:
    """Of the package that torch's wheels require. A torch with NCCL built in has none."""
    if cuda is not None and not cuda[:1].isdigit():
        return None  # ROCm's RCCL
    major = cuda.partition(".")[0] if cuda else ""
    for folder in folders:
        version = _distribution(folder, f"nvidia_nccl_cu{major}", exact=bool(major))
        if version is not None:
            return version
    return None


def _distribution(folder: str, name: str, *, exact: bool = True) -> str | None:
    """The version of an installed distribution, from the name of its `.dist-info`; not exact: of
    the only one whose name begins so."""
    start = f"{name}-" if exact else name
    found = [
        entry.removesuffix(".dist-info").rpartition("-")[2]
        for entry in names_in(folder)
        if entry.startswith(start) and entry.endswith(".dist-info")
    ]
    return found[0] if len(found) == 1 else None


def _driver(found: _Found) -> None:
    version = text(DRIVER[0]).strip()
    if not version:
        words = text(DRIVER[1]).partition("\n")[0].split()
        version = next((w for w in words if "." in w and not w.strip("0123456789.")), "")
    found.set("driver", version, "" if version else "no NVIDIA driver is loaded")


# ---------------------------------------------------------------- CMD and the script


def _argv() -> list[str]:
    """This process's words; empty where somebody types into it."""
    argv = list(sys.argv)
    typed = not argv or argv[0] in ("", "-c", "-") or "ipykernel" in sys.modules
    return [] if typed else argv


def _command(found: _Found, words: Sequence[str], folder: str) -> None:
    if not words:
        for item in ("cmd", "script"):
            found.set(item, None, "there is no CMD")
        return
    found.set("cmd", _digest("\0".join(_everywhere(words, folder)).encode(errors="replace")), "")
    path = _script(words, folder)
    source = content(path, SCRIPT_BYTES_MAX) if path else None
    if source is not None:
        found.set("script", _digest(source), "")
    elif path:
        found.set("script", None, f"{os.path.basename(path)} cannot be read")
    else:
        found.set("script", None, "CMD names none")


def _everywhere(words: Sequence[str], folder: str) -> list[str]:
    """CMD without what is another machine's own: where its program and its folder lie, variables
    that `env` sets, and flags that say which node this is."""
    kept = list(interpreter.command_in(words) or words)
    kept[0] = os.path.basename(kept[0])
    inside = folder.rstrip("/") + "/"
    found, skips = [], False
    for word in kept:
        name, equals, _ = word.partition("=")
        if skips:
            skips = False
        elif name.startswith("--") and name[2:].replace("_", "-") in OF_THE_NODE:
            skips = not equals
        else:
            found.append(word.removeprefix(inside))
    return found


def _script(words: Sequence[str], folder: str) -> str | None:
    """The file of the first word that ends as a script's name does, or of a module after `-m` that
    lies in `folder`; None: CMD names none."""
    for at, word in enumerate(words):
        if at and words[at - 1] in ("-m", "--module"):
            module = os.path.join(folder, *word.split("."))
            for path in (f"{module}.py", os.path.join(module, "__main__.py")):
                if os.path.isfile(path):
                    return path
        elif word.endswith(SCRIPT_ENDINGS) and not word.startswith("-"):
            path = os.path.join(folder, word)
            # `python -m torch.distributed.run` shows itself as a path among the packages.
            if not any(part in path for part in ("/site-packages/", "/dist-packages/")):
                return path
    return None


def _digest(data: bytes) -> str:
    """The start of its SHA-256."""
    digest: str = _sha256()(data).hexdigest()
    return digest[:HASH_CHARS]


def _sha256() -> Any:
    """Python's own, as `random` takes it: hashlib costs 3 ms, for all that OpenSSL has."""
    for name in ("_sha2", "_sha256", "hashlib"):
        try:
            return importlib.import_module(name).sha256
        except ImportError:
            continue  # its name differs between versions of Python
    raise ImportError("this Python has no SHA-256")
