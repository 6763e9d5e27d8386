"""Key files: who may read them, what they hold, and that a change is noticed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mingled import keys
from mingled.core.secrets import KEY_BYTES, KEYS_MAX, secret_of
from mingled.errors import BadInput, NotPermitted

ONE, TWO = bytes(range(32)), bytes(range(32, 64))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "key"


def test_what_is_written_is_read(path: Path) -> None:
    keys.write(path, [ONE], new=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.load(path) == (ONE,)
    path.chmod(0o640)
    keys.write(path, [TWO, ONE], new=False)
    assert keys.load(path) == (TWO, ONE)
    assert path.stat().st_mode & 0o777 == 0o640  # as its administrator had it
    with pytest.raises(BadInput, match="is there already; `mingle key rotate`"):
        keys.write(path, [ONE], new=True)
    assert keys.load(path) == (TWO, ONE)
    assert os.listdir(path.parent) == ["key"]
    assert keys.load(None) == ()


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o660, 0o604])
def test_a_file_that_others_can_read_or_change_is_refused(path: Path, mode: int) -> None:
    keys.write(path, [ONE], new=True)
    path.chmod(mode)
    with pytest.raises(NotPermitted, match=f"mode {mode:04o} lets others .* chmod 600"):
        keys.load(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_somebody_elses_file_is_refused(path: Path) -> None:
    keys.write(path, [ONE], new=True)
    os.chown(path, 1234, -1)
    with pytest.raises(NotPermitted, match="belongs to uid 1234"):
        keys.load(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 keys, want 1 to 8"),
        (b"# nothing\n", "0 keys"),
        (b"hunter2\n", "line 1 .*: no key; each is 64 hexadecimal digits"),
        (ONE.hex().encode() + b"\n\xff\n", "line 2"),
        (b"".join(bytes([n] * 32).hex().encode() + b"\n" for n in range(9)), "9 keys"),
        (b"#" * (keys.FILE_BYTES_MAX + 1), "over 16384 bytes"),
    ],
)
def test_what_is_no_key_file(path: Path, content: bytes, says: str) -> None:
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(BadInput, match=says):
        keys.load(path)


def test_a_missing_file_and_a_folder(path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        keys.load(path)
    path.mkdir(parents=True)
    with pytest.raises(BadInput, match="Is a directory"):
        keys.load(path)


def test_remarks_and_repetitions_do_not_count(path: Path) -> None:
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_text(f"# lab\n{ONE.hex()}  # new\n\n{TWO.hex()}\n{ONE.hex()}\n")
    assert keys.load(path) == (ONE, TWO)


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "etc"
    monkeypatch.setattr(keys, "SYSTEM", system)
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert keys.find(environ) is None
    system.touch()
    assert keys.find(environ) == system
    mine = keys.own(environ)
    mine.parent.mkdir()
    mine.touch()
    assert keys.find(environ) == mine == tmp_path / "mingled" / "key"
    assert keys.find(environ, system=True) == system
    assert keys.find(environ | {keys.VARIABLE: "/else"}) == Path("/else")
    assert keys.find(environ | {keys.VARIABLE: keys.NONE}) is None
    assert keys.own({"HOME": "/home/ann"}) == Path("/home/ann/.config/mingled/key")


def test_a_change_is_noticed_and_a_bad_one_leaves_the_keys_of_before(path: Path) -> None:
    keys.write(path, [ONE], new=True)
    ring = keys.Keyring(path)
    assert list(ring.keys) == [ONE]
    assert not ring.refresh()
    keys.write(path, [TWO, ONE], new=False)
    assert ring.refresh()
    assert list(ring.keys) == [TWO, ONE]
    path.chmod(0o666)
    with pytest.raises(NotPermitted):
        ring.refresh()
    assert list(ring.keys) == [TWO, ONE]
    assert not ring.refresh()  # said once
    path.unlink()
    with pytest.raises(BadInput):
        ring.refresh()
    keys.write(path, [TWO], new=True)
    assert ring.refresh()
    assert keys.Keyring(None).keys == ()


def test_a_jobs_own_secret(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_bytes(b"correct horse battery\n")
    assert keys.load_secret(path) == secret_of(b"correct horse battery")
    path.write_bytes(b"too short\n")
    with pytest.raises(BadInput, match="9 bytes could be guessed"):
        keys.load_secret(path)
    path.chmod(0o644)
    with pytest.raises(NotPermitted):
        keys.load_secret(path)


def test_a_link_that_leads_nowhere_is_no_reason_to_go_on_without(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "SYSTEM", tmp_path / "later")
    (tmp_path / "later").symlink_to(path)
    assert keys.find({"HOME": str(tmp_path)}) == tmp_path / "later"
    with pytest.raises(BadInput, match="no such file"):
        keys.load(tmp_path / "later")
    keys.write(path, [ONE], new=True)
    keys.write(tmp_path / "later", [TWO], new=False)
    assert (tmp_path / "later").is_symlink()
    assert keys.load(path) == (TWO,)


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(BadInput, match="no regular file"):
        keys.load(path)


def test_a_folder_in_which_everybody_may_write(path: Path) -> None:
    keys.write(path, [ONE], new=True)
    path.parent.chmod(0o777)
    with pytest.raises(NotPermitted, match="chmod o-w"):
        keys.load(path)
    path.parent.chmod(0o1777)
    assert keys.load(path) == (ONE,)


def test_a_daemon_without_a_key_gets_the_first_one(path: Path) -> None:
    ring = keys.Keyring(path, may_come=True)
    assert list(ring.keys) == []
    assert not ring.refresh()
    keys.write(path, [ONE], new=True)
    assert ring.refresh()
    assert list(ring.keys) == [ONE]


def test_a_user_without_a_home() -> None:
    assert keys.own({"HOME": "/x"}) == Path("/x/.config/mingled/key")
    assert keys.find({"HOME": "/nonexistent", keys.VARIABLE: "~nobody-at-all/key"}) is not None


LINES = st.sampled_from([b"\n", b"# ours", b"0" * 64, b"f" * 64, b"F" * 64, b"\xd9\xa3" * 64, b" "])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each writes it anew
@given(st.lists(LINES | st.binary(max_size=70), max_size=9).map(b"\n".join))
@example(b"\n".join(b"%064x" % n for n in range(9)))
@example(b"\x00" * 70_000)
def test_whatever_stands_in_the_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with contextlib.suppress(BadInput):
        found = keys.load(path)
        assert 1 <= len(found) == len(set(found)) <= KEYS_MAX
        assert {len(key) for key in found} == {KEY_BYTES}
    with contextlib.suppress(BadInput):
        assert len(keys.load_secret(path)) == 64
