"""`mingle key`: what it writes, says and refuses."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from mingled import keys
from mingled.cli.key import command
from mingled.core.secrets import key_id_of
from mingled.errors import BadInput, MingleError

KEY = bytes(range(32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "key"


def key(path: Path, *words: str, stdin: str = "") -> Result:
    """Raises what `mingle` would say and exit with."""
    *before, last = words
    done = CliRunner().invoke(
        command, [*before, last, "--file", str(path)], input=stdin, standalone_mode=False
    )
    if isinstance(done.exception, MingleError):
        raise done.exception
    assert done.exception is None, done.exception
    return done


def test_a_key_is_made_shown_and_copied(path: Path, tmp_path: Path) -> None:
    made = key(path, "new")
    (only,) = keys.load(path)
    assert made.stdout == ""
    assert f"has key {key_id_of(only)} now" in made.stderr
    assert only.hex() not in made.stderr
    shown = key(path, "show")
    assert shown.stdout == f"{only.hex()}\n"
    other = tmp_path / "other"
    key(other, "new", "-", stdin=shown.stdout)
    assert keys.load(other) == (only,)
    with pytest.raises(BadInput, match="is there already"):
        key(path, "new")
    assert keys.load(path) == (only,)


def test_the_service_has_to_be_told_of_the_machines_first_key(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mingled.cli.key.UNIT", tmp_path)
    assert "reload" not in key(path, "new").stderr
    path.unlink()
    monkeypatch.setattr(keys, "SYSTEM", path)
    assert key(path, "new").stderr.endswith(
        "mingle key: the service mingled has none until it may read this one: systemctl reload "
        "mingled\n"
    )


def test_ids(path: Path) -> None:
    keys.write(path, [KEY, bytes(32)], new=True)
    first, second = key_id_of(KEY), key_id_of(bytes(32))
    assert key(path, "id").stdout == f"{first}  presented\n{second}  accepted\n"
    assert msgspec.json.decode(key(path, "id", "--json").stdout) == [
        {"id": first, "presented": True},
        {"id": second, "presented": False},
    ]


def test_rotation_in_three_steps(path: Path) -> None:
    keys.write(path, [KEY], new=True)
    printed = key(path, "rotate", "install").stdout.strip()
    new = bytes.fromhex(printed)
    assert keys.load(path) == (KEY, new)
    key(path, "rotate", "install", "-", stdin=printed)  # again: it has that one
    assert keys.load(path) == (KEY, new)
    with pytest.raises(BadInput, match="is the key that is presented"):
        key(path, "rotate", "remove", key_id_of(KEY))
    used = key(path, "rotate", "use", key_id_of(new))
    assert f"mingle key rotate remove {key_id_of(KEY)}" in used.stderr
    assert keys.load(path) == (new, KEY)
    key(path, "rotate", "remove", key_id_of(KEY))
    assert keys.load(path) == (new,)


@pytest.mark.parametrize("stdin", ["", "hunter2\n", "ab" * 33, f"{'ab' * 32} {'cd' * 32}"])
def test_what_is_no_key(path: Path, stdin: str) -> None:
    with pytest.raises(BadInput, match="no key on stdin"):
        key(path, "new", "-", stdin=stdin)
    assert not path.exists()


def test_a_key_on_the_command_line_is_refused(path: Path) -> None:
    with pytest.raises(BadInput, match="could be read by others"):
        key(path, "new", KEY.hex())
    keys.write(path, [KEY], new=True)
    with pytest.raises(BadInput, match=f"there are {key_id_of(KEY)}"):
        key(path, "rotate", "use", "zzzz")


def test_too_many(path: Path) -> None:
    keys.write(path, [bytes([n] * 32) for n in range(8)], new=True)
    with pytest.raises(BadInput, match="8 keys already"):
        key(path, "rotate", "install")


def test_no_key_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.VARIABLE, keys.NONE)
    done = CliRunner().invoke(command, ["id"], standalone_mode=False)
    assert isinstance(done.exception, BadInput)
    assert "says: no key" in str(done.exception)
