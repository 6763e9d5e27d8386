"""Which Python CMD starts, by made-up installations, and by the one that runs this."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mingled.frameworks.interpreter import (
    Interpreter,
    command_in,
    of_command,
    of_process,
    runs_python,
)

VERSION = sys.version.split(maxsplit=1)[0]


def program(path: Path, text: str = "\x7fELF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another Python, 3.99.1, below `opt`; its folder is on PATH."""
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    prefix = tmp_path / "opt"
    program(prefix / "bin" / "python3.99")
    for name in ("python", "python3"):
        (prefix / "bin" / name).symlink_to("python3.99")
    header = prefix / "include" / "python3.99" / "patchlevel.h"
    header.parent.mkdir(parents=True)
    header.write_text('/* x */\n#define PY_VERSION_HEX 1\n#define PY_VERSION      \t"3.99.1"\n')
    (prefix / "lib" / "python3.99" / "site-packages").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{prefix / 'bin'}:{os.environ['PATH']}")
    return prefix


@pytest.fixture
def environment(installed: Path, tmp_path: Path) -> Path:
    """A virtual environment of it."""
    folder = tmp_path / "venv with a blank"
    (folder / "lib" / "python3.99" / "site-packages").mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(installed / "bin" / "python3")
    settings = "home = /x\nversion = 3.99.0\ninclude-system-site-packages = false\n"
    (folder / "pyvenv.cfg").write_text(settings)
    return folder


def found(*cmd: str | Path) -> Interpreter:
    python = of_command([str(word) for word in cmd])
    assert isinstance(python, Interpreter), python
    return python


def test_our_own() -> None:
    ours = of_process()
    assert ours.version == VERSION
    assert found(sys.executable, "train.py") == ours
    torchrun = Path(sys.executable).parent / "pytest"  # a script that pip made
    assert found(torchrun) == ours
    assert found("env", "OMP_NUM_THREADS=1", "nohup", torchrun) == ours


def test_an_installed_one(installed: Path) -> None:
    site = str(installed / "lib" / "python3.99" / "site-packages")
    for cmd in (
        ("python", "train.py"),
        ("python3.99",),
        (installed / "bin" / "python3", "-m", "x"),
    ):
        python = found(*cmd)
        assert python.version == "3.99.1"
        assert site in python.folders
        assert str(Path.home() / ".local/lib/python3.99/site-packages") in python.folders


def test_a_virtual_environment(installed: Path, environment: Path) -> None:
    python = found(environment / "bin" / "python", "train.py")
    assert python.version == "3.99.1", "as it is, not as it was when the environment was made"
    assert python.folders == (str(environment / "lib" / "python3.99" / "site-packages"),)
    settings = environment / "pyvenv.cfg"
    settings.write_text(settings.read_text().replace("false", "true"))
    python = found(environment / "bin" / "python", "train.py")
    assert str(installed / "lib" / "python3.99" / "site-packages") in python.folders[1:]


@pytest.mark.parametrize(
    "head",
    [
        "#!{python}\n",
        "#! {python} -sE\n",
        "#!/usr/bin/env python3\n",
        "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n",
        "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\n",
    ],
)
def test_the_first_line_of_a_script(installed: Path, tmp_path: Path, head: str) -> None:
    text = head.format(python=installed / "bin" / "python3.99")
    assert found(program(tmp_path / "bin" / "torchrun", text), "train.py").version == "3.99.1"


def test_pip_quotes_a_path_with_a_blank(environment: Path) -> None:
    python = environment / "bin" / "python"
    text = f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"
    python_found = found(program(environment / "bin" / "torchrun", text))
    assert python_found.folders == (str(environment / "lib" / "python3.99" / "site-packages"),)


def test_folders_that_are_added(
    installed: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/first:/second")
    site = environment / "lib" / "python3.99" / "site-packages"
    (site / "a.pth").write_text("# x\nimport os; os.system('touch /tmp/x')\n../source\n\n/abs\n")
    python = found(environment / "bin" / "python")
    assert python.folders == ("/first", "/second", str(site), f"{site}/../source", "/abs")


@pytest.mark.parametrize(
    "cmd",
    [
        ["sh", "-c", "python train.py"],
        ["true"],
        ["no-such-command"],
        ["env", "-i", "python", "train.py"],
        ["env", "PYTHONPATH=/x", "python", "train.py"],
        ["nice", "-n", "5", "python"],
        ["uv", "run", "python"],
        ["env"],
    ],
)
@pytest.mark.usefixtures("installed")
def test_what_cannot_be_told(cmd: list[str]) -> None:
    why = of_command(cmd)
    assert isinstance(why, str)
    assert cmd[0] in why


def test_a_shim_is_no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyenv's: a shell script of that name, which looks for the real one."""
    shim = program(tmp_path / "shims" / "python", "#!/usr/bin/env bash\nexec pyenv exec python\n")
    assert isinstance(of_command([str(shim)]), str)
    script = program(tmp_path / "torchrun", f"#!{shim}\n")
    assert isinstance(of_command([str(script)]), str)
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    other = program(tmp_path / "bin" / "python3.98")
    assert "PYTHONHOME" in str(of_command([str(other)]))


def test_a_version_that_is_nowhere_written(installed: Path) -> None:
    (installed / "include" / "python3.99" / "patchlevel.h").unlink()
    assert found("python").version is None
    (installed / "bin" / "python3.99").rename(installed / "bin" / "python4")
    (installed / "bin" / "python").unlink()
    (installed / "bin" / "python").symlink_to("python4")
    assert found("python").folders, "one library below it says which"
    (installed / "lib" / "python3.98").mkdir()
    assert "version" in str(of_command(["python"]))


def test_the_command_that_counts() -> None:
    assert command_in(["env", "A=1", "B=2", "nohup", "torchrun", "x.py"]) == ["torchrun", "x.py"]
    assert command_in(["A=1", "python"]) == ["A=1", "python"], "only env takes these"
    assert command_in([]) is None


@pytest.mark.parametrize(
    ("cmd", "expected"),
    [
        ("python train.py", True),
        ("/usr/bin/python3.13t -u train.py", True),
        ("env A=1 nohup python3 -m digits.train", True),
        ("python -c pass", True),
        ("python -m accelerate.commands.launch train.py", False),
        ("torchrun train.py", False),
        ("bash run.sh", False),
        ("env -i python train.py", False),
        ("env", False),
        ("", False),
    ],
)
def test_what_is_plainly_one_process(cmd: str, expected: bool) -> None:
    assert runs_python(cmd.split()) is expected
