"""`scripts/bootstrap` on machines that lack something: real sh, a PATH of small stand-ins."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What the script may use besides a Python; /usr/bin itself would bring the machine's Pythons.
TOOLS = ["awk", "cat", "cksum", "cp", "dirname", "env", "grep", "id", "mkdir", "rm", "sed", "sh"]

# A Python that writes down what it is asked to do: `-m venv` makes a folder with itself in it.
PYTHON = """#!/bin/sh
case "$*" in
    *"%d.%d"*) echo {version} ;;
    *"(3, 11))"*) {new_enough} ;;
    *"import ensurepip, venv"*) {has_venv} ;;
    *"import torch"*) {torch} ;;
    *sysconfig*) echo ;;
    *platform*) echo "Python {version}.0 with torch" ;;
    *"-m venv"*)
        echo "python $*" >>"$CALLS"
        for folder; do :; done
        mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" && cp "$0" "$folder/bin/pip" ;;
    *) echo "python $*" >>"$CALLS"; {pip} ;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >>"$CALLS"
[ "$1" = venv ] || exit 0
for folder; do :; done
mkdir -p "$folder/bin" && cp "{good}" "$folder/bin/python"
"""


class Machine:
    """A clone of the tree's own files, and a PATH that holds only what is put there."""

    def __init__(self, root: Path) -> None:
        self.clone, self.bin, self.calls = root / "clone", root / "bin", root / "calls"
        (self.clone / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("scripts/bootstrap", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.clone / name)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, tool
            (self.bin / tool).symlink_to(found)

    def put(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def python(
        self,
        name: str = "python3",
        version: str = "3.11",
        *,
        venv: bool = True,
        torch: str = "",
        pip: str = ":",
    ) -> Path:
        new_enough = int(version.split(".")[1]) >= 11
        return self.put(
            name,
            PYTHON.format(
                version=version,
                new_enough="exit 0" if new_enough else "exit 1",
                has_venv="exit 0" if venv else "exit 1",
                torch=f"echo {torch}" if torch else ":",
                pip=pip,
            ),
        )

    def bootstrap(
        self, *arguments: str, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["scripts/bootstrap", *arguments],
            cwd=self.clone,
            env={"PATH": str(self.bin), "CALLS": str(self.calls), **(variables or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def asked(self) -> list[str]:
        """What Python and uv were told to do since the last time this was called."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_bare_machine_gets_the_pinned_torch_and_hears_the_size_first(machine: Machine) -> None:
    machine.python()
    done = machine.bootstrap("--with", "demo")
    assert done.returncode == 0, done.stderr
    told = done.stderr.index("200 MB")
    assert told < done.stderr.index("installing mingled")
    venv, dry_run, torch, package = machine.asked()
    assert "-m venv" in venv
    assert "--system-site-packages" not in venv
    assert "--dry-run torch==2.13.0" in dry_run
    assert torch.endswith("torch==2.13.0")
    assert package.endswith("-e .[demo]")
    assert "torch==2.13.0" in (machine.clone / ".venv/constraints.txt").read_text()


def test_the_second_run_does_nothing_until_a_pin_changes(machine: Machine) -> None:
    machine.python()
    machine.bootstrap("--with", "dev")
    machine.asked()
    # dev holds demo, and not frameworks.
    for extras in ("dev", "demo"):
        again = machine.bootstrap("--with", extras)
        assert (again.returncode, again.stderr, machine.asked()) == (0, "", [])
    machine.bootstrap("--with", "frameworks")
    assert machine.asked()[-1].endswith("-e .[demo,dev,docs,frameworks]")
    assert machine.bootstrap("--with", "dev").stderr == ""
    machine.bootstrap("--with", "fuzz")
    assert machine.asked()[-1].endswith("-e .[demo,dev,docs,fuzz]")
    assert machine.bootstrap("--with", "dev").stderr == ""
    with (machine.clone / "constraints.txt").open("a") as pins:
        pins.write("attrs==25.1.0\n")
    machine.bootstrap("--with", "demo")
    assert any(line.endswith("-e .[demo]") for line in machine.asked())


def test_an_importable_torch_is_used_and_its_pins_are_dropped(machine: Machine) -> None:
    machine.python("python3.13", "3.13")
    machine.python("python3", "3.11", torch="2.7.1")
    done = machine.bootstrap("--with", "demo")
    assert done.returncode == 0, done.stderr
    assert "torch 2.7.1 is there and is used" in done.stderr
    venv, package = machine.asked()
    assert "--system-site-packages" in venv
    assert package.endswith("-e .[demo]")
    pins = (machine.clone / ".venv/constraints.txt").read_text()
    assert "sympy" not in pins
    assert "numpy==" in pins


def test_the_newest_python_that_runs_is_taken(machine: Machine) -> None:
    machine.put("python3.13", "#!/bin/sh\nexit 127\n")  # a version manager's empty shim
    machine.python("python3.12", "3.12")
    machine.python("python3", "3.11")
    assert "python3.12" in machine.bootstrap().stderr


def test_an_interrupted_run_starts_over(machine: Machine) -> None:
    machine.python(pip="exit 3")
    failed = machine.bootstrap("--with", "demo")
    assert failed.returncode == 1
    assert "this step failed" in failed.stderr
    machine.python()
    machine.asked()
    assert machine.bootstrap("--with", "demo").returncode == 0
    assert "-m venv" in machine.asked()[0]


def test_no_venv_module_names_the_debian_package(machine: Machine) -> None:
    machine.python(venv=False)
    machine.put("apt-get", "#!/bin/sh\n")
    done = machine.bootstrap()
    assert done.returncode == 1
    assert "apt-get install -y python3.11-venv" in done.stderr
    assert not (machine.clone / ".venv").exists()


def test_an_old_python_names_the_package_of_a_newer_one(machine: Machine) -> None:
    machine.python(version="3.9")
    machine.put("apt-get", "#!/bin/sh\n")
    machine.put("apt-cache", '#!/bin/sh\n[ "$2" = python3.12-venv ]\n')
    done = machine.bootstrap()
    assert done.returncode == 1
    assert "python3 is Python 3.9" in done.stderr
    assert "apt-get install -y python3.12 python3.12-venv" in done.stderr


@pytest.mark.parametrize(("version", "venv"), [("3.9", True), ("3.11", False)])
def test_uv_steps_in_where_python_falls_short(machine: Machine, version: str, venv: bool) -> None:
    good = machine.python("a-good-one")
    machine.python(version=version, venv=venv)
    machine.put("uv", UV.format(good=good))
    done = machine.bootstrap("--with", "demo")
    assert done.returncode == 0, done.stderr
    made, *installed = machine.asked()
    assert made.startswith("uv venv")
    assert ("--python >=3.11" in made) == (version == "3.9")
    assert all(line.startswith("uv pip install") for line in installed)


def test_a_cuda_build_is_never_fetched_by_accident(machine: Machine) -> None:
    machine.python(
        pip='case "$*" in *--dry-run*) echo "Would install nvidia-cublas-1 torch" ;; esac'
    )
    machine.put("uv", UV.format(good=os.devnull))
    assert machine.bootstrap("--with", "demo").returncode == 0
    torch = [line for line in machine.asked() if line.endswith(" torch==2.13.0")]
    assert [line.split()[0] for line in torch] == ["python", "uv"]
    assert "--dry-run" in torch[0]
    assert "--torch-backend cpu" in torch[1]


def test_a_given_python_is_the_only_one(machine: Machine) -> None:
    machine.python()
    old = machine.python("old", "3.10")
    done = machine.bootstrap(variables={"PYTHON": str(old)})
    assert done.returncode == 1
    assert f"PYTHON={old}" in done.stderr
    assert "is Python 3.10" in done.stderr


@pytest.mark.parametrize("arguments", [["--with"], ["--with", "torch"], ["demo"]])
def test_a_wrong_argument_is_named(machine: Machine, arguments: list[str]) -> None:
    done = machine.bootstrap(*arguments)
    assert done.returncode == 1
    assert "--with" in done.stderr
