"""Target: the daemon's configuration file."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from mingled.cli.configuration import KEYS, load
from mingled.errors import BadInput


@cache
def _path() -> Path:
    """In memory where there is such a place: a million are written."""
    shared = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="mingled-fuzz-", dir=shared if shared.is_dir() else None)
    return Path(folder, "mingled.toml")


def close() -> None:
    """After the last input of a process that goes on."""
    if _path.cache_info().currsize:
        _path().unlink(missing_ok=True)
        _path().parent.rmdir()
        _path.cache_clear()


def configuration(data: bytes) -> None:
    """What is taken has the type that `mingled`'s options want; what is not is refused in words
    that name the file."""
    path = _path()
    path.write_bytes(data)
    values: dict[str, Any] = {}
    refusal = str(path)
    try:
        values = load(path, needed=True)
    except BadInput as error:
        refusal = str(error)
    assert str(path) in refusal
    for value in values.values():
        assert isinstance(value, int | str | tuple)
        assert not isinstance(value, tuple) or all(isinstance(word, str) for word in value)


def configuration_seeds() -> list[bytes]:
    lines = [f"{key} = {example}\n" for key, (_, example) in KEYS.items()]
    strange = [
        'peers = "gpu1, gpu2:29491 [fd00::7]:1"\n',
        'subnet = ["fd00::/64", "10.0.0.0/99"]\n',
        "link_port = 99999\n",
        "link_port = true\n",
        "[discovery]\nmdns = 1\n",
        "discovery = []\n",
        "interface = [1, [2]]\n",
        'log_level = """\nloud"""\n',
        "a.b.c = 1979-05-27T07:32:00Z\n",
        "# nothing\n",
        "peers = [" + '"gpu1",' * 65 + "]\n",
    ]
    texts = [*lines, *strange, "".join(lines)]
    return [text.encode() for text in texts] + [b"\xff\xfe", b"\x00", "läuft = 'ü'\n".encode()]
