"""`mingle service` and the units that it installs. tests/machines runs them on booted machines."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import mingled
from mingled import locks
from mingled.cli import service, trusted
from mingled.errors import BadInput, DaemonError
from tests import wheels
from tests.lan.conftest import absent

from .running import BIN, Running

REPOSITORY = Path(__file__).parents[2]
EXPOSURE_MAX = 1.5


def test_the_package_has_what_stands_in_the_repository() -> None:
    for name in service.FILES:
        text = service.text_of(name, Path("/opt/mingled/bin"))
        assert text == (REPOSITORY / "systemd" / name).read_text()
    assert {path.name for path in (REPOSITORY / "systemd").iterdir()} == {*service.FILES}


def test_a_wheel_carries_the_units(tmp_path: Path) -> None:
    if importlib.util.find_spec("setuptools") is None:
        absent("setuptools is not installed")
    with zipfile.ZipFile(wheels.build(tmp_path)) as packed:
        for name in service.FILES:
            content = packed.read(f"mingled/units/{name}").decode()
            assert content == (REPOSITORY / "systemd" / name).read_text()


def test_every_path_of_an_installation_is_filled_in() -> None:
    for name in service.FILES:
        text = service.text_of(name, Path("/srv/m/bin"))
        assert "/opt/mingled" not in text
        if name.endswith(".service"):
            assert "ExecStart=/srv/m/bin/mingled" in text


# ---------------------------------------------------------------- as systemd sees them


def analyze(*words: str | Path) -> str:
    if shutil.which("systemd-analyze") is None:
        absent("The command `systemd-analyze` is missing: install it with `apt install systemd`.")
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


def test_the_hardening_score() -> None:
    said = analyze("security", "--offline=true", REPOSITORY / "systemd/mingled.service")
    found = re.search(r"Overall exposure level for mingled\.service: ([0-9.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= EXPOSURE_MAX, said


@pytest.mark.parametrize("name", ["mingled.service", "mingled.socket", "mingled-user.service"])
def test_systemd_understands_each_line(tmp_path: Path, name: str) -> None:
    for other in service.FILES:
        text = service.text_of(other, BIN)
        (tmp_path / other).write_text(text.replace("man:mingled(1)", "https://mingled.example"))
    said = analyze("verify", "--man=no", tmp_path / name)
    assert name not in said, said


# ---------------------------------------------------------------- whose code it is


@pytest.fixture
def safe() -> Iterator[Path]:
    """A folder that only root can change, as pytest's own below /tmp is not."""
    if os.geteuid() != 0:
        pytest.skip("only root has such folders")
    folder = Path(f"/var/lib/mingled-test-{os.getpid()}")
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


def test_what_only_root_can_change_may_run(safe: Path) -> None:
    (safe / "bin").mkdir()
    (safe / "bin/real").touch(mode=0o755)
    (safe / "bin/mingled").symlink_to("real")
    trusted.check([safe / "bin/mingled"])


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("folder for all", "/bin on HOST can be written by everybody"),
        ("folder for a group", "/bin on HOST can be written by group 12345"),
        ("file for all", "/bin/real on HOST can be written by everybody"),
        ("file of a user", "/bin/real on HOST belongs to uid 54321, who could change what runs"),
        ("link of a user", "/bin/mingled on HOST belongs to uid 54321"),
        ("link to a home", "/home/somebody/mingled on HOST lies below a home (/home)"),
        ("nothing there", "/bin/real on HOST No such file or directory"),
    ],
)
def test_what_others_can_change_may_not(safe: Path, what: str, says: str) -> None:
    folder, real, link = safe / "bin", safe / "bin/real", safe / "bin/mingled"
    folder.mkdir()
    real.touch(mode=0o755)
    link.symlink_to("real")
    match what:
        case "folder for all":
            folder.chmod(0o1777)
        case "folder for a group":
            os.chown(folder, 0, 12_345)
            folder.chmod(0o775)
        case "file for all":
            real.chmod(0o757)
        case "file of a user":
            os.chown(real, 54_321, 0)
        case "link of a user":
            os.lchown(link, 54_321, 0)
        case "link to a home":
            link.unlink()
            link.symlink_to("/home/somebody/mingled")
        case "nothing there":
            real.unlink()
    with pytest.raises(BadInput) as error:
        trusted.check([link])
    assert says.replace("HOST", socket.gethostname()) in str(error.value)
    assert "sudo /usr/bin/python3 -m venv --clear /opt/mingled" in str(error.value)


