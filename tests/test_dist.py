"""The archives: what is in them, the same bytes each time, and types that others can check."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import dist
import mingled
from tests.lan.conftest import absent

ROOT = Path(__file__).parents[1]

USER = '''
import mingled

def train(job: str) -> int:
    """What a user's script does with us."""
    with mingled.join(job, nnodes=2, nproc_per_node=8, timeout=60.0) as cfg:
        cfg.apply()
        address: str = cfg.master_addr
        port: int = cfg.master_port
        env: dict[str, str] = cfg.to_env("jax")
        return cfg.rank + cfg.world_size + port + len(address) + len(env)

try:
    train("bert")
except mingled.JoinTimeout as error:
    code: int = error.exit_code
'''

WRONG = """
import mingled

mingled.join(7).master_port.upper()
"""


def archive(mode: int, mtime: int, uid: int) -> bytes:
    """A .tar.gz of a script and its folder, as somebody's machine would write it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, kind in (("x/run", tarfile.REGTYPE), ("x", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.mtime, member.uid = kind, mode, mtime, uid
            member.uname = f"user{uid}"
            member.size = 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"abc"))
    return out.getvalue()


def test_the_same_files_are_the_same_bytes_whoever_packs_them() -> None:
    mine, yours = archive(0o755, 1, 1000), archive(0o700, 2, 0)
    assert mine != yours
    assert dist.normal(mine, 77) == dist.normal(yours, 77) != dist.normal(mine, 78)
    with tarfile.open(fileobj=io.BytesIO(dist.normal(mine, 77))) as tar:
        folder, script = tar.getmembers()
        assert (folder.name, folder.mode, script.mode) == ("x", 0o755, 0o755)
        assert {script.mtime, folder.mtime} == {77}
        assert (script.uid, script.uname) == (0, "")
        content = tar.extractfile(script)
        assert content is not None
        assert content.read() == b"abc"
    assert gzip.decompress(dist.normal(mine, 77))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both archives, built as `make dist` does."""
    if importlib.util.find_spec("build") is None:
        absent("build is not installed")
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", dist.last_commit())
        dist.build(folder)
    return folder


def test_the_source_archive_holds_what_is_needed_to_develop(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    # Of the repository itself, not of what was made from it.
    ours = {name for name in tracked if name and not name.startswith(".git")}
    assert ours - names == set()


def test_the_wheel_holds_the_package_its_types_and_its_manual(built: Path) -> None:
    (path,) = built.glob("*.whl")
    assert path.name == f"mingled-{mingled.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        dates = {info.date_time for info in wheel.infolist()}
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        text = wheel.read(metadata).decode()
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "mingled").rglob("*.py")}
    assert package | {"mingled/py.typed"} <= names
    for page in ("mingle.1", "mingled.1", "mingle-wait.1"):
        assert f"mingled-{mingled.__version__}.data/data/share/man/man1/{page}" in names
    assert not [name for name in names if name.startswith(("tests", "scripts", "benchmarks"))]
    assert len(dates) == 1
    assert f"\nVersion: {mingled.__version__}\n" in text


def test_the_version_is_said_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "mingled.__version__"}


def checked(tmp_path: Path, program: str) -> tuple[int, str]:
    """mypy --strict on a script that uses us as it would any installed package."""
    script = tmp_path / "train.py"
    script.write_text(program)
    words = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    environ = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    done = subprocess.run(
        [*words, str(script)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_script_of_a_user_passes_mypys_strict_checks(tmp_path: Path) -> None:
    assert checked(tmp_path, USER) == (0, "Success: no issues found in 1 source file\n")


def test_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    code, said = checked(tmp_path, WRONG)
    assert code == 1
    assert 'incompatible type "int"; expected "str | None"' in said
    assert '"int" has no attribute "upper"' in said