def test_where_else_modules_come_from_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"  # as a line in a .pth file has it
    elsewhere.mkdir()
    path = ["/called/in", "/lib/python3.zip", str(elsewhere)]
    monkeypatch.setattr(sys, "path", path)
    assert elsewhere in trusted.installation()
    assert not {Path("/called/in"), Path("/lib/python3.zip")} & {*trusted.installation()}


def test_an_access_list_counts(safe: Path) -> None:
    file = safe / "mingled"
    file.touch(mode=0o755)
    # acl(5), as getxattr(2) has it: user::rwx, user:54321:rw-, group::r-x, mask::rwx, other::r-x
    entries = ((1, 7, -1), (2, 6, 54_321), (4, 5, -1), (16, 7, -1), (32, 5, -1))
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(file, "system.posix_acl_access", value)
    except OSError as error:
        pytest.skip(f"this file system has no access lists: {error}")
    with pytest.raises(BadInput, match="can be written by whom its access list names"):
        trusted.check([file])


def test_everything_below_the_package_counts(safe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = safe / "mingled"
    (package / "core").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "core/claim.py").touch()
    (package / "core/claim.py").chmod(0o646)
    monkeypatch.setattr(mingled, "__file__", str(package / "__init__.py"))
    with pytest.raises(BadInput, match=r"core/claim\.py on .* can be written by everybody"):
        trusted.check([package])


# ---------------------------------------------------------------- what an upgrade restarts


@pytest.mark.parametrize(
    ("state", "running", "changed", "restarted"),
    [
        ("active", mingled.__version__, (), ()),
        ("active", "0.0.1", (), ("mingled.service",)),
        ("active", mingled.__version__, ("mingled.service",), ("mingled.service",)),
        # It could not be asked: it speaks another protocol, or serves another socket.
        ("active", "", (), ("mingled.service",)),
        ("active", "0.0.1", ("mingled.socket",), ("mingled.socket", "mingled.service")),
        ("inactive", "", ("mingled.socket", "mingled.service"), ()),
    ],
)
def test_a_daemon_that_is_not_the_installed_one_is_restarted(
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    running: str,
    changed: tuple[str, ...],
    restarted: tuple[str, ...],
) -> None:
    commands: list[tuple[str, ...]] = []
    for name in ("_need_systemd", "_need_root", "_need_free"):
        monkeypatch.setattr(service, name, lambda *_: None)
    monkeypatch.setattr(trusted, "check", lambda _: None)
    monkeypatch.setattr(
        service, "_put", lambda path, _: str(path) in map(service.FILES.get, changed)
    )
    monkeypatch.setattr(service, "_run", lambda *words: commands.append(words))
    shown = service.Unit(
        name="", installed=True, enabled=True, state=state, result="", pid=0, restarts=0, text=""
    )
    monkeypatch.setattr(service, "unit", lambda _: shown)
    monkeypatch.setattr(service, "running_release", lambda: running)
    assert service.install.callback is not None
    service.install.callback()
    restarts = [words[2:] for words in commands if words[:2] == ("systemctl", "restart")]
    assert restarts == ([restarted] if restarted else [])


def test_a_daemon_that_was_started_by_hand_is_not_pushed_aside(tmp_path: Path) -> None:
    path, lock_path = tmp_path / "control.sock", tmp_path / "control.sock.lock"
    lock = locks.acquire(lock_path, wait=False)
    with pytest.raises(DaemonError, match="a mingled that is no service serves it already; stop"):
        service._need_free(path)
    os.close(lock)  # as a daemon's that was killed
    service._need_free(path)
    assert not lock_path.exists()
    service._need_free(tmp_path / "nothing/control.sock")


# ---------------------------------------------------------------- where it cannot be


@pytest.mark.parametrize("what", ["install", "uninstall", "status"])
def test_without_systemd_it_is_one_sentence_and_an_exit_code(what: str) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs here")
    with Running(BIN / "mingle", "service", what) as running:
        assert running.end() == 80
    assert running.out == ""
    assert running.err == (
        f"mingle: systemd does not run on {socket.gethostname()}: have your service manager run "
        f"{BIN / 'mingled'} as a user of its own, or leave it to mingle-wait, which starts a "
        "private daemon\n"
    )
